"""NOVA's training loss: the diffusion loss of masked patches under teacher forcing (paper section 4.3; Li et al.
2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from par_agent.modeling.diffusion import Noised, NoiseProcess, noise_process
from par_agent.modeling.nova.model import NOVA
from par_agent.modeling.random_numbers import normal, orders, uniform

WEIGHT_EPS = 1e-5


@dataclass(frozen=True)
class FrameNoise:
    """Random numbers of one loss, for ``R`` draws per condition."""

    noise: Tensor
    """(R B T, F, p p C) N(0, 1) in patch vector order."""
    index: Tensor
    """(R B T, F) int64 training times."""

    @classmethod
    def draw(
        cls, shape: tuple[int, int, int], process: NoiseProcess, device: torch.device, generator: torch.Generator | None
    ) -> FrameNoise:
        """Fresh noise (rows, F, p p C) and times."""
        noise = normal(shape, device, generator)
        return cls(noise, process.draw_index(shape[:2], generator, device))


@dataclass(frozen=True)
class FrameLoss:
    """A loss and what it was made from."""

    total: Tensor
    """Scalar to minimise."""
    first: Tensor | None
    """Part of the first frame (text to image), weighted as if all frames were like it; None for single images."""
    later: Tensor | None
    """Part of the later frames (image to image); None for single images."""
    noised: Noised
    """Noised patches, network times and targets."""
    prediction: Tensor
    """(R B T, F, p p C) the de-tokenizer's output."""


def frame_loss(
    nova: NOVA,
    latents: Tensor,
    condition: Tensor,
    known_ids: Tensor,
    process: NoiseProcess | None = None,
    noise: FrameNoise | None = None,
    repeat: int = 4,
    generator: torch.Generator | None = None,
) -> FrameLoss:
    """Mean squared error of the predicted noise (or velocity) over masked patches.

    Args:
        nova: the model; its spatial encoder runs once, its de-tokenizer ``repeat`` times as many rows.
        latents: (B, C, T, h, w) clean scaled latents.
        condition: (B T, M, D) conditions of the frames, sample-major.
        known_ids: (B T, k) int64 patches that are given; the loss is over all others.
        process: noise process; None: the model's own.
        noise: random numbers; None: drawn from ``generator``.
        repeat: draws of noise and time per condition (``R``).
        generator: source of random numbers.
    """
    process = noise_process(nova.config.diffusion) if process is None else process
    total = latents.shape[2]
    frames = latents.transpose(1, 2).flatten(0, 1)
    z = nova.encode_frame(frames, condition, known_ids).repeat(repeat, 1, 1)
    clean = nova.patchify(frames).repeat(repeat, 1, 1)
    if noise is None:
        noise = FrameNoise.draw((clean.shape[0], clean.shape[1], clean.shape[2]), process, clean.device, generator)
    noised = process.noised(clean, noise.noise.to(clean), noise.index)
    prediction = nova.image_decoder(noised.x, noised.time, z)
    errors = (prediction.float() - noised.target.float()).square().mean(-1)
    weights = (~nova.known_mask(known_ids)).float().repeat(repeat, 1)
    errors = errors * weights / (weights.sum() + WEIGHT_EPS)
    if total == 1:
        return FrameLoss(errors.sum(), None, None, noised, prediction)
    per_frame = errors.unflatten(0, (-1, total)).sum((0, 2))
    first, later = per_frame[0] * total, per_frame[1:].sum() * (total / (total - 1))
    return FrameLoss(first + later, first, later, noised, prediction)


def draw_known_patches(rows: int, patches: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Patches (rows, k) int64 that the frame loss gives away; all others are masked.

    The mask ratio follows NOVA: a normal of mean 1 and deviation 0.25, truncated to 0.7 … 1, drawn once per batch.
    """
    low, high = (torch.special.ndtr(torch.tensor((bound - 1) / 0.25)) for bound in (0.7, 1.0))
    ratio = 1 + 0.25 * torch.special.ndtri(low + (high - low) * uniform((), "cpu", generator))
    known = round((1 - ratio.clamp(0.7, 1.0).item()) * patches)
    return orders(rows, patches, device, generator)[:, :known]
