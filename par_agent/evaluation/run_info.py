"""The small description of a run that its records, tables and pages are made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from par_agent.evaluation.protocol import check_states, protocol_file, protocol_seeds
from par_agent.evaluation.records import rollout_stem
from par_agent.evaluation.rollout import rollout_versions
from par_agent.evaluation.run_config import RunConfig
from par_agent.simulation.environment import check_backend
from par_agent.tasks import ALL_STATES, PROTOCOL_STATES, TaskSpec, resolve_tasks
from par_agent.utils.device import usable_device
from par_agent.utils.hashes import hash_content
from par_agent.utils.versions import git_commit


@dataclass(frozen=True)
class RunInfo:
    """A run, as its tables and pages describe it."""

    config: RunConfig
    specs: dict[str, TaskSpec]
    """Tasks by reference, as the policy is rolled out in them."""
    fingerprint: str
    """Hash of what decides the policy's actions."""
    initial_states: dict[str, str]
    """SHA-256 of the protocol's files of initial states, by name."""
    versions: dict[str, str]
    """Versions of everything that affects a rollout, by name."""
    commit: str
    """Git commit of the code when the run began."""
    renderer: str = ""
    """Name of the device that rendered, known once the run has begun."""
    workers: int = 0
    """Rollouts at once, known once the run has begun."""

    @classmethod
    def of(cls, config: RunConfig) -> RunInfo:
        """The description of a run that has not begun."""
        specs = {name: config.spec(name) for name in resolve_tasks(config.tasks)}
        check_backend(config.backend, list(specs.values()))
        if config.policy.device != "cpu":  # torch need not be imported in this process for the CPU
            usable_device(config.policy.device)
        initial_states = {}
        for spec in specs.values() if config.state_seed is None else ():
            if (stored := protocol_file(spec, config.states)).exists():
                initial_states[stored.name] = check_states(stored, spec, protocol_seeds(config.states))
        return cls(config, specs, config.policy.fingerprint(), initial_states, rollout_versions(), git_commit())

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return [spec.name for spec in self.specs.values()]

    @property
    def total(self) -> int:
        """Rollouts in the run."""
        return len(self.specs) * self.config.states * self.config.policy_seeds

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the result of a rollout; two runs with the same identity may share a folder."""
        config, policy = self.config, self.config.policy
        return {
            "policy": policy.label,
            "policy_options": policy.deciding_options,
            "checkpoint": self.fingerprint,
            "device": policy.device,
            "backend": config.backend,
            "num_envs": config.num_envs,  # what a GPU simulates together may decide the last bits
            "track": config.track,
            "variation": config.variation,
            "state_seed": config.state_seed,
            "run_to_end": config.run_to_end,
            "tasks": [asdict(spec) for spec in self.specs.values()],
            "initial_states": self.initial_states,
            "versions": self.versions,
            **({"after_success": config.after_success} if config.after_success else {}),
            **{measurement.name: measurement.settings for measurement in config.measurements},
        }

    @cached_property
    def folder(self) -> Path:
        """The run's own folder; its name ends with a hash of its identity."""
        config = self.config
        states = "" if config.state_seed is None else f"-seed{config.state_seed}"
        if config.state_seed is None and config.states > PROTOCOL_STATES:
            states = f"-{ALL_STATES}states"
        variation = "" if config.variation == "none" else f"-{config.variation}"
        name = f"{config.policy.label}-{config.track}{variation}{states}-{hash_content(self.identity, 8)}"
        return config.out / name

    def video_file(self, task: str, state: int, policy_seed: int) -> Path:
        """Where a rollout's video is saved."""
        return self.folder / "videos" / f"{rollout_stem(task, state, policy_seed)}.mp4"

    def states_file(self, task: str) -> Path:
        """File of a task's initial states: in the package for the protocol's, else in the run's folder."""
        spec = self.specs[task]
        if (stored := protocol_file(spec, self.config.states)).name in self.initial_states:
            return stored
        return self.folder / "states" / f"{spec.name}-{self.config.states}.safetensors"
