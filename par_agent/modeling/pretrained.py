"""Folders of ``config.json`` + ``model.safetensors`` for this package's own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from par_agent.modeling.weights import find_weights, load_weights, read_tensors, write_tensors
from par_agent.utils.files import write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save_module(module: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Writes a module's configuration and float32 (or half type) weights, each file atomically, the weights last.

    Raises:
        OSError: the disk is full or not writable.
    """
    write_json(folder / CONFIG, config)
    write_tensors(folder / WEIGHTS, module.state_dict())


def load_module(module: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Fills a module (which may be on the meta device) from a folder of :func:`save_module`.

    Raises:
        UserError: the weights are missing, damaged or do not fit.
    """
    path = find_weights(folder)
    load_weights(module, read_tensors(path), path, dtype)
