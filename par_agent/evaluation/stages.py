"""How far rollouts come: the stages of a task, by ManiSkill's own evaluation and by where the object is.

A stage counts from the control step at which it holds for the first time; it need not hold at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from par_agent.evaluation.rollout import RolloutObserver

if TYPE_CHECKING:
    import torch

    from par_agent.simulation.environment import StepResult, TaskEnvironment

STAGES = ("reached", "grasped", "lifted", "placed")
"""Fields of records. reached: the object's centre was within 5 cm of the tool centre point. grasped: the gripper held
the object. lifted: it held the object more than 1 cm above where that began. placed: the object was where it should
be."""
REACHED, LIFTED = 0.05, 0.01
"""Metres."""


@dataclass(frozen=True)
class StageRules:
    """Where a task's stages are read."""

    moved: str
    """Name of the actor that has to get somewhere."""
    placed: str
    """What ManiSkill's evaluation calls its being there."""
    grasped: str | None = None
    """What ManiSkill's evaluation calls its being held; None: the task needs no grasp."""


RULES = {
    "PushCube": StageRules("cube", "success"),
    "PullCube": StageRules("cube", "success"),
    "PickCube": StageRules("cube", "is_obj_placed", "is_grasped"),
    "PickCubeSO100": StageRules("cube", "is_obj_placed", "is_grasped"),
    "StackCube": StageRules("cubeA", "is_cubeA_on_cubeB", "is_cubeA_grasped"),
    "PlaceSphere": StageRules("sphere", "is_obj_on_bin", "is_obj_grasped"),
}
"""Tasks with stages: those that move one object and whose evaluation tells of it."""


class StageObserver(RolloutObserver):
    """Adds the stages to the records of a task that has them."""

    def __init__(self, env: TaskEnvironment) -> None:
        self._env, self._rules = env, RULES.get(env.spec.name)
        self._object: Any = None
        self.holds: dict[str, torch.Tensor] = {}
        """(B) bool by stage: whether it holds after the last step. Empty before the first one and without stages."""
        self.came: dict[str, torch.Tensor] = {}
        """(B) bool by stage: whether it held after any step so far."""

    def after_reset(self) -> None:
        self.holds, self.came = {}, {}
        if self._rules is not None:
            self._object = self._env.simulation.scene.actors[self._rules.moved]
            self._heights = self._object.pose.p[:, 2].clone()

    def after_step(self, actions: torch.Tensor, result: StepResult) -> None:
        if self._rules is None:
            return
        position, info = self._object.pose.p, self._env.info
        holds = {"reached": (position - self._env.simulation.agent.tcp_pos).norm(dim=1) < REACHED}
        if self._rules.grasped is not None:
            held = info[self._rules.grasped]
            holds |= {"grasped": held, "lifted": held & (position[:, 2] > self._heights + LIFTED)}
        holds["placed"] = info[self._rules.placed]
        self.holds = holds
        self.came = {stage: held | self.came.get(stage, False) for stage, held in holds.items()}

    def record_fields(self, position: int) -> dict[str, Any]:
        return {stage: bool(came[position]) for stage, came in self.came.items()}
