"""NOVA's training loss: the diffusion loss of masked patches under teacher forcing (paper section 4.3; Li et al.
2024)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from par_agent.modeling.diffusion import Noised, NoiseProcess, noise_process
from par_agent.modeling.nova.model import NOVA
from par_agent.modeling.random_numbers import normal, orders, permutation, uniform
from par_agent.utils.device import moved

WEIGHT_EPS = 1e-5
CHANGE_WEIGHT = 0.3
"""Weight of the cross entropy of where frames differ."""


def frame_loss(
    nova: NOVA,
    latents: Tensor,
    condition: Tensor,
    known_ids: Tensor,
    repeat: int = 4,
    generator: torch.Generator | None = None,
    last: Tensor | None = None,
) -> Tensor:
    """Mean squared error (scalar) of the predicted noise, or velocity, of masked patches, weighted as the noise process
    says, plus :func:`change_loss`.

    Args:
        nova: the model; its spatial encoder runs once, its de-tokenizer ``repeat`` times as many rows.
        latents: (B, C, h, w) clean scaled latents.
        condition: (B, F, D) conditions of the frames.
        known_ids: (B, k) int64 patches that are given; the loss is over all others.
        repeat: draws of noise and time per condition (``R``).
        generator: source of random numbers.
        last: (B, C, h, w) the frames before, for models that read them.
    """
    process = noise_process(nova.config.diffusion)
    shape = (repeat * len(latents), nova.config.image_tokens, nova.patch_size)
    noise = normal(shape, latents.device, generator)
    index = process.draw_index(shape[:2], generator, latents.device)
    z = nova.encode_frame(latents, condition, known_ids, last)
    errors = frame_errors(nova, latents, z, known_ids, process, noise, index)[0]
    return errors.sum() + change_loss(nova, z, latents, known_ids, last)


def change_loss(nova: NOVA, z: Tensor, latents: Tensor, known_ids: Tensor, last: Tensor | None) -> Tensor:
    """Cross entropy (scalar), weighted by :data:`CHANGE_WEIGHT`, of where the frames differ from the ones before; 0 for
    a model that does not read those.

    ``z`` (B, M, D) are outputs of the spatial encoder; see :func:`frame_loss` for the others.
    """
    if last is None or nova.image_encoder.change_head is None:
        return z.new_zeros(())
    masked = ~nova.known_mask(known_ids)
    logits = nova.image_encoder.change_head(z)[..., 0][masked]
    return CHANGE_WEIGHT * binary_cross_entropy_with_logits(logits.float(), nova.changed(last, latents)[masked].float())


def frame_errors(
    nova: NOVA,
    latents: Tensor,
    z: Tensor,
    known_ids: Tensor,
    process: NoiseProcess,
    noise: Tensor,
    index: Tensor,
) -> tuple[Tensor, Noised, Tensor]:
    """Squared errors (R B, M) that add up to the loss, the noised patches, and what was predicted (R B, M, p p C).

    Args:
        nova, latents, known_ids: see :func:`frame_loss`.
        z: (B, M, D) outputs of the spatial encoder.
        process: noise process.
        noise: (R B, M, p p C) N(0, 1) in patch vector order.
        index: (R B, M) int64 training times.
    """
    repeat = len(noise) // len(latents)
    clean = nova.patchify(latents).repeat(repeat, 1, 1)
    noised = process.noised(clean, noise.to(clean), index)
    prediction = process.predict(nova.image_decoder, noised.x, noised.time, z.repeat(repeat, 1, 1))
    errors = (prediction.float() - noised.target.float()).square().mean(-1) * process.loss_weights(noised.time)
    weights = (~nova.known_mask(known_ids)).float().repeat(repeat, 1)
    return errors * weights / (weights.sum() + WEIGHT_EPS), noised, prediction


def draw_frames(candidates: Tensor, fraction: float, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Numbers (k,) int64 of the frames that enter the loss, among those where ``candidates`` (B, N) bool is True.

    ``fraction`` of them, at least one, are drawn; none if there is no candidate.
    """
    numbers = candidates.cpu().flatten().nonzero()[:, 0]
    if len(numbers) == 0:
        return moved(numbers, device)
    order = permutation(len(numbers), generator)
    return moved(numbers[order[: max(1, round(fraction * len(numbers)))]], device)


def draw_known_patches(rows: int, patches: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Patches (rows, k) int64 that the frame loss gives away; all others are masked.

    The mask ratio follows NOVA: a normal of mean 1 and deviation 0.25, truncated to 0.7 … 1, drawn once per batch.
    """
    low, high = (torch.special.ndtr(torch.tensor((bound - 1) / 0.25)) for bound in (0.7, 1.0))
    ratio = 1 + 0.25 * torch.special.ndtri(low + (high - low) * uniform((), "cpu", generator))
    known = round((1 - ratio.clamp(0.7, 1.0).item()) * patches)
    return orders(rows, patches, device, generator)[:, :known]
