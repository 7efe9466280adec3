"""What a policy saw, imagined and did in a rollout, kept while it goes on.

Letters of shapes: see :mod:`par_agent.modeling`; N physical steps are imagined.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from par_agent.errors import UserError
from par_agent.evaluation.rollout import RolloutObserver
from par_agent.policy.observations import read_frames as observed_frames

if TYPE_CHECKING:
    import torch

    from par_agent.policy.par_policy import PARPolicy
    from par_agent.simulation.environment import StepResult, TaskEnvironment


@dataclass(frozen=True)
class Plan:
    """What a policy imagined from one frame that it read."""

    step: int
    """Control steps executed before."""
    frame: np.ndarray
    """(H, W, 3) uint8 frame read, cropped and resized as the model sees it."""
    joints: np.ndarray
    """(P,) float32 joint positions read with it, radians."""
    frames: np.ndarray
    """(N, H, W, 3) uint8 imagined frames; frame ``k`` is that after ``k + 1`` chunks."""
    actions: np.ndarray
    """(N, L, A) float32 imagined chunks in the controller's units; chunk ``k`` leads to frame ``k``."""


@dataclass
class Trace:
    """One rollout."""

    plans: list[Plan] = field(default_factory=list)
    """In order."""
    actions: list[np.ndarray] = field(default_factory=list)
    """(A,) float32 executed action of every control step, in the controller's units."""
    joints: list[np.ndarray] = field(default_factory=list)
    """(P,) float32 joint positions, radians: the initial ones, then those after every control step."""


def read_frames(policy: PARPolicy, observation: dict[str, Any]) -> np.ndarray:
    """The frames (B, H, W, 3) uint8 of an observation, cropped and resized as the policy's model sees them; several
    cameras side by side."""
    frames = observed_frames(observation, policy.transforms, len(observation["agent"]["qpos"]))
    return np.asarray(frames.cpu())


class RolloutTracer(RolloutObserver):
    """Traces rollouts that are stepped together; raises UserError for a policy that imagines nothing.

    Every plan imagines ``chunks`` ahead (at least 1), the first one ``chunks_at_start`` (None: as many).
    """

    def __init__(
        self, env: TaskEnvironment, policy: PARPolicy, chunks: int = 1, chunks_at_start: int | None = None
    ) -> None:
        if getattr(policy, "checkpoint", None) is None or not hasattr(policy, "imagine"):
            raise UserError(f"policy {type(policy).__name__} imagines no frames; give a PAR checkpoint")
        if not (config := policy.checkpoint.model.config).imagination:
            raise UserError(f"{config.name} predicts no frames: it was built without its frame path (imagination)")
        self.env, self.policy = env, policy
        self._chunks, self._chunks_at_start = chunks, chunks_at_start or chunks
        self.traces = [Trace() for _ in range(env.num_envs)]
        """(B) one per environment."""

    def before_plan(self, observation: dict[str, Any]) -> None:
        first = not self.traces[0].plans
        read = read_frames(self.policy, observation)
        self.policy.plan(observation)
        imagined = self.policy.imagine(self._chunks_at_start if first else self._chunks)
        frames, actions = imagined.frames.cpu().numpy(), imagined.actions.cpu().numpy()
        for row, (trace, joints) in enumerate(zip(self.traces, self._joints(), strict=True)):
            trace.plans.append(Plan(len(trace.actions), read[row], joints, frames[row], actions[row]))
            if first:
                trace.joints.append(joints)

    def after_step(self, actions: torch.Tensor, result: StepResult) -> None:
        for trace, action, joints in zip(self.traces, actions.numpy().copy(), self._joints(), strict=True):
            trace.actions.append(action)
            trace.joints.append(joints)

    def _joints(self) -> np.ndarray:
        """(B, P) float32 joint positions now."""
        joints: np.ndarray = self.env.simulation.agent.robot.get_qpos().cpu().numpy().copy()
        return joints
