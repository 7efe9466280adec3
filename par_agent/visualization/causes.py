"""Why a rollout failed, proposed by simple rules on the simulator's state.

A rule reads three things of every control step: where the object is, where its goal is, and whether the gripper holds
the object. Letters of shapes: see :mod:`par_agent.modeling`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from par_agent.errors import UserError
from par_agent.evaluation.rollout import RolloutObserver

if TYPE_CHECKING:
    from par_agent.simulation.environment import StepResult, TaskEnvironment

NEVER_MOVED, NEVER_GRASPED = "never moved", "never grasped"
DROPPED, NOT_SETTLED = "dropped", "not settled"
TOO_SLOW, WRONG_PLACE = "too slow", "wrong place"
CAUSES = {
    NEVER_MOVED: "the object was pushed less than 1 cm",
    NEVER_GRASPED: "the gripper never held the object for 5 control steps in a row",
    DROPPED: "the gripper lost the object, which then fell by more than 1 cm",
    NOT_SETTLED: "the object ended within the tolerance of its goal, but was still held or moving",
    TOO_SLOW: "the object came more than 1 cm closer to its goal in the last 40 control steps",
    WRONG_PLACE: "the object ended away from its goal, and no other rule holds",
}
"""Every cause with its rule; the first that holds is proposed."""

_HELD_STEPS, _LAST_STEPS, _NEAR = 5, 40, 0.01
"""Control steps of a grasp, of the end of a rollout, and metres that count as a movement."""


@dataclass(frozen=True)
class Goal:
    """What has to get where; names are those of the environment's actors."""

    moved: str
    """The object."""
    target: str
    """What it has to get to."""
    tolerance: float
    """Distance that counts as there, metres."""
    above: float = 0.0
    """Height of the goal over the target's centre, metres."""
    flat: bool = False
    """Whether height does not count."""
    grasped: bool = True
    """Whether the task asks for a grasp."""


GOALS = {
    "PushCube": Goal("cube", "goal_region", 0.1, flat=True, grasped=False),
    "PickCube": Goal("cube", "goal_site", 0.025),
    "StackCube": Goal("cubeA", "cubeB", 0.033, above=0.04),
}
"""Tasks with rules."""


def find_goal(task: str) -> Goal:
    """What a task asks for; raises UserError where there are no rules for it."""
    if task not in GOALS:
        raise UserError(f"there are no rules for why {task} fails; tasks with rules: {', '.join(GOALS)}")
    return GOALS[task]


@dataclass(frozen=True)
class ObjectTrace:
    """What the rules read."""

    positions: np.ndarray
    """(E + 1, 3) metres: the object, first at the start."""
    goals: np.ndarray
    """(E + 1, 3) metres: where it should be."""
    held: np.ndarray
    """(E + 1,) bool: whether the gripper holds it."""

    def distances(self, goal: Goal) -> np.ndarray:
        """(E + 1,) metres from the object to its goal."""
        axes = 2 if goal.flat else 3
        return np.linalg.norm((self.positions - self.goals)[:, :axes], axis=1)


class ObjectTracer(RolloutObserver):
    """Follows a task's object in rollouts of one environment."""

    def __init__(self, env: TaskEnvironment) -> None:
        self._env, self._goal = env, find_goal(env.spec.name)
        self._rows: list[tuple[np.ndarray, np.ndarray, bool]] = []

    @property
    def trace(self) -> ObjectTrace:
        """What was seen so far."""
        positions, goals, held = zip(*self._rows, strict=True)
        return ObjectTrace(np.array(positions), np.array(goals), np.array(held))

    def after_step(self, actions: torch.Tensor, result: StepResult) -> None:
        self.after_reset()

    def after_reset(self) -> None:
        base = self._env.simulation
        moved, target = (base.scene.actors[name] for name in (self._goal.moved, self._goal.target))
        position, goal = (actor.pose.p[0].cpu().numpy().copy() for actor in (moved, target))
        goal[2] += self._goal.above
        self._rows.append((position, goal, bool(base.agent.is_grasping(moved)[0])))


def propose_cause(trace: ObjectTrace, goal: Goal) -> str:
    """The cause of a failure, one of :data:`CAUSES`."""
    distances, held = trace.distances(goal), trace.held
    longest = max((len(list(run)) for value, run in groupby(held) if value), default=0)
    if not goal.grasped:
        if np.linalg.norm(trace.positions - trace.positions[0], axis=1).max() < _NEAR:
            return NEVER_MOVED
    elif longest < _HELD_STEPS:
        return NEVER_GRASPED
    elif not held[-1] and distances[-1] > goal.tolerance:
        height = trace.positions[:, 2]
        if height[np.flatnonzero(held)[-1]] - height[-1] > _NEAR:
            return DROPPED
    if distances[-1] <= goal.tolerance:
        return NOT_SETTLED
    if distances[max(len(distances) - 1 - _LAST_STEPS, 0)] - distances[-1] > _NEAR:
        return TOO_SLOW
    return WRONG_PLACE
