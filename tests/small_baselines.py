"""Baselines small enough to be trained within a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from par_agent.baselines.config import BaselineConfig
from par_agent.modeling.vae.frame_encoder import save_frame_encoder
from par_agent.utils.checked import from_options
from tiny import LENGTH, tiny_checkpoint, tiny_dataset

SMALL = ("width=32", "heads=2", "patch=4", "stem_widths=[8,16]", f"chunk_length={LENGTH}")
SIZES = {
    "act": ("horizon=8", "style_layers=1", "encoder_layers=1", "decoder_layers=1", "style_size=4", "dropout=0.0"),
    "bc-t": ("horizon=4", "layers=1", "patch_width=8", "components=2"),
    "dp": ("horizon=8", "layers=2", "train_steps=20", "sampling_steps=5"),
    "icrt": ("horizon=8", "layers=1", "steps=8"),
    "rdt": ("horizon=8", "layers=2", "train_steps=50"),
}


def run(folder: Path, method: str, episodes: int = 21, alike: bool = False, **options: Any) -> BaselineConfig:
    """A training run of a few steps on random episodes, in ``folder / "run"``."""
    save_frame_encoder(tiny_checkpoint().encoder, folder / "vae")
    data = tiny_dataset(folder / "data", episodes=episodes, alike=alike)
    defaults = {
        "out": folder / "run",
        "data": (data,),
        "vae": folder / "vae",
        "method": method,
        "model": SMALL + SIZES[method],
        "steps": 6,
        "batch_size": 8,
        "window": 2,
        "warmup": 2,
        "variants": 2,
        "shift": 1,
        "validate_every": 3,
        "save_minutes": 0.0,
    }
    return from_options(BaselineConfig, {**defaults, **options})
