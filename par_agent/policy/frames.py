"""Frames as the model reads and imagines them: pixels, and the latents that they stand for."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import interpolate

from par_agent.modeling.config import GenerationConfig
from par_agent.modeling.embeddings import apart, side_by_side
from par_agent.modeling.nova.generation import NoiseSource
from par_agent.modeling.par import PARModel
from par_agent.modeling.vae.frame_encoder import FrameEncoder


class Frames(NamedTuple):
    """One frame of each environment."""

    pixels: Tensor
    """(B, H, W, 3) uint8, cropped and resized as the model sees them, several cameras side by side."""
    latents: Tensor
    """(B, C, h, w) scaled latents."""


def next_frames(
    model: PARModel,
    encoder: FrameEncoder,
    z_frame: Tensor,
    last: Frames,
    noise: NoiseSource,
    config: GenerationConfig | None = None,
) -> Frames:
    """Draws the frames that follow ``last``.

    Where a model that reads the last frame expects no change, the pixels are the last frame's: they keep detail that
    the frame encoder loses. The latents are then those of the blended pixels.

    Args:
        model: predicts the latents.
        encoder: decodes them.
        z_frame: (B, F, D) conditions of the frames.
        last: the frames that were read last.
        noise: random numbers.
        config: how frames are drawn; None: the model's own.

    Raises:
        ValueError: the model predicts no frames, or guidance was asked for.
    """
    latents = model.sample_frame(z_frame, last.latents, noise, config)
    pixels = encoder.decode(latents)
    change = model.change_probability(z_frame, last.latents)
    if change is None:
        return Frames(pixels, latents)
    cameras, (height, width) = model.config.nova.cameras, pixels.shape[1:3]
    shares = interpolate(apart(change[:, None], cameras), (height, width // cameras), mode="bilinear")
    share = side_by_side(shares, cameras)[:, 0, ..., None]
    pixels = last.pixels.float().lerp(pixels.float(), share).round().to(pixels.dtype)
    return Frames(pixels, encoder.encode(pixels))
