"""Runs a benchmark: every task, initial state and policy seed once, in worker processes, resumable at any moment."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from par_agent.evaluation.initial_states import make_missing_states
from par_agent.evaluation.protocol import check_states
from par_agent.evaluation.records import MEASURED, Record, RecordKey, RunFolder, record_key
from par_agent.evaluation.rollout_worker import RendererJob, Reply, RolloutJob, RolloutWorker, WorkerSetup
from par_agent.evaluation.run_config import RunConfig
from par_agent.evaluation.run_info import RunInfo
from par_agent.jobs import open_runner
from par_agent.jobs.runner import JobRunner, LostJobError
from par_agent.tasks import PROTOCOL_STATES
from par_agent.utils.files import check_writable
from par_agent.utils.interrupts import deferred_interrupts


class BenchmarkRun:
    """One benchmark run."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.info = RunInfo.of(config)
        """What renders, and how many rollouts at once, is known once the run has begun."""
        check_writable(self.folder)

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.info.folder

    def run(self, on_start: Callable[[list[Record]], None], on_record: Callable[[Record], None]) -> list[Record]:
        """Rolls out what is not on disk yet.

        Args:
            on_start: called once with the records found on disk, when the workers are ready.
            on_record: called with every new record, after it was written.

        Returns:
            All of the run's records, sorted by task, state and policy seed.

        Raises:
            UserError: task, policy or environment do not fit; nothing was written.
            UnavailableError: what the policy acts with is gone; finished rollouts are on disk.
            Interrupted: the process was told to end; finished rollouts are on disk.
        """
        config = self.config
        extent = {"states": config.states, "policy_seeds": config.policy_seeds}
        with (
            deferred_interrupts(),
            self._job_runner() as runner,
            RunFolder(self.folder, self.info.identity, **extent) as folder,
        ):
            if config.retry_errors:
                folder.discard(lambda record: record["error"] is not None)
            jobs = list(self._jobs(self._checksums(folder)))
            wanted = {key for job in jobs for key in self._keys(job)}
            on_start([record for record in folder.records if record_key(record) in wanted])
            self._roll_out(runner, jobs, folder, on_record)
            return sorted((r for r in folder.records if record_key(r) in wanted), key=record_key)

    def _roll_out(
        self, runner: JobRunner, jobs: list[RolloutJob], folder: RunFolder, on_record: Callable[[Record], None]
    ) -> None:
        """Does the jobs, and writes every rollout's record as it ends."""
        present = {record_key(record) for record in folder.records}
        # A recorded rollout is repeated, to the bit, only for a video that was not asked for the first time.
        pending = [
            job
            for job in jobs
            if not present.issuperset(self._keys(job))
            or not all((self.folder / path).exists() for _, path in job.videos)
        ]
        for job, reply in self._replies(runner, pending):
            record = self._record(job, reply)
            if reply.warning is not None:
                warnings.warn(reply.warning, stacklevel=2)
            if record_key(record) in present:
                continue
            if reply.error is not None:
                folder.log_error(record, reply.traceback or reply.error)
            folder.append(record)  # the result is written here
            present.add(record_key(record))
            on_record(record)

    def _replies(self, runner: JobRunner, jobs: list[RolloutJob]) -> Iterator[tuple[RolloutJob, Reply]]:
        """The reply to every rollout as it ends; that to a rollout that was lost tells how."""
        for job, message in runner.run(jobs, yield_lost=True):
            if isinstance(message, LostJobError):
                yield from ((job, Reply(state, error=message.how)) for state in job.states)
            else:
                yield job, message

    def _record(self, job: RolloutJob, reply: Reply) -> Record:
        """A rollout's line in rollouts.jsonl."""
        config = self.config
        return {
            "task": self.info.specs[job.task].name,
            "track": config.track,
            "variation": config.variation,
            "backend": config.backend,
            "protocol": config.is_comparable and reply.state < PROTOCOL_STATES,
            "state": reply.state,
            "env_seed": config.env_seeds[reply.state],
            "policy_seed": job.policy_seed,
            **({"success_once": False, **dict.fromkeys(MEASURED)} if reply.fields is None else reply.fields),
            "error": reply.error,
            "policy": config.policy.label,
            "checkpoint": self.info.fingerprint,
            "versions": self.info.versions,
        }

    @contextmanager
    def _job_runner(self) -> Iterator[JobRunner]:
        """What does the rollouts; a policy that does not fit is noticed before the block begins."""
        config = self.config
        setup = WorkerSetup(config, os.getcwd(), None if config.cluster is None else self.info.fingerprint)
        workers = config.workers if config.backend == "cpu" else 1
        with open_runner(RolloutWorker, setup, self.folder, workers, config.cluster) as runner:
            ((_, renderer),) = runner.run([RendererJob()])
            self.info = replace(self.info, renderer=renderer, workers=runner.workers)
            yield runner

    def _jobs(self, checksums: dict[str, str]) -> Iterator[RolloutJob]:
        """Every rollout, tasks interleaved; ``checksums`` are those of the initial states, by task."""
        config, info = self.config, self.info
        contents = {task: info.states_file(task).read_bytes() for task in info.specs}
        for policy_seed in range(config.policy_seeds):
            for first in range(0, config.states, config.num_envs):
                states = tuple(range(first, first + config.num_envs))
                filmed = [state for state in states if policy_seed * config.states + state < config.video]
                for task, spec in info.specs.items():
                    videos = ((state, info.video_file(spec.name, state, policy_seed)) for state in filmed)
                    yield RolloutJob(
                        task,
                        info.states_file(task),
                        contents[task],
                        checksums[task],
                        states,
                        policy_seed,
                        tuple((state, path.relative_to(info.folder)) for state, path in videos),
                    )

    def _keys(self, job: RolloutJob) -> list[RecordKey]:
        """The rollouts of a job."""
        return [(self.info.specs[job.task].name, state, job.policy_seed) for state in job.states]

    def _checksums(self, folder: RunFolder) -> dict[str, str]:
        """SHA-256 of the files of initial states, by task; those that are not stored in the package are made."""
        info, seeds = self.info, self.config.env_seeds
        files = {task: info.states_file(task) for task in info.specs}
        own = {file: task for task, file in files.items() if file.name not in info.initial_states}
        make_missing_states(own, seeds)
        made = {file.name: check_states(file, info.specs[task], seeds) for file, task in own.items()}
        folder.claim_states(made)
        return {task: (info.initial_states | made)[file.name] for task, file in files.items()}
