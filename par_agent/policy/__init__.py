"""The policy: observations become tokens, tokens become chunks of actions; and the checkpoint folder that keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from par_agent.policy.par_policy import PARPolicy

__all__ = ["PARPolicy"]


def __getattr__(name: str) -> Any:
    if name == "PARPolicy":
        from par_agent.policy.par_policy import PARPolicy

        return PARPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
