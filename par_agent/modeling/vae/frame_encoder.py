"""Frame tokenizers of policies (paper section 3.2): frozen, RGB frames in, scaled latents out, and back.

Two kinds share one interface (``encode``, ``decode``, ``channels``, ``stride``): :class:`FrameVAE`, small and trained
from scratch, and :class:`VideoFrameEncoder`, NOVA's video VAE looking at one frame at a time. The field ``_class_name``
of a folder's ``config.json`` tells them apart, as in published VAE folders.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from par_agent.errors import UserError
from par_agent.modeling.embeddings import apart, side_by_side
from par_agent.modeling.vae.frame_vae import FrameVAE, FrameVAEConfig, to_frames, to_pixels
from par_agent.modeling.vae.opensora_vae import AutoencoderKLOpenSora, OpenSoraVAEConfig
from par_agent.modeling.weights import find_weights, load_weights, read_tensors, save_module
from par_agent.utils.files import naming, read_object
from par_agent.utils.json_fields import build

FRAMES_AT_ONCE = 4
"""Frames that the video VAE takes together; each needs about a gigabyte at 480x768 pixels in float32."""


class VideoFrameEncoder(nn.Module):
    """NOVA's video VAE with the interface of :class:`FrameVAE`: every frame is an image of its own."""

    def __init__(self, vae: AutoencoderKLOpenSora) -> None:
        super().__init__()
        self.vae = vae

    @property
    def config(self) -> OpenSoraVAEConfig:
        """The VAE's configuration."""
        return self.vae.config

    @property
    def channels(self) -> int:
        """Latent channels ``C``."""
        return self.config.latent_channels

    @property
    def stride(self) -> int:
        """Pixels a side of one latent pixel."""
        return self.config.spatial_factor

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w), the posterior's mean, of frames (B, H, W, 3) uint8.

        Raises:
            UserError: height or width is no multiple of the stride.
        """
        weight = self.vae.encoder.conv_in.weight
        parts = [self.vae.encode(to_pixels(part).to(weight)).mean for part in frames.split(FRAMES_AT_ONCE)]
        return self.vae.scale(torch.cat(parts))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Frames (B, H, W, 3) uint8 of scaled latents (B, C, h, w)."""
        unscaled = self.vae.unscale(latents).to(self.vae.encoder.conv_in.weight)
        return torch.cat([to_frames(self.vae.decode(part).float()) for part in unscaled.split(FRAMES_AT_ONCE)])


class CamerasEncoder(nn.Module):
    """An encoder of one camera's frames for the frames of several, which stand side by side; it sees each on its own.

    Args:
        encoder: encodes and decodes one camera's frames.
        cameras: how many stand side by side.
    """

    def __init__(self, encoder: FrameVAE | VideoFrameEncoder, cameras: int) -> None:
        super().__init__()
        self.encoder, self.cameras = encoder, cameras
        self.config, self.channels, self.stride = encoder.config, encoder.channels, encoder.stride

    def encode(self, frames: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) of frames (B, H, W, 3) uint8."""
        return side_by_side(self.encoder.encode(apart(frames, self.cameras, 2)), self.cameras)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (B, H, W, 3) uint8 of scaled latents (B, C, h, w)."""
        return side_by_side(self.encoder.decode(apart(latents, self.cameras)), self.cameras, 2)


FrameEncoder = FrameVAE | VideoFrameEncoder | CamerasEncoder
"""Any of them."""


def for_cameras(encoder: FrameEncoder, cameras: int) -> FrameEncoder:
    """The encoder for frames of so many cameras side by side, with the same weights."""
    one = encoder.encoder if isinstance(encoder, CamerasEncoder) else encoder
    return one if cameras == 1 else CamerasEncoder(one, cameras)


def make_frame_encoder(content: dict[str, Any]) -> FrameVAE | VideoFrameEncoder:
    """An encoder without weights worth keeping, from the fields of its ``config.json``.

    Raises:
        UserError: another kind, or fields that are unknown or out of range.
    """
    kind = content.get("_class_name")
    # "metrics" is the training's record.
    fields = {name: value for name, value in content.items() if not name.startswith("_") and name != "metrics"}
    if kind == "FrameVAE":
        return FrameVAE(build(FrameVAEConfig, fields))
    if kind == "AutoencoderKLOpenSora":
        return VideoFrameEncoder(AutoencoderKLOpenSora(build(OpenSoraVAEConfig, fields)))
    raise UserError(f"frame encoder {kind!r} is not known; known: FrameVAE, AutoencoderKLOpenSora")


def load_frame_encoder(folder: Path) -> FrameVAE | VideoFrameEncoder:
    """A frozen encoder in evaluation mode with float32 weights, from a checkpoint's ``frame_encoder``, the result of
    `par-agent train-vae`, or the ``vae`` of a released NOVA folder.

    Raises:
        UserError: a file is missing, damaged, or of a kind that is not known.
    """
    path, content = find_weights(folder), read_object(folder / "config.json")
    with torch.device("meta"), naming(folder / "config.json"):
        encoder = make_frame_encoder(content)
    load_weights(_weights(encoder), read_tensors(path), path, torch.float32)
    encoder = encoder.eval().requires_grad_(False)
    if isinstance(encoder, FrameVAE):
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return encoder


def save_frame_encoder(
    encoder: FrameEncoder, folder: Path, metrics: dict[str, Any] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes what :func:`load_frame_encoder` reads, one camera's encoder, and for the record the metrics of training.

    The video VAE's weights are stored as ``dtype``, if one is given; a small VAE's stay as they are.
    """
    module, record = _weights(encoder), {} if metrics is None else {"metrics": metrics}
    config = {"_class_name": type(module).__name__, **dataclasses.asdict(encoder.config), **record}
    save_module(module, config, folder, None if isinstance(module, FrameVAE) else dtype)


def describe_frame_encoder(encoder: FrameEncoder) -> str:
    """What beside its weights decides what an encoder does, as one line."""
    return json.dumps([type(encoder).__name__, dataclasses.asdict(encoder.config)], sort_keys=True)


def _weights(encoder: FrameEncoder) -> nn.Module:
    """The module whose tensors the folder holds."""
    encoder = for_cameras(encoder, 1)
    return encoder.vae if isinstance(encoder, VideoFrameEncoder) else encoder
