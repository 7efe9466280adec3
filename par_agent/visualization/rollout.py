"""One rollout with all that is drawn of it: what was imagined at its start and in every plan, and what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from par_agent.evaluation.alignment import AlignmentValues, align, imagined_path
from par_agent.evaluation.records import Record
from par_agent.evaluation.trace import RolloutTracer, Trace
from par_agent.simulation.end_effector import EndEffector
from par_agent.visualization.session import FrameObserver, RolloutSession


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
    frames: dict[int, np.ndarray]
    """What its camera saw, (H, W, 3) uint8, by control step."""
    alignment: AlignmentValues
    """How well what it imagined in every plan agrees with what happened."""
    path: np.ndarray
    """(steps + 1, 3) metres: where the end effector was."""
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
        return int(self.trace.plans[0].actions.shape[1])

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.record["success_once"]:
            return f"success after {self.record['steps_to_success']} steps"
        return f"no success in {self.record['steps']} steps"


def record_rollout(
    session: RolloutSession,
    state: int,
    policy_seed: int,
    *,
    imagine: int = 12,
    every: int = 2,
    on_step: Callable[[int], None] = lambda steps: None,
) -> Rollout:
    """Repeats a rollout of the benchmark and keeps all that is drawn of it.

    Args:
        session: task and policy.
        state: number of the initial state.
        policy_seed: as in the benchmark.
        imagine: chunks imagined at the start.
        every: control steps between two frames that are kept.
        on_step: called after every control step with the number executed.

    Raises:
        UserError: the policy imagines nothing, or there is no such state.
    """
    transforms, encoder = session.policy.transforms, session.policy.checkpoint.encoder
    tracer = RolloutTracer(session.env, session.policy, 1, imagine)
    observer = FrameObserver(session, every, on_step)
    record = session.roll_out(state, policy_seed, [tracer, observer])
    [trace], hand = tracer.traces, EndEffector(session.env)
    return Rollout(
        title=session.title(state, policy_seed),
        instruction=session.instruction,
        record=record,
        trace=trace,
        frames=observer.frames,
        alignment=align(trace, transforms, encoder, hand),
        path=hand.positions(np.array(trace.joints)),
        start_path=imagined_path(trace.plans[0], transforms, hand),
        action_names=_action_names(transforms.relative),
    )


def _action_names(relative: tuple[bool, ...]) -> tuple[str, ...]:
    """Joint targets by number; a single other command beside them is the gripper's."""
    lone = sum(not joint for joint in relative) == 1 and any(relative)
    other = "gripper, −1 to 1" if lone else "command {}"
    return tuple(f"joint {i}, rad" if joint else other.format(i) for i, joint in enumerate(relative, start=1))
