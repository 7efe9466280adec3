"""Random numbers that are the same on every device: generators of the CPU draw them, then they are moved.

One seed therefore gives the same noise, order and dropped steps wherever a model runs. All draws of the package go
through this file. ``generator=None`` draws from torch's own generator of the CPU. (Only dropout inside the baselines is
drawn on the device.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from par_agent.utils.device import moved


def seeded_generator(seed: int) -> torch.Generator:
    """A generator that starts from ``seed``."""
    return torch.Generator().manual_seed(seed)


def batch_seed(seed: int, number: int) -> int:
    """The seed of all random numbers of a run's batch ``number``; ``seed`` is the run's."""
    return seed * 1_000_003 + number


def copied_generator(generator: torch.Generator) -> torch.Generator:
    """A generator that goes on like another one, on its own."""
    return torch.Generator().set_state(generator.get_state())


def normal(
    shape: tuple[int, ...] | torch.Size,
    device: torch.device | str,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """N(0, 1) numbers of a shape, on ``device``."""
    return moved(torch.randn(shape, generator=generator, device="cpu", dtype=dtype), device)


def normal_rows(
    shape: tuple[int, ...] | torch.Size, generators: Sequence[torch.Generator], device: torch.device | str
) -> Tensor:
    """N(0, 1) numbers (rows, *shape) on ``device``, every row from its own generator."""
    return moved(torch.stack([normal(shape, "cpu", generator) for generator in generators]), device)


def uniform(
    shape: tuple[int, ...] | torch.Size, device: torch.device | str, generator: torch.Generator | None = None
) -> Tensor:
    """Float32 numbers from 0 to below 1 of a shape, on ``device``."""
    return moved(torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32), device)


def integers(
    low: int,
    high: int,
    shape: tuple[int, ...] | torch.Size,
    device: torch.device | str,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Int64 numbers from ``low`` to below ``high`` of a shape, on ``device``."""
    return moved(torch.randint(low, high, shape, generator=generator, device="cpu"), device)


def permutation(count: int, generator: torch.Generator | None = None) -> Tensor:
    """A random order (count,) int64 of the numbers below ``count``, on the CPU."""
    return torch.randperm(count, generator=generator, device="cpu")


def orders(rows: int, count: int, device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
    """Random orders (rows, count) int64, one a row, on ``device``."""
    return moved(uniform((rows, count), "cpu", generator).argsort(1), device)
