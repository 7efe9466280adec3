"""Reference tensors of NOVA and of its VAE, recomputed stage by stage (for `par-agent check-nova`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Stages = dict[str, Callable[[], dict[str, Tensor]]]
"""What computes the outputs whose names begin with a stage's name, by the rest of their names."""


@torch.inference_mode()
def compute(stages: Stages, names: Collection[str]) -> dict[str, Tensor | Exception]:
    """Outputs by name of the stages that give some of ``names``; one that fails has its exception in their place."""
    results: dict[str, Tensor | Exception] = {}
    for stage, run in stages.items():
        wanted = [name for name in names if f"{name}.".startswith(f"{stage}.")]
        try:
            outputs = run() if wanted else {}
            results |= {f"{stage}.{name}" if name else stage: value for name, value in outputs.items()}
        except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, StopIteration) as error:
            results |= dict.fromkeys(wanted, error)
    return results


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Yields a dictionary that collects the output of each named module while the block runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
