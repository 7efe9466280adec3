"""One rollout with all that is drawn of it: what was imagined at its start and at every look, and what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from par_agent.evaluation.alignment import Alignment, imagined_path, measure
from par_agent.evaluation.policies import PolicySource, resolve_task
from par_agent.evaluation.records import Record
from par_agent.evaluation.rollout import RolloutObserver
from par_agent.evaluation.trace import RolloutTracer, Trace
from par_agent.simulation.end_effector import EndEffector
from par_agent.visualization.stage import Film, Stage


@dataclass(frozen=True)
class Rollout:
    """One rollout, as it is drawn."""

    title: str
    """Task, initial state and policy seed."""
    instruction: str
    """What the policy was told."""
    record: Record
    """How it ended."""
    trace: Trace
    """What the policy saw, imagined and did."""
    images: dict[int, np.ndarray]
    """What its camera saw, (H, W, 3) uint8, by control step."""
    alignment: Alignment
    """How well what it imagined at every look agrees with what happened."""
    path: np.ndarray
    """(T + 1, 3) metres: where the end effector was, T control steps."""
    start_path: np.ndarray
    """(K, L, 3) metres: where it would have been as imagined at the start."""
    action_names: tuple[str, ...]
    """(A,) with units."""

    @property
    def steps(self) -> int:
        """Control steps executed."""
        return len(self.trace.actions)

    @property
    def chunk_length(self) -> int:
        """Actions per chunk."""
        return int(self.trace.looks[0].actions.shape[1])

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.record["success_once"]:
            return f"success after {self.record['steps_to_success']} steps"
        return f"no success in {self.record['steps']} steps"


def perform(
    task: str,
    source: PolicySource,
    state: int,
    policy_seed: int,
    *,
    imagine: int = 12,
    every: int = 2,
    track: str = "paper",
    states_file: Path | None = None,
    observe: Callable[[Stage], list[RolloutObserver]] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Rollout:
    """Rolls a policy out once and keeps all that is drawn of it.

    Args:
        task: by name, or ``module:NAME``.
        source: where the policy comes from.
        state: number of the initial state.
        policy_seed: as in the benchmark, whose rollout this repeats.
        imagine: chunks imagined at the start.
        every: control steps between two images of the film.
        track: ``paper`` or ``native``.
        states_file: initial states; None: the protocol's.
        observe: makes further observers.
        on_step: called after every control step.

    Raises:
        UserError: the policy imagines nothing or does not fit, or there is no such task or state.
    """
    spec = resolve_task(task)
    with Stage(spec, source, track, states_file) as stage:
        tracer = RolloutTracer(stage.env, stage.policy, 1, imagine)
        film = Film(stage.env, stage.policy.transforms, every, on_step)
        others = [] if observe is None else observe(stage)
        record = stage.roll_out(state, policy_seed, [tracer, film, *others])
        [trace], transforms = tracer.traces, stage.policy.transforms
        hand = EndEffector(stage.env)
        return Rollout(
            title=f"{spec.name}, state {state}, policy seed {policy_seed}",
            instruction=stage.instruction,
            record=record,
            trace=trace,
            images=film.images,
            alignment=measure(trace, transforms, stage.policy.checkpoint.encoder, hand),
            path=hand.positions(np.array(trace.joints)),
            start_path=imagined_path(trace.looks[0], transforms, hand),
            action_names=_action_names(transforms.relative),
        )


def _action_names(relative: tuple[bool, ...]) -> tuple[str, ...]:
    """Joint targets by number; a single other command beside them is the gripper's."""
    lone = sum(not joint for joint in relative) == 1 and any(relative)
    other = "gripper, −1 to 1" if lone else "command {}"
    return tuple(f"joint {i}, rad" if joint else other.format(i) for i, joint in enumerate(relative, start=1))
