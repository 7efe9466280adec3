"""Small convolutional frame VAE: the frozen frame tokenizer of models that are trained from scratch (preset ``mini``).

It has the interface of the full model's video VAE where the policy needs one: RGB in, scaled latents out, and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from par_agent.errors import UserError
from par_agent.modeling.embeddings import ResidualConv
from par_agent.modeling.random_numbers import normal
from par_agent.utils.checked import Checked, Size


@dataclass(frozen=True)
class FrameVAEConfig(Checked):
    """Sizes of a :class:`FrameVAE`."""

    channels: Size = 8
    """Latent channels ``C``."""
    widths: tuple[Size, ...] = (16, 32, 48)
    """Encoder widths; each halves the resolution. The decoder mirrors them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width % 8 for width in self.widths):
            raise UserError(f"widths is {self.widths}; each must be a multiple of 8")

    @property
    def stride(self) -> int:
        """Pixels a side of one latent pixel."""
        return 2 ** len(self.widths)


class FrameVAE(nn.Module):
    """Frames (H, W) to latents (h, w) that are standardised per channel, ``h = H / stride``, and back."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: FrameVAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        encoder: list[nn.Module] = []
        for before, width in pairwise((3, *widths)):
            encoder += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.SiLU()]
        self.encoder = nn.Sequential(*encoder, ResidualConv(widths[-1]), nn.Conv2d(widths[-1], 2 * config.channels, 1))
        decoder: list[nn.Module] = [nn.Conv2d(config.channels, widths[-1], 3, padding=1), ResidualConv(widths[-1])]
        for before, width in pairwise((*reversed(widths), 3)):
            decoder += [nn.SiLU(), nn.Conv2d(before, 4 * width, 3, padding=1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*decoder)
        self.register_buffer("latent_mean", torch.zeros(config.channels))
        self.register_buffer("latent_std", torch.ones(config.channels))

    @property
    def channels(self) -> int:
        """Latent channels ``C``."""
        return self.config.channels

    @property
    def stride(self) -> int:
        """Pixels a side of one latent pixel."""
        return self.config.stride

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, C, h, w), unscaled, of pixels (B, 3, H, W) float in [-1, 1]."""
        mean, log_variance = self.encoder(pixels).chunk(2, 1)
        return mean, log_variance.clamp(-20.0, 5.0)

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), about [-1, 1], of unscaled latents (B, C, h, w)."""
        return self.decoder(latents)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) float32, the posterior's mean, of frames (B, H, W, 3) uint8.

        Raises:
            ValueError: height or width is no multiple of the stride.
        """
        if frames.shape[1] % self.config.stride or frames.shape[2] % self.config.stride:
            raise ValueError(
                f"frames of {frames.shape[1]}x{frames.shape[2]} pixels do not divide into latents of stride "
                f"{self.config.stride}; crop or resize them to a multiple"
            )
        mean, _ = self.posterior(to_pixels(frames).to(self.latent_mean))
        return (mean - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Frames (B, H, W, 3) uint8 of scaled latents (B, C, h, w)."""
        unscaled = latents.to(self.latent_mean) * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
        return to_frames(self.reconstruct(unscaled))

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Sets the latents' mean and standard deviation (C,) that :meth:`encode` removes."""
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std.clamp(min=1e-6))


def to_pixels(frames: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) float32 in [-1, 1] of frames (B, H, W, 3) uint8."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(pixels: Tensor) -> Tensor:
    """Frames (B, H, W, 3) uint8 of pixels (B, 3, H, W) in [-1, 1]; what lies outside is clipped."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def vae_loss(vae: FrameVAE, pixels: Tensor, kl_weight: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training loss and reconstruction error (mean square) of pixels (B, 3, H, W).

    Absolute plus squared error of the reconstruction, plus the KL divergence to N(0, 1) (mean per latent number).
    """
    mean, log_variance = vae.posterior(pixels)
    noise = normal(mean.shape, mean.device, generator)
    reconstruction = vae.reconstruct(mean + noise * (0.5 * log_variance).exp())
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    squared = F.mse_loss(reconstruction, pixels)
    return F.l1_loss(reconstruction, pixels) + squared + kl_weight * kl, squared.detach()
