"""The state of a batch of episodes, and what a policy intends in them.

Letters of shapes: see :mod:`par_agent.modeling`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from par_agent.modeling.par import PARStream
from par_agent.modeling.random_numbers import copied_generator, normal_rows, orders
from par_agent.policy.chunk_policy import Episodes
from par_agent.utils.device import moved


class Plan(NamedTuple):
    """What a policy intends, on its device."""

    actions: Tensor
    """(B, L, A) float32 chunk in the controller's units."""
    frames: Tensor | None
    """(B, H, W, 3) uint8 predicted frames after the chunk, cropped and resized as the model sees them; None: not asked
    for."""


class Imagination(NamedTuple):
    """A rollout of the model on its own predictions, on the policy's device."""

    frames: Tensor
    """(B, N, H, W, 3) uint8, cropped and resized as the model sees them."""
    actions: Tensor
    """(B, N, L, A) float32 in the controller's units; chunk ``k`` leads to frame ``k``."""


class RowNoise:
    """Noise of frame generation; every row draws from its own generator."""

    def __init__(self, generators: list[torch.Generator], device: torch.device) -> None:
        self._generators, self._device = generators, device

    def start(self, shape: tuple[int, ...]) -> Tensor:
        return normal_rows(shape[1:], self._generators, self._device)

    step = start

    def order(self, batch: int, patches: int) -> Tensor:
        rows = [orders(1, patches, "cpu", generator) for generator in self._generators]
        return moved(torch.cat(rows), self._device)


@dataclass
class EpisodeState(Episodes):
    """What a :class:`~par_agent.policy.par_policy.PARPolicy` remembers of its environments, one row each."""

    stream: PARStream
    """The model's past."""
    pixels: Tensor
    """(B, H, W, 3) uint8 frame read last."""
    latents: Tensor
    """(B, C, h, w) its scaled latents."""
    positions: Tensor
    """(B, P) joint positions measured with the frame read last, radians."""
    z_frame: Tensor
    """(B, F, D) conditions of the next frame."""
    fresh: Tensor
    """(B,) bool, True before a row's first plan."""

    def copy(self) -> EpisodeState:
        """An equal state that goes its own way."""
        cache = self.stream.cache.take(torch.arange(len(self.used), device=self.used.device))
        tensors: dict[str, Any] = {name: v.clone() for name, v in vars(self).items() if isinstance(v, Tensor)}
        generators = [copied_generator(generator) for generator in self.generators]
        return dataclasses.replace(self, stream=PARStream(cache, self.stream.prefix), generators=generators, **tensors)
