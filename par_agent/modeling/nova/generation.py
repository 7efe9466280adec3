"""Frame generation (NOVA; paper section 4.2.2): set by set within a frame, frame by frame within a clip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from par_agent.modeling.config import GenerationConfig
from par_agent.modeling.diffusion import NoiseProcess, noise_process
from par_agent.modeling.nova.model import NOVA
from par_agent.modeling.random_numbers import normal, orders
from par_agent.modeling.spatial_encoder import gather_tokens, scatter_tokens


class NoiseSource(Protocol):
    """Where generation takes its random numbers from; every call draws anew."""

    def start(self, shape: tuple[int, ...]) -> Tensor:
        """N(0, 1) latents (B, C, h, w) that one set's denoising starts from."""
        ...

    def step(self, shape: tuple[int, ...]) -> Tensor:
        """N(0, 1) latents (B, C, h, w) that a stochastic denoising step adds."""
        ...

    def order(self, batch: int, patches: int) -> Tensor:
        """(B, M) int64: the order in which a frame's patches are drawn."""
        ...


class RandomNoise:
    """Random numbers of a seeded generator of the CPU, on a device."""

    def __init__(
        self, generator: torch.Generator, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self._generator, self._device, self._dtype = generator, device, dtype

    def start(self, shape: tuple[int, ...]) -> Tensor:
        return normal(shape, self._device, self._generator, self._dtype)

    step = start

    def order(self, batch: int, patches: int) -> Tensor:
        return orders(batch, patches, self._device, self._generator)


def mask_schedule(patches: int, steps: int) -> list[int]:
    """Patches drawn in each set: few at first, many at last (cosine); empty sets are left out.

    >>> mask_schedule(24, 4)
    [2, 5, 8, 9]
    """
    left = [round(patches * math.cos(math.pi * k / (2 * steps))) for k in range(steps + 1)]
    return [a - b for a, b in pairwise(left) if a > b]


def guide(outputs: Tensor, guidance: float) -> Tensor:
    """``null + g (prompt - null)`` (B, ...) of outputs (2 B, ...) whose first half saw the prompt."""
    prompt, null = outputs.chunk(2)
    return null + guidance * (prompt - null)


def denoise(
    nova: NOVA,
    z: Tensor,
    process: NoiseProcess,
    steps: int,
    noise: NoiseSource,
    ids: Tensor,
    guidance: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Draws patches by running the de-tokenizer's reverse process.

    Args:
        nova: the model.
        z: (B, M, D) spatial encoder outputs; (2 B, M, D) with guidance, the rows with prompt first.
        process: noise process.
        steps: denoising steps.
        noise: random numbers.
        ids: (B, n) int64, the patches to draw.
        guidance: strength; None: unguided.
        temperature: scale of the noise.

    Returns:
        (B, M, p p C) patch vectors, float32 or finer. Those outside ``ids`` hold nothing of use: for them the process
        runs with the sample in place of the network's output, as in the published model.
    """
    copies = 1 if guidance is None else 2
    sampler = process.sampler(steps)
    shape = (len(ids), nova.config.latent_channels, *nova.config.latent_size)
    # The network may run in a half type; the sample is kept in float32 at least.
    x = temperature * nova.patchify(noise.start(shape)).to(torch.promote_types(z.dtype, torch.float32))
    wanted = gather_tokens(z, ids.repeat(copies, 1))
    for j, time in enumerate(sampler.times):
        tokens = gather_tokens(x, ids).repeat(copies, 1, 1)
        times = torch.full((len(tokens),), time, device=x.device)
        output = process.predict(nova.image_decoder, tokens, times, wanted).to(x.dtype)
        output = output if guidance is None else guide(output, guidance)
        fresh = temperature * nova.patchify(noise.step(shape)).to(x.dtype) if sampler.noise[j] else None
        x = sampler.step(j, x, scatter_tokens(x, ids, output), fresh)
    return x


@torch.no_grad()
def generate_frame(
    nova: NOVA,
    condition: Tensor,
    noise: NoiseSource,
    order: Tensor,
    config: GenerationConfig,
    process: NoiseProcess | None = None,
    last: Tensor | None = None,
) -> Tensor:
    """Draws one frame (B, C, h, w) of scaled latents.

    Args:
        nova: the model.
        condition: (B, F, D) condition tokens of the frame; with guidance (2 B, F, D), those with prompt first.
        noise: random numbers.
        order: (B, M) int64, the order in which patches are drawn.
        config: numbers of steps, guidance and temperature.
        process: noise process; None: the model's own.
        last: (B, C, h, w) latents of the frame before, for models that read it.
    """
    process = noise_process(nova.config.diffusion) if process is None else process
    copies = 2 if config.guided else 1
    batch = len(condition) // copies
    frame = condition.new_zeros(
        batch, nova.config.image_tokens, nova.patch_size, dtype=torch.promote_types(condition.dtype, torch.float32)
    )
    before = None if last is None else last.repeat(copies, 1, 1, 1)
    done = 0
    for count in mask_schedule(nova.config.image_tokens, config.mask_steps):
        known, ids = order[:, :done], order[:, done : done + count]
        latents = nova.unpatchify(frame).repeat(copies, 1, 1, 1)
        z = nova.encode_frame(latents, condition, known.repeat(copies, 1), before)
        guidance = config.guidance if config.guided else None
        drawn = denoise(nova, z, process, config.diffusion_steps, noise, ids, guidance, config.temperature)
        frame = scatter_tokens(frame, ids, gather_tokens(drawn, ids))
        done += count
    return nova.unpatchify(frame)


@torch.no_grad()
def generate_clip(
    nova: NOVA,
    prefix: Tensor,
    frames: int,
    noise: NoiseSource,
    config: GenerationConfig,
    process: NoiseProcess | None = None,
    first_frame: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yields the frames (B, C, h, w) of a clip one after another, as scaled latents.

    Args:
        nova: the model.
        prefix: (B, S, D) from ``nova.prefix``; with guidance (2 B, S, D), the null prompts last.
        frames: latent frames to generate, the first included.
        noise: random numbers; one order of patches serves all frames.
        config: numbers of steps and guidance.
        process: noise process; None: the model's own.
        first_frame: (B, C, h, w) given first frame (image to video); it is yielded as it is.

    Raises:
        ValueError: no frames were asked for, or the first frame has another shape than the model's.
    """
    if frames < 1:
        raise ValueError(f"{frames} frames were asked for; it must be at least 1")
    copies = 2 if config.guided else 1
    order = noise.order(len(prefix) // copies, nova.config.image_tokens)
    condition, stream = nova.start(prefix, frames)
    frame = prefix.new_zeros(len(order), nova.config.latent_channels, *nova.config.latent_size)  # before the first one
    for index in range(frames):
        if index == 0 and first_frame is not None:
            frame = first_frame
        else:
            frame = generate_frame(nova, condition, noise, order, config, process, frame)
        yield frame
        if index + 1 < frames:
            condition, _ = nova.advance(frame.repeat(copies, 1, 1, 1), stream)
