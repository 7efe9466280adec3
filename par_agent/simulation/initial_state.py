"""Where a rollout starts, as the simulator keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class InitialState:
    """Where a rollout starts."""

    index: int
    """Position in its file: 0..24 for the protocol."""
    env_seed: int
    """Environment seed that made the state."""
    env_state: dict[str, dict[str, torch.Tensor]] = field(repr=False)
    """ManiSkill's own state dictionary: ``{"actors": {name: (1, 13)}, "articulations": {name: (1, n)}}``."""
