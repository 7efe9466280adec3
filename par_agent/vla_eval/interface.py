"""What an action and an observation are, in vla-eval's words; it compares both ends and names what does not fit."""

from __future__ import annotations

from par_agent.vla_eval import MISSING

try:
    from vla_eval.specs import IMAGE_RGB, LANGUAGE, DimSpec
except ImportError as error:
    raise ImportError(MISSING.format(error)) from error


def action_interface(size: int, control_mode: str, description: str = "") -> dict[str, DimSpec]:
    """Actions of `size` numbers for a ManiSkill controller; a server that declares none of its own is accepted."""
    accepted = frozenset({control_mode, "raw"})
    return {"actions": DimSpec("actions", size, control_mode, accepts=accepted, description=description)}


def observation_interface(joints: int) -> dict[str, DimSpec]:
    """Images, joint positions and the instruction."""
    return {"image": IMAGE_RGB, "state": DimSpec("state", joints, "joint_positions"), "language": LANGUAGE}
