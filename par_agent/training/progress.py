"""How far a training run is."""

from __future__ import annotations

from dataclasses import dataclass


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
