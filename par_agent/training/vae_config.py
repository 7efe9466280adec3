"""Options of `par-agent train-vae`."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from par_agent.errors import UserError
from par_agent.modeling.vae.frame_vae import FrameVAEConfig
from par_agent.training.config import claimed_run
from par_agent.utils.checked import Checked, Count, Minutes, NonNegative, Pixels, Range, Seed, Size, Strength
from par_agent.utils.device import usable_device


@dataclass(frozen=True)
class VAETraining(Checked):
    """Trains a frame VAE on rendered datasets; run the same command again to resume."""

    data: tuple[Path, ...]
    """Rendered datasets, with or without actions."""
    out: Path
    """Folder of the run; the trained VAE is written to its `vae` folder."""
    camera: str | tuple[str, ...] = "render_camera"
    """Camera whose frames to train on, or several that a policy is to read."""
    steps: Count = 1500
    """Optimiser steps; a finished run goes on when this is raised."""
    batch_size: Size = 32
    """Patches per step."""
    patch: Pixels = 160
    """Side of the square patches in pixels."""
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 2e-3
    """Peak learning rate of AdamW."""
    warmup: NonNegative = 50
    """Steps of linear warm-up."""
    kl_weight: Strength = 1e-4
    """Weight of the KL divergence."""
    seed: Seed = 0
    """Random seed of initial weights, data order and noise."""
    save_minutes: Minutes = 2.0
    """Minutes between saved training states."""
    device: str = "cpu"
    """cpu or cuda."""
    model: FrameVAEConfig = field(default_factory=FrameVAEConfig)
    """Sizes of the VAE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch % self.model.stride:
            raise UserError(f"patch is {self.patch}; it must be a multiple of the VAE's stride, {self.model.stride}")
        usable_device(self.device)

    def claimed(self) -> AbstractContextManager[None]:
        """While the block runs, ``out`` is this process's folder and holds these options."""
        return claimed_run(
            self.out, "train_vae.json", dataclasses.asdict(self), ("out", "save_minutes", "device", "steps")
        )
