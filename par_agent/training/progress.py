"""How far a training run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_type_hints

from par_agent.errors import UserError
from par_agent.utils.json_fields import check


@dataclass
class Progress:
    """How far a run is: all that a training state holds beside tensors."""

    step: int = 0
    """Optimiser steps done."""
    batches: int = 0
    """Batches drawn, by all processes together."""
    loss: float | None = None
    """Running mean of the loss, which an exploding one is told by."""
    best: float | None = None
    """Lowest error measured on held-out episodes so far."""
    base: str | None = None
    """Hash of the weights that the run started from, where training states do not hold them."""
    seconds: float = 0.0
    """Time that the steps took."""
    processor_seconds: float = 0.0
    """Processor time that they took in the main process, all of its threads together."""

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Progress:
        """From a training state; one of an older version comes from a run of one batch a step.

        Raises:
            UserError: a value is of another type, or negative.
        """
        known = {name: state[name] for name in get_type_hints(cls) if name in state}
        for name, value in known.items():
            check(name, value, get_type_hints(cls)[name])
            if name not in ("loss", "best", "base") and value < 0:
                raise UserError(f"{name} is {value}; it must be 0 or more")
        return cls(**{"batches": state["step"], **known})
