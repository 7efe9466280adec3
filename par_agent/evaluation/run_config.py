"""What a run rolls out and where it writes, and how far it follows the protocol."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from par_agent.errors import UserError
from par_agent.evaluation.measurements import Measurement
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.protocol import check_seeds, protocol_seeds
from par_agent.simulation.variations import get_variation
from par_agent.tasks import (
    ALL_STATES,
    PAPER_TASKS,
    PROTOCOL_POLICY_SEEDS,
    PROTOCOL_STATES,
    TaskSpec,
    Track,
    resolve_task,
    resolve_tasks,
)
from par_agent.utils.checked import Checked, ClusterAddress, Count, Length, NonNegative, Seed, SmallCount


@dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """What to roll out and where to write it: the options of a run but its policy."""

    tasks: tuple[str, ...] = PAPER_TASKS
    """Tasks by name, or module:NAME for a TaskSpec of your own."""
    track: Track = "paper"
    """What the policy observes: the render camera and joint positions, or ManiSkill's own obs_mode="rgb"."""
    variation: str = "none"
    """One change that training did not show, as NAME or NAME=STRENGTH: camera_pose, light_color, ambient, MO_color,
    RO_color, MO_texture, RO_texture, MO_size, RO_size, table_color, table_texture, background_color, distractor_object,
    pose_randomization, language, all (of these), light_intensity, sensor_noise, action_delay, chunk_latency, shader,
    blink. A strength of 0.5 halves the range, as in camera_pose=0.5."""
    states: Annotated[Count, tyro.conf.arg(aliases=["--num-states"])] = PROTOCOL_STATES
    """Number of initial states per task: the first ones of the protocol, or of --state-seed. Up to 125: the protocol's
    25 and as many of its 100 further ones."""
    policy_seeds: Length = PROTOCOL_POLICY_SEEDS
    """Policy seeds per initial state."""
    state_seed: Seed | None = None
    """First environment seed of initial states for development, instead of the protocol's; below 20241201."""
    workers: SmallCount | None = None
    """Worker processes. Default: one per core."""
    backend: Literal["cpu", "gpu"] = "cpu"
    """cpu: one environment per worker process. gpu: ManiSkill's vectorised simulation of all states at once."""
    cluster: ClusterAddress | None = None
    """Address of a Ray cluster whose nodes do the rollouts; auto: the cluster of this machine."""
    max_steps: Length | None = None
    """Control steps after which a rollout counts as failed. Default: the task's own, 400; others are not the
    protocol."""
    run_to_end: bool = False
    """Continues after the first success until the step limit, to measure success at the end too (slow)."""
    after_success: NonNegative = 0
    """Continues for N control steps after the first success, to measure success at the end too."""
    video: NonNegative = 0
    """Saves an MP4 of each task's first N rollouts. These render every control step and take several times as long."""
    retry_errors: bool = False
    """Repeats rollouts that an earlier run recorded with an exception."""
    out: Path = Path("benchmark-results")
    """Folder in which the run gets its own folder."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunOptions):
    """A run: its options, its policy, and what is measured beside success."""

    policy: PolicySource
    """Where the policy comes from."""
    workers: SmallCount = 1
    """Worker processes; the ``gpu`` backend uses one."""
    measurements: tuple[Measurement, ...] = ()
    """What is measured beside success."""

    def __post_init__(self) -> None:
        super().__post_init__()
        get_variation(self.variation)
        if self.cluster is not None and (self.backend != "cpu" or self.policy.device != "cpu"):
            raise UserError("a cluster's nodes simulate and act on their CPUs: leave --backend and --device out")
        if self.run_to_end and self.after_success:
            raise UserError("--run-to-end goes on until the step limit: leave --after-success out")
        if self.state_seed is not None:
            check_seeds(self.state_seed, self.states)
        elif self.states > ALL_STATES:
            raise UserError(
                f"states is {self.states}; the protocol has {PROTOCOL_STATES}, and {ALL_STATES} with its further ones: "
                "give a state seed for others"
            )

    def spec(self, task: str) -> TaskSpec:
        """A task of the run, by its reference, as the policy is rolled out in it."""
        spec = self.policy.task(resolve_task(task))
        return spec if self.max_steps is None else replace(spec, max_steps=self.max_steps)

    @property
    def num_envs(self) -> int:
        """Environments simulated at once."""
        return 1 if self.backend == "cpu" else self.states

    @property
    def steps_after_success(self) -> float:
        """Control steps that a rollout goes on after its first success; infinity: until the step limit."""
        return math.inf if self.run_to_end else self.after_success

    @property
    def env_seeds(self) -> range:
        """Environment seeds of the initial states."""
        first = protocol_seeds()[0] if self.state_seed is None else self.state_seed
        return range(first, first + self.states)

    @property
    def is_protocol(self) -> bool:
        """Whether the run is the whole protocol: all of its initial states and policy seeds."""
        return self.is_comparable and self.states == PROTOCOL_STATES and self.policy_seeds == PROTOCOL_POLICY_SEEDS

    @property
    def is_comparable(self) -> bool:
        """Whether each rollout from the protocol's initial states is one of the protocol's."""
        return self.state_seed is None and not self._changes

    @property
    def protocol_label(self) -> str:
        """How far the run follows the protocol, in words for every output."""
        if self.state_seed is not None:
            last = self.state_seed + self.states - 1
            label = f"NOT THE PROTOCOL: initial states from seeds {self.state_seed} to {last}"
        elif (self.states, self.policy_seeds) == (PROTOCOL_STATES, PROTOCOL_POLICY_SEEDS):
            label = "the protocol"
        else:
            seeds = f"{self.policy_seeds} policy seed{'s' * (self.policy_seeds > 1)}"
            if self.states > PROTOCOL_STATES:
                states = (
                    f"the protocol's {PROTOCOL_STATES} initial states and {self.states - PROTOCOL_STATES} further ones"
                )
            else:
                states = f"part of the protocol: {self.states} of {PROTOCOL_STATES} initial states"
            label = f"{states}, {seeds} (the protocol has {PROTOCOL_POLICY_SEEDS})"
        return f"NOT THE PROTOCOL: {', '.join(self._changes)}, {label}" if self._changes else label

    @property
    def _changes(self) -> list[str]:
        """What is not as in the protocol, beside the number of rollouts and the initial states."""
        changes = [] if self.variation == "none" else [get_variation(self.variation).told]
        controller = self.policy.controller
        if controller and any(spec.control_mode != controller[0] for spec in resolve_tasks(self.tasks).values()):
            changes.append(f"control mode {controller[0]}")
        if self.max_steps is not None:
            changes.append(f"{self.max_steps} control steps")
        return changes
