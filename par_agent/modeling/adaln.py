"""Layers that diffusion time modulates (adaLN; Peebles & Xie 2023), in de-tokenizers and diffusion baselines."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_FREQUENCIES = 128
NORM_EPS = 1e-6


def timestep_frequencies(time: Tensor) -> Tensor:
    """``[cos(t f), sin(t f)]`` (..., 256) float32 of diffusion times (...); cosines first, unlike positions."""
    exponent = -math.log(10000.0) * torch.arange(TIME_FREQUENCIES, device=time.device, dtype=torch.float32)
    # Angles reach 1000 radians, where one bit of a frequency shows: round the exponential as well as float32 can.
    angles = time.float()[..., None] * (exponent / TIME_FREQUENCIES).double().exp().float()
    return torch.cat([angles.cos(), angles.sin()], -1)


class Projection(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)))


class TimestepEmbedding(Projection):
    """Projected frequencies of a diffusion time."""

    def __init__(self, width: int) -> None:
        super().__init__(2 * TIME_FREQUENCIES, width)

    def forward(self, time: Tensor) -> Tensor:
        """Embeddings (..., width) of diffusion times (...)."""
        return super().forward(timestep_frequencies(time).to(self.fc1.weight))


class Modulation(nn.Module):
    """Linear layer that turns a condition into ``parts`` vectors of the token's width: scale, shift and perhaps
    gate."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.proj = nn.Linear(width, parts * width)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.proj(F.silu(condition)).chunk(self.parts, -1)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without parameters of its own, then scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift
