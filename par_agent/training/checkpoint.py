"""Training checkpoints: one folder a step, complete or absent, safetensors and JSON only.

::

    checkpoints/step_00001200/
      model.safetensors  ema.safetensors     weights
      optimizer.safetensors                  AdamW's moments, by parameter number
      state.json                             step and what else the loop needs
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from par_agent.errors import UserError
from par_agent.files import read_json, write_json


def save_checkpoint(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Writes ``folder/step_XXXXXXXX`` under its final name only when it is complete, then removes old ones.

    Args:
        folder: the run's ``checkpoints`` folder.
        step: optimiser steps done.
        modules: name -> module whose weights to keep.
        optimizer: AdamW.
        state: anything else, as JSON.
        keep: how many of the newest checkpoints stay.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are untouched.
    """
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    try:
        for leftover in folder.glob(".step_*.tmp"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True, exist_ok=True)
        for name, module in modules.items():
            save_file(_contiguous(module.state_dict()), temporary / f"{name}.safetensors")
        save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", {"step": step, **state})
        if final.exists():
            _remove(final)
        os.replace(temporary, final)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the checkpoint {final} ({error}); free some space, then run the same command to go on from "
            "the one before"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in sorted(folder.glob("step_*"))[:-keep]:
        _remove(old)
    return final


def _remove(checkpoint: Path) -> None:
    """Deletes a checkpoint; killed in the middle, it does not leave half of one under its final name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old.tmp")
    os.replace(checkpoint, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; None before the first."""
    found = sorted(folder.glob("step_*"))
    return found[-1] if found else None


def load_checkpoint(path: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores what :func:`save_checkpoint` wrote; returns the state with its ``step``.

    Raises:
        UserError: the checkpoint is damaged or belongs to another model.
    """
    try:
        for name, module in modules.items():
            module.load_state_dict(load_file(path / f"{name}.safetensors"))
        _restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"))
        state: dict[str, Any] = read_json(path / "state.json")
    except (OSError, SafetensorError, RuntimeError, LookupError, UserError) as error:
        raise UserError(
            f"cannot resume from {path} ({error}); delete that folder to go on from the one before, or choose "
            "another --out"
        ) from None
    return state


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{number}.{name}"] = torch.as_tensor(value)
    return _contiguous(tensors)


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        restored = value if name == "step" else value.to(parameter).contiguous(memory_format=_layout(parameter))
        optimizer.state[parameter][name] = restored


def _layout(parameter: Tensor) -> torch.memory_format:
    channels_last = parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not parameter.is_contiguous() else torch.contiguous_format
