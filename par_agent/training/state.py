"""Training states: one folder a step, complete or absent, safetensors and JSON only.

A UserError names one that cannot be written, is damaged, or is of another model; older ones are untouched.

::

    training_states/step_00001200/
      model.safetensors  ema.safetensors     weights; only the trained ones where others are frozen
      optimizer.safetensors                  AdamW's moments, by parameter name
      state.json                             step and what else the loop needs

Tensors that FSDP shards over processes are written whole, so that any number of processes can go on with them.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import torch
from torch import Tensor, nn

from par_agent.errors import UserError
from par_agent.modeling.weights import read_tensors, tensor_faults, write_tensors
from par_agent.utils.files import read_object, remedy, write_json
from par_agent.utils.interrupts import Interrupted, Interrupts, deferred_interrupts


@dataclass
class Progress:
    """How far a run is: the part of a training state that is no tensor."""

    step: int = 0
    """Optimiser steps done."""
    batches: int = 0
    """Batches drawn, by all processes together."""
    loss: float | None = None
    """Running mean of the loss; a loss far above it counts as exploding."""
    best: float | None = None
    """Lowest error measured on held-out episodes so far."""
    base: str | None = None
    """Hash of the weights that the run started from, where training states do not hold them."""
    seconds: float = 0.0
    """Time that the steps took."""
    processor_seconds: float = 0.0
    """Processor time that they took in the main process, all of its threads together."""


class _State(TypedDict):
    """What state.json holds at least."""

    step: int


def save_training_state(
    folder: Path,
    step: int,
    weights: Mapping[str, Mapping[str, Tensor]],
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
    write: bool = True,
) -> Path:
    """Writes ``folder/step_XXXXXXXX`` under its final name only when it is complete, then removes all but the newest
    ``keep``.

    ``weights`` maps names of files to tensors by name; ``optimizer`` is AdamW over parameters of ``module``; ``state``
    is anything else, as JSON. Sharded tensors are gathered, so every process has to call this, all but the main one
    with ``write=False``.
    """
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    files = {name: _gathered(tensors, write) for name, tensors in weights.items()}
    files["optimizer"] = _moments(module, optimizer, whole=True)
    if not write:
        return final
    try:
        for leftover in folder.glob(".step_*.tmp"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True, exist_ok=True)
        for name, tensors in files.items():
            write_tensors(temporary / f"{name}.safetensors", tensors)
        write_json(temporary / "state.json", {"step": step, **state})
        if final.exists():
            _remove(final)
        os.replace(temporary, final)
    except OSError as error:
        raise UserError(
            f"cannot write the training state {final} ({error}); {remedy(error)}, then run the same command to go on "
            "from the one before"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in sorted(folder.glob("step_*"))[:-keep]:
        _remove(old)
    return final


def _remove(state: Path) -> None:
    """Deletes a training state; killed in the middle, it does not leave half of one under its final name."""
    hidden = state.with_name(f".{state.name}.old.tmp")
    os.replace(state, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def latest_training_state(folder: Path) -> Path | None:
    """The newest complete training state of a run; None before the first."""
    found = sorted(folder.glob("step_*"))
    return found[-1] if found else None


def check_steps(run: Path, done: int, steps: int) -> None:
    """Refuses to go on with a run that has done more steps than it is to do."""
    if done > steps:
        raise UserError(f"{run} has done {done} steps; --steps {steps} is fewer: give more, or choose another --out")


class SaveClock:
    """Says when the next training state is due, and whether the process was told to end."""

    def __init__(self, interrupts: Interrupts, minutes: float) -> None:
        self._interrupts, self._seconds, self._saved = interrupts, 60 * minutes, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last training state is older than it may be."""
        return time.monotonic() - self._saved > self._seconds

    @property
    def told(self) -> bool:
        """Whether this process was told to end."""
        return self._interrupts.received is not None

    def restart(self) -> None:
        """A training state has been saved."""
        self._saved = time.monotonic()

    def end(self) -> NoReturn:
        """Raises :class:`Interrupted`; where only another process was told to end, as if by SIGTERM."""
        raise Interrupted(self._interrupts.received or signal.SIGTERM)


