"""Runs a benchmark: every task, initial state and policy seed once, in worker processes, resumable at any moment."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from par_agent.errors import UserError
from par_agent.evaluation.alignment import check_installed
from par_agent.evaluation.cluster_pool import ClusterPool
from par_agent.evaluation.initial_states import make_missing_states
from par_agent.evaluation.jobs import Reply, RolloutJob, WorkerSetup
from par_agent.evaluation.policies import PolicySource, hash_content, resolve_tasks
from par_agent.evaluation.protocol import check_seeds, check_states, protocol_file, protocol_seeds
from par_agent.evaluation.records import Record, RecordKey, RunFolder, record_key
from par_agent.evaluation.rollout import rollout_versions
from par_agent.evaluation.workers import WorkerPool
from par_agent.simulation.environment import check_backend
from par_agent.simulation.variations import get_variation
from par_agent.tasks import PROTOCOL_POLICY_SEEDS, PROTOCOL_STATES, check_track
from par_agent.utils.checked import Checked, ClusterAddress, Count, Length, NonNegative, Range, Seed, SmallCount
from par_agent.utils.device import usable_device
from par_agent.utils.files import check_writable
from par_agent.utils.interrupts import deferred_interrupts
from par_agent.utils.versions import git_commit


@dataclass(frozen=True)
class RunConfig(Checked):
    """What to roll out and where to write it."""

    tasks: tuple[str, ...]
    """Task names, or ``module:NAME`` for a TaskSpec of your own."""
    policy: PolicySource
    """Where the policy comes from."""
    out: Path
    """Folder under which the run gets its own folder."""
    track: str = "paper"
    """``paper`` or ``native``."""
    variation: str = "none"
    """One of :data:`par_agent.simulation.variations.VARIATIONS`."""
    states: Count = PROTOCOL_STATES
    """Initial states per task, the protocol's first ones unless `state_seed` is given."""
    state_seed: Seed | None = None
    """First environment seed of other initial states than the protocol's."""
    policy_seeds: Length = PROTOCOL_POLICY_SEEDS
    """Policy seeds per initial state: 0, 1, ..."""
    workers: SmallCount = 1
    """Worker processes; the ``gpu`` backend uses one."""
    backend: str = "cpu"
    """``cpu``: one environment per worker process. ``gpu``: ManiSkill's vectorised simulation of all states at once."""
    cluster: ClusterAddress | None = None
    """Address of a Ray cluster whose nodes do the rollouts in place of worker processes of this machine."""
    run_to_end: bool = False
    """Go on after the first success until the step limit."""
    videos: NonNegative = 0
    """Rollouts per task to save as MP4."""
    retry_errors: bool = False
    """Run rollouts again that ended with an exception in an earlier run."""
    alignment: Annotated[int, Range(0, 1024)] = 0
    """Chunks that the policy imagines ahead at every look, to be compared with what happens; 0: not measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise UserError("no tasks given")
        check_track(self.track)
        get_variation(self.variation)
        if self.alignment:
            check_installed()
        if self.cluster is not None and (self.backend != "cpu" or self.policy.device != "cpu"):
            raise UserError("a cluster's nodes simulate and act on their CPUs: leave --backend and --device out")
        if self.state_seed is not None:
            check_seeds(self.state_seed, self.states)
        elif self.states > PROTOCOL_STATES:
            raise UserError(
                f"states is {self.states}; the protocol has {PROTOCOL_STATES}: give a state seed for others"
            )

    @property
    def is_protocol(self) -> bool:
        """Whether the run is the whole protocol: all of its initial states and policy seeds."""
        return self.is_comparable and self._has_all_states

    @property
    def is_comparable(self) -> bool:
        """Whether each rollout is one of the protocol's."""
        return self.state_seed is None and not self._changes

    @property
    def protocol_label(self) -> str:
        """How far the run follows the protocol, in words for every output."""
        if self._changes:
            return f"NOT THE PROTOCOL: {', '.join(self._changes)}, {self._states_label}"
        return self._states_label

    @property
    def _changes(self) -> list[str]:
        """What is not as in the protocol, beside the number of rollouts and the initial states."""
        changes = [] if self.variation == "none" else [get_variation(self.variation).description]
        controller = self.policy.controller
        if controller and any(spec.control_mode != controller[0] for spec in resolve_tasks(self.tasks).values()):
            changes.append(f"control mode {controller[0]}")
        return changes

    @property
    def _has_all_states(self) -> bool:
        return self.states == PROTOCOL_STATES and self.policy_seeds == PROTOCOL_POLICY_SEEDS

    @property
    def _states_label(self) -> str:
        if self.state_seed is not None:
            last = self.state_seed + self.states - 1
            return f"NOT THE PROTOCOL: initial states from seeds {self.state_seed} to {last}"
        if self._has_all_states:
            return "the protocol"
        return (
            f"part of the protocol: {self.states} of {PROTOCOL_STATES} initial states, {self.policy_seeds} policy "
            f"seed{'s' * (self.policy_seeds > 1)} (the protocol has {PROTOCOL_POLICY_SEEDS})"
        )


