"""What a policy saw, imagined and did in a rollout, kept while it goes on.

Letters: B environments, K chunks imagined, L actions a chunk, A numbers per action, P joint positions, H x W pixels a
frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from par_agent.errors import UserError

if TYPE_CHECKING:
    import torch

    from par_agent.policy.par_policy import PARPolicy
    from par_agent.simulation.environment import StepResult, TaskEnvironment


@dataclass(frozen=True)
class Look:
    """One frame that the policy read, and what it imagined from there."""

    step: int
    """Control steps executed before."""
    frame: np.ndarray
    """(H, W, 3) uint8, cropped and resized as the model sees it."""
    joints: np.ndarray
    """(P,) float32 joint positions read with it, radians."""
    frames: np.ndarray
    """(K, H, W, 3) uint8 imagined frames; frame ``k`` is that after ``k + 1`` chunks."""
    actions: np.ndarray
    """(K, L, A) float32 imagined chunks in the controller's units; chunk ``k`` leads to frame ``k``."""


@dataclass
class Trace:
    """One rollout."""

    looks: list[Look] = field(default_factory=list)
    """The policy's looks, in order."""
    actions: list[np.ndarray] = field(default_factory=list)
    """(A,) float32 executed action of every control step, in the controller's units."""
    joints: list[np.ndarray] = field(default_factory=list)
    """(P,) float32 joint positions, radians: the initial ones, then those after every control step."""


def check_imagines(policy: Any) -> None:
    """Checks that a policy can imagine.

    Raises:
        UserError: it is no PAR policy, or one without the frame path.
    """
    checkpoint = getattr(policy, "checkpoint", None)
    if checkpoint is None or not hasattr(policy, "imagine"):
        raise UserError(
            f"policy {type(policy).__name__} imagines no frames; what compares imagined with executed needs a PAR "
            "checkpoint"
        )
    if not checkpoint.model.config.imagination:
        raise UserError(
            f"{checkpoint.model.config.name} predicts no frames: it was built without its frame path (imagination)"
        )


class RolloutTracer:
    """Traces the rollouts of some environments that are stepped together; an observer of
    :func:`par_agent.evaluation.rollout.roll_out`.

    Args:
        env: the environments.
        policy: a PAR policy with a frame path.
        chunks: how far ahead to imagine at every look (K), at least 1.
        chunks_at_start: the same for the first look; None: as at all others.
        summary: makes an ended rollout's further fields of its record out of its position and its trace.

    Raises:
        UserError: the policy cannot imagine.
    """

    def __init__(
        self,
        env: TaskEnvironment,
        policy: PARPolicy,
        chunks: int = 1,
        chunks_at_start: int | None = None,
        summary: Callable[[int, Trace], dict[str, Any]] | None = None,
    ) -> None:
        check_imagines(policy)
        self._env, self._policy, self._summary = env, policy, summary
        self._chunks, self._chunks_at_start = chunks, chunks_at_start or chunks
        self.traces = [Trace() for _ in range(env.num_envs)]
        """(B) one per environment."""

    def looking(self, observation: dict[str, Any]) -> None:
        first = not self.traces[0].looks
        camera = self._policy.transforms.camera
        seen = self._policy.transforms.frames(observation["sensor_data"][camera]["rgb"]).cpu().numpy()
        self._policy.plan(observation)
        imagined = self._policy.imagine(self._chunks_at_start if first else self._chunks)
        frames, actions = imagined.frames.cpu().numpy(), imagined.actions.cpu().numpy()
        joints = self._joints()
        for row, trace in enumerate(self.traces):
            trace.looks.append(Look(len(trace.actions), seen[row], joints[row], frames[row], actions[row]))
            if first:
                trace.joints.append(joints[row])

    def stepped(self, actions: torch.Tensor, result: StepResult) -> None:
        joints = self._joints()
        for row, trace in enumerate(self.traces):
            trace.actions.append(actions[row].numpy().copy())
            trace.joints.append(joints[row])

    def fields(self, position: int) -> dict[str, Any]:
        return {} if self._summary is None else self._summary(position, self.traces[position])

    def _joints(self) -> np.ndarray:
        """(B, P) float32 joint positions now."""
        joints: np.ndarray = self._env.simulation.agent.robot.get_qpos().cpu().numpy().copy()
        return joints