@contextlib.contextmanager
def interruptible(folder: Path, minutes: float) -> Iterator[SaveClock]:
    """Lets training finish the step in hand when the process is told to end; :meth:`SaveClock.end` ends the block.

    The clock says when ``minutes`` have passed since the last training state in ``folder``.
    """
    with deferred_interrupts() as interrupts:
        try:
            yield SaveClock(interrupts, minutes)
        except Interrupted as interruption:
            kept = "no step is saved yet: the same command begins anew"
            if (found := latest_training_state(folder)) is not None:
                step = int(found.name.removeprefix("step_"))
                kept = f"the first {step} steps are saved, and the same command goes on from there"
            raise Interrupted(interruption.number, kept) from None


def load_training_state(
    path: Path, weights: Mapping[str, Mapping[str, Tensor]], module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restores what :func:`save_training_state` wrote, in place; returns the state with its ``step``."""
    own = {**weights, "optimizer": _moments(module, optimizer)}
    try:
        state: dict[str, Any] = {**read_object(path / "state.json", _State)}
        found = {file: read_tensors(path / f"{file}.safetensors") for file in own}
        for file, tensors in found.items():
            if faults := tensor_faults(tensors, own[file], exact=True):
                raise UserError(f"{file}.safetensors does not fit the run:\n{faults}")
        moments = found["optimizer"].items()
        if wrong := [name for name, value in moments if not name.endswith("exp_avg") and (value < 0).any()]:
            raise UserError(f"optimizer.safetensors holds negative numbers in {', '.join(wrong)}")
        _check_state(state, path)
    except UserError as error:
        raise UserError(
            f"cannot resume from {path} ({error}); delete that folder to go on from the one before, or choose "
            "another --out"
        ) from None
    with torch.no_grad():
        for file, tensors in found.items():
            for name, value in tensors.items():
                own[file][name].copy_(_sharded_like(value, own[file][name]))
    return state


def _check_state(state: dict[str, Any], path: Path) -> None:
    """Checks the ranges of a training state's numbers."""
    if path.name != f"step_{state['step']:08d}":
        raise UserError(f"its state is of step {state['step']}")
    for name, value in state.items():
        if isinstance(value, float | int) and not math.isfinite(value):
            raise UserError(f"{name} in state.json is {value}")
        if name != "best" and isinstance(value, float | int) and value < 0:
            raise UserError(f"{name} in state.json is {value}; it must be 0 or more")


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor, gathered where FSDP has sharded it (a DTensor): then every process has to call this."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def _sharded_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as a process holds it: its own shard where ``like`` is sharded."""
    value = value.to(like.device)
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value, like.device_mesh, like.placements)


def _gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU; gathered, then dropped unless ``keep``."""
    gathered = ((name, full_tensor(value.detach())) for name, value in tensors.items())
    return {name: value.cpu() for name, value in gathered if keep}


def _moments(module: nn.Module, optimizer: torch.optim.Optimizer, whole: bool = False) -> dict[str, Tensor]:
    """AdamW's moments by parameter name; zeros, as AdamW begins with, where a parameter has had no gradient yet.

    They are the optimiser's own tensors, or ``whole``: gathered on the main process's CPU, where others get none.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict  # slow to import

    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if parameter not in optimizer.state:  # left to torch, a fresh optimiser would begin with 1 step counted
            zeros = {kind: torch.zeros_like(parameter) for kind in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros(()), **zeros}
    options = StateDictOptions(full_state_dict=whole, cpu_offload=whole)
    found: Any = get_optimizer_state_dict(module, optimizer, options=options)
    return {f"{name}.{kind}": value for name, kinds in found.get("state", {}).items() for kind, value in kinds.items()}