Listener = Callable[[Record], None]


class BenchmarkRun:
    """One benchmark run.

    Raises:
        UserError: unknown task, policy or track, a task given twice, damaged initial states of the protocol, or an
            output folder that cannot be written.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.specs = {name: config.policy.task(spec) for name, spec in resolve_tasks(config.tasks).items()}
        check_backend(config.backend, list(self.specs.values()))
        if config.policy.device != "cpu":  # which needs no look, and no torch in this process
            usable_device(config.policy.device)
        self.versions = rollout_versions()
        self.commit = git_commit()
        """Of the code that rolls out, also if another one is checked out before the results are written."""
        self.fingerprint = config.policy.fingerprint()
        self._checksums: dict[str, str] = {}
        """Of files of initial states, by task; of those that the run makes itself, known once it has begun."""
        for task in self.specs:
            if self._has_protocol_states(task):
                self._check_states(task)
        self.identity = self._identity()
        self.renderer = ""
        """Name of the device that rendered, known once the run has begun."""
        self.workers = 0
        """Rollouts at once, known once the run has begun."""
        check_writable(self.folder)

    @property
    def folder(self) -> Path:
        """The run's own folder; its name ends with a hash of policy, task specs, track and versions."""
        config = self.config
        states = "" if config.state_seed is None else f"-seed{config.state_seed}"
        variation = "" if config.variation == "none" else f"-{config.variation}"
        return config.out / f"{config.policy.label}-{config.track}{variation}{states}-{hash_content(self.identity)[:8]}"

    @property
    def total(self) -> int:
        """Rollouts in the run."""
        return len(self.specs) * self.config.states * self.config.policy_seeds

    def run(self, on_start: Callable[[list[Record]], None], on_record: Listener) -> list[Record]:
        """Rolls out what is not on disk yet.

        Args:
            on_start: called once with the records found on disk, when the workers are ready.
            on_record: called with every new record, after it was written.

        Returns:
            All of the run's records, sorted by task, state and policy seed.

        Raises:
            UserError: task, policy or environment do not fit; nothing has been written then.
            UnavailableError: what the policy acts with is gone; what was rolled out before is on disk.
            Interrupted: the process was told to end; likewise.
        """
        extent = {"states": self.config.states, "policy_seeds": self.config.policy_seeds}
        with (
            deferred_interrupts(),
            self._pool() as pool,
            RunFolder(self.folder, self.identity, **extent) as folder,
        ):
            self.renderer, self.workers = pool.renderer, pool.workers
            if self.config.retry_errors:
                folder.discard(lambda record: record["error"] is not None)
            own = [task for task in self.specs if not self._has_protocol_states(task)]
            make_missing_states({self.states_file(task): task for task in own}, self._env_seeds)
            folder.claim_states({self.states_file(task).name: self._check_states(task) for task in own})
            wanted = {key for job in self._jobs() for key in self._keys(job)}
            on_start([record for record in folder.records if record_key(record) in wanted])
            self._roll_out(pool, folder, on_record)
            return sorted((r for r in folder.records if record_key(r) in wanted), key=record_key)

    @property
    def num_envs(self) -> int:
        """Environments simulated at once."""
        return 1 if self.config.backend == "cpu" else self.config.states

    @property
    def _env_seeds(self) -> range:
        """Environment seeds of the initial states."""
        first = protocol_seeds()[0] if self.config.state_seed is None else self.config.state_seed
        return range(first, first + self.config.states)

    def states_file(self, task: str) -> Path:
        """File of a task's initial states: in the package for the protocol's, else in the run's folder."""
        spec = self.specs[task]
        if self._has_protocol_states(task):
            return protocol_file(spec)
        return self.folder / "states" / f"{spec.name}-{self.config.states}.safetensors"

    def _has_protocol_states(self, task: str) -> bool:
        """Whether a task starts from the states that are stored in the package."""
        return self.config.state_seed is None and protocol_file(self.specs[task]).exists()

    def _check_states(self, task: str) -> str:
        """Checks a task's initial states; the SHA-256 of their file."""
        seeds = protocol_seeds() if self._has_protocol_states(task) else self._env_seeds
        self._checksums[task] = check_states(self.states_file(task), self.specs[task], seeds)
        return self._checksums[task]

    def video_file(self, task: str, state: int, policy_seed: int) -> Path:
        """Where a rollout's video is saved."""
        return self.folder / "videos" / f"{task}_state{state:02d}_seed{policy_seed}.mp4"

    def _pool(self) -> WorkerPool | ClusterPool:
        """Who does the rollouts."""
        config = self.config
        setup = WorkerSetup(
            config.tasks,
            config.track,
            config.policy,
            config.backend,
            self.num_envs,
            config.variation,
            imagines=config.alignment > 0,
        )
        if config.cluster is not None:
            return ClusterPool(setup, config.cluster, self.versions, self.fingerprint)
        return WorkerPool(setup, config.workers if config.backend == "cpu" else 1)

    def _identity(self) -> dict[str, Any]:
        """All that decides the result of a rollout; two runs with the same identity may share a folder."""
        policy = self.config.policy
        return {
            "policy": policy.label,
            "policy_options": policy.deciding_options,
            "checkpoint": self.fingerprint,
            "device": policy.device,
            "backend": self.config.backend,
            "num_envs": self.num_envs,  # what a GPU simulates together may decide the last bits
            "track": self.config.track,
            "variation": self.config.variation,
            "state_seed": self.config.state_seed,
            "run_to_end": self.config.run_to_end,
            "tasks": [asdict(spec) for spec in self.specs.values()],
            "initial_states": {self.states_file(task).name: found for task, found in self._checksums.items()},
            "versions": self.versions,
            **({"alignment": self.config.alignment} if self.config.alignment else {}),
        }

    def _jobs(self) -> Iterator[RolloutJob]:
        """Every rollout, tasks interleaved, so that the first results already speak of all tasks."""
        config = self.config
        for policy_seed in range(config.policy_seeds):
            for first in range(0, config.states, self.num_envs):
                states = tuple(range(first, first + self.num_envs))
                for task, spec in self.specs.items():
                    videos = tuple(
                        (state, self.video_file(spec.name, state, policy_seed))
                        for state in states
                        if policy_seed * config.states + state < config.videos
                    )
                    file = self.states_file(task)
                    yield RolloutJob(
                        task,
                        file,
                        self._checksums[task],
                        states,
                        policy_seed,
                        config.run_to_end,
                        videos,
                        config.alignment,
                    )

    def _keys(self, job: RolloutJob) -> list[RecordKey]:
        """The rollouts of a job."""
        return [(self.specs[job.task].name, state, job.policy_seed) for state in job.states]

    def _roll_out(self, pool: WorkerPool | ClusterPool, folder: RunFolder, on_record: Listener) -> None:
        present = {record_key(record) for record in folder.records}
        pending: list[RolloutJob] = []
        for job in self._jobs():
            # A recorded rollout is repeated, to the bit, only for a video that was not asked for the first time.
            missing_videos = [path for _, path in job.videos if not path.exists()]
            if missing_videos or not present.issuperset(self._keys(job)):
                pending.append(job)
        for finished, reply in pool.run(pending):
            record = self._record(finished, reply)
            if reply.warning is not None:
                warnings.warn(reply.warning, stacklevel=2)
            if record_key(record) in present:
                continue
            if reply.error is not None:
                folder.log_error(record, reply.traceback or reply.error)
            folder.append(record)
            present.add(record_key(record))
            on_record(record)

    def _record(self, job: RolloutJob, reply: Reply) -> Record:
        """A rollout's line in rollouts.jsonl."""
        config = self.config
        failed = dict.fromkeys(
            ("success_at_end", "steps", "steps_to_success", "reward", "renders", "actions_sha256", "plan_ms", "seconds")
        )
        return {
            "task": self.specs[job.task].name,
            "track": config.track,
            "variation": config.variation,
            "backend": config.backend,
            "protocol": config.is_comparable,
            "state": reply.state,
            "env_seed": self._env_seeds[reply.state],
            "policy_seed": job.policy_seed,
            **({"success_once": False, **failed} if reply.fields is None else reply.fields),
            "error": reply.error,
            "policy": config.policy.label,
            "checkpoint": self.fingerprint,
            "versions": self.versions,
        }
