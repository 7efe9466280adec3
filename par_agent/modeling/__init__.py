"""The model: tokenizers, causal transformer and de-tokenizers, one file a box of the paper's Figure 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from par_agent.modeling.par import PARModel

__all__ = ["PARModel"]


def __getattr__(name: str) -> Any:
    if name == "PARModel":
        from par_agent.modeling.par import PARModel

        return PARModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
