"""What a policy must offer to be rolled out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from par_agent.errors import UserError
from par_agent.tasks import TaskSpec

if TYPE_CHECKING:
    import torch


class Policy(Protocol):
    """Anything that turns observations into actions.

    ``reset`` may have a third parameter, ``instruction``: the variation ``language`` gives it a list of one text per
    environment in place of the task's own. Two optional members are used where they exist. ``needs_frame`` (bool) is
    False while the next ``act()`` only pops a planned action and reads no image, which saves the render. ``check(spec,
    track)`` raises ``UserError`` where the policy expects another camera, image size or controller than the task has
    on the track.
    """

    action_size: int
    """Numbers per action."""

    def reset(self, env_idx: Any = None, seed: int | None = None) -> None:
        """Forgets the episode; all of the policy's own randomness until the next reset follows from ``seed``."""

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        """Actions (num_envs, action_size) float32 for one observation per environment."""


def check_policy(policy: Any, spec: TaskSpec, track: str) -> None:
    """Compares a policy's conventions with the task's."""
    name = type(policy).__name__
    for member in ("reset", "act", "action_size"):
        if not hasattr(policy, member):
            raise UserError(f"policy {name} has no {member!r}; par_agent.policy.interface.Policy says what is needed")
    if policy.action_size != spec.action_size:
        raise UserError(
            f"policy {name} gives actions of {policy.action_size} numbers; task {spec.name} takes {spec.action_size} "
            f"(control mode {spec.control_mode})"
        )
    if hasattr(policy, "check"):
        policy.check(spec, track)
