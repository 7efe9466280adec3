"""Where the reference tensors of NOVA and its VAE lie, and how a folder of them is damaged on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parent / "fixtures" / "nova"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def reference(stem: str) -> dict[str, torch.Tensor]:
    """All `in.*` and `out.*` tensors of one reference file."""
    return load_file(ROOT / f"{stem}.safetensors")


def full_keys() -> dict[str, Any]:
    """Keys, shapes and counts of the full-size models."""
    return json.loads((ROOT / "full_keys.json").read_text())


def damaged(
    source: Path,
    target: Path,
    config: Callable[[dict[str, Any]], Any] | None = None,
    weights: Callable[[dict[str, torch.Tensor]], Any] | None = None,
) -> Path:
    """Copies a model folder and changes its configuration or weights in place."""
    shutil.copytree(source, target)
    if config is not None:
        content = json.loads((target / "config.json").read_text())
        config(content)
        (target / "config.json").write_text(json.dumps(content))
    if weights is not None:
        tensors = load_file(target / WEIGHTS)
        weights(tensors)
        save_file(tensors, target / WEIGHTS)
    return target
