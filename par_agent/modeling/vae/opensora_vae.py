"""Frame tokenizer (paper section 3.2): the 3-D video VAE that NOVA uses, Open-Sora-Plan's, in its published layout.

An image or a clip in [-1, 1] becomes latents an eighth as high and wide and, for clips, a quarter as long: a clip of
1 + 4 k frames gives 1 + k latent frames, and an image is a clip of one frame. The VAE is frozen in PAR.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from par_agent.errors import UserError
from par_agent.modeling.random_numbers import normal
from par_agent.modeling.vae.opensora_vae_blocks import NORM_EPS, CausalConv3d, DownBlock, MidBlock, UpBlock, convolution
from par_agent.modeling.weights import load_module, read_config
from par_agent.utils.checked import Checked, Positive, Size, SmallCount
from par_agent.utils.files import naming
from par_agent.utils.json_fields import build

ENCODE_FRAMES = 17
"""Frames per chunk in which longer clips are encoded; neighbours share one frame."""
DECODE_FRAMES = 5
"""Latent frames per chunk in which longer latents are decoded; neighbours share one."""


@dataclass(frozen=True)
class OpenSoraVAEConfig(Checked):
    """The fields of the published ``config.json``."""

    in_channels: Size = 3
    """Channels of a frame."""
    out_channels: Size = 3
    """Channels of a decoded frame."""
    down_block_types: tuple[Literal["DownEncoderBlock2D", "DownEncoderBlock3D"], ...] = (
        *("DownEncoderBlock2D", "DownEncoderBlock2D"),
        *("DownEncoderBlock3D", "DownEncoderBlock3D"),
    )
    """Encoder resolutions, 2-D ones first; the step before a 3-D one halves time as well."""
    up_block_types: tuple[Literal["UpDecoderBlock3D"], ...] = ("UpDecoderBlock3D",) * 4
    """Decoder resolutions, all 3-D."""
    block_out_channels: tuple[Size, ...] = (128, 256, 512, 512)
    """Channels of each encoder resolution; the decoder has them in reverse."""
    layers_per_block: SmallCount = 2
    """Residual blocks per encoder resolution; the decoder has one more."""
    act_fn: Literal["silu"] = "silu"
    """Activation; only ``silu`` exists."""
    latent_channels: Size = 4
    """Channels of the latents."""
    norm_num_groups: Size = 32
    """Groups of every GroupNorm; must divide all channel counts."""
    sample_size: int = 256
    """Training resolution; not used."""
    scaling_factor: Positive = 0.18215
    """What latents are multiplied by before the transformer sees them."""
    shift_factor: float | None = None
    """What is subtracted from latents before that; None: nothing."""
    latents_mean: None = None
    """Per-channel statistics, which this VAE does not have."""
    latents_std: None = None
    """Per-channel statistics, which this VAE does not have."""
    force_upcast: bool = True
    """Advice to pipelines; not used."""
    use_quant_conv: bool = True
    """Has a 1x1x1 convolution after the encoder."""
    use_post_quant_conv: bool = True
    """Has a 1x1x1 convolution before the decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        down, up, channels = len(self.down_block_types), len(self.up_block_types), len(self.block_out_channels)
        if not (down == up == channels >= 2):
            raise UserError(
                f"down_block_types, up_block_types and block_out_channels have {down}, {up} and {channels} entries; "
                "they need the same number, at least 2"
            )
        dims = self.down_dims
        if dims != sorted(dims) or (dims[0], dims[-1]) != (2, 3):
            raise UserError(
                f"down_block_types is {self.down_block_types}; 2D blocks (one at least) come before 3D ones"
            )
        if bad := [c for c in self.block_out_channels if c % self.norm_num_groups]:
            raise UserError(
                f"block_out_channels has {bad}; each must be a multiple of norm_num_groups {self.norm_num_groups}"
            )

    @property
    def down_dims(self) -> list[int]:
        """Dimensions of each encoder resolution's blocks: 2, or 3 with time."""
        return [2 if name.endswith("2D") else 3 for name in self.down_block_types]

    @property
    def spatial_factor(self) -> int:
        """Frame pixels a side per latent pixel."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def time_factor(self) -> int:
        """Frames that each latent frame but the first stands for when decoded."""
        return 2 ** (len(self.block_out_channels) - 2)


@dataclass(frozen=True)
class LatentDistribution:
    """Diagonal Gaussian over unscaled latents (B, C, [N,] h, w)."""

    mean: Tensor
    """Mean."""
    logvar: Tensor
    """Logarithm of the variance, in [-30, 20]."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw."""
        noise = normal(self.mean.shape, self.mean.device, generator, self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * noise


class VAEEncoder(nn.Module):
    """Frames to the moments of the latents."""

    def __init__(self, config: OpenSoraVAEConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        dims = config.down_dims
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                dims[i],
                channels[max(i - 1, 0)],
                channels[i],
                config.layers_per_block,
                groups,
                downsample_dims=dims[i + 1] if i + 1 < len(channels) else None,
            )
            for i in range(len(channels))
        )
        self.mid_block = MidBlock(channels[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], NORM_EPS)
        self.conv_out = convolution(3, channels[-1], 2 * config.latent_channels, 3)

    def forward(self, clip: Tensor) -> Tensor:
        """(B, 3, N, H, W) to (B, 2 C, N', h, w)."""
        frames = clip.shape[2]
        x = self.conv_in(clip.transpose(1, 2).flatten(0, 1))
        for block in self.down_blocks:
            x = block(x, frames)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class VAEDecoder(nn.Module):
    """Latents to frames."""

    def __init__(self, config: OpenSoraVAEConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        steps = ["space and time"] * (len(channels) - 2) + ["space", None]
        self.conv_in = convolution(3, config.latent_channels, channels[0], 3)
        self.mid_block = MidBlock(channels[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(channels[max(i - 1, 0)], channels[i], config.layers_per_block + 1, groups, upsample=steps[i])
            for i in range(len(channels))
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], NORM_EPS)
        self.conv_out = convolution(3, channels[-1], config.out_channels, 3)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, C, N', h, w) to (B, 3, N, H, W)."""
        x = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKLOpenSora(nn.Module):
    """The video VAE. Input with 4 axes is images, with 5 axes clips; results have as many."""

    def __init__(self, config: OpenSoraVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VAEEncoder(config)
        self.decoder = VAEDecoder(config)
        moments, latents = 2 * config.latent_channels, config.latent_channels
        self.quant_conv = CausalConv3d(moments, moments, (1, 1, 1)) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = (
            CausalConv3d(latents, latents, (1, 1, 1)) if config.use_post_quant_conv else nn.Identity()
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> AutoencoderKLOpenSora:
        """Loads a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``, frozen and in evaluation
        mode.

        Args:
            folder: for example ``vae`` inside a released NOVA folder.
            device: where the model goes.
            dtype: type of the weights; published ones are float16 and computed with in float32 unless told.

        Raises:
            UserError: a file is missing, truncated or pickled; configuration fields are unknown or out of range;
                tensors are missing, left over, of another shape or not finite. Every one is named.
        """
        fields = read_config(folder)
        with naming(Path(folder) / "config.json"):
            config = build(OpenSoraVAEConfig, fields)
        with torch.device("meta"):
            model = cls(config)
        load_module(model, Path(folder), dtype)
        return model.requires_grad_(False).eval().to(device)

    def encode(self, pixels: Tensor) -> LatentDistribution:
        """Distribution over *unscaled* latents.

        Clips longer than 17 frames are encoded in chunks of 17 that share one frame, as the published model does;
        frames after the last whole chunk are dropped. Use 1 + 16 k frames there.

        Args:
            pixels: (B, 3, H, W) or (B, 3, N, H, W) float in [-1, 1]; H and W multiples of 8.

        Raises:
            ValueError: another shape.
        """
        self._check(pixels, self.config.in_channels, self.config.spatial_factor, "pixels")
        clip = pixels[:, :, None] if pixels.ndim == 4 else pixels
        moments = self.quant_conv(_in_chunks(self.encoder, clip, ENCODE_FRAMES))
        moments = moments[:, :, 0] if pixels.ndim == 4 else moments
        mean, logvar = moments.chunk(2, 1)
        return LatentDistribution(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (B, 3, [N,] H, W), about [-1, 1], of *unscaled* latents (B, C, [N',] h, w).

        Raises:
            ValueError: another shape.
        """
        self._check(latents, self.config.latent_channels, 1, "latents")
        clip = latents[:, :, None] if latents.ndim == 4 else latents
        frames = _in_chunks(self.decoder, self.post_quant_conv(clip), DECODE_FRAMES)
        return frames[:, :, 0] if latents.ndim == 4 else frames

    def scale(self, latents: Tensor) -> Tensor:
        """Latents as the transformer sees them: ``(latents - shift) * scaling_factor``."""
        return (latents - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def unscale(self, latents: Tensor) -> Tensor:
        """Inverse of :meth:`scale`, before :meth:`decode`."""
        return latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)

    def _check(self, x: Tensor, channels: int, factor: int, what: str) -> None:
        bad_size = x.ndim not in (4, 5) or 0 in x.shape or x.shape[-2] % factor or x.shape[-1] % factor
        if bad_size or x.shape[1] != channels:
            multiple = f", H and W multiples of {factor}" if factor > 1 else ""
            raise ValueError(
                f"{what} have shape {tuple(x.shape)}; expected (B, {channels}, H, W) or "
                f"(B, {channels}, N, H, W){multiple}"
            )


def _in_chunks(module: nn.Module, x: Tensor, size: int) -> Tensor:
    """Runs (B, C, N, H, W) in chunks of ``size`` frames that share one, and drops the shared frame of later results."""
    if x.shape[2] <= size:
        return module(x)
    starts = range(0, x.shape[2] - size + 1, size - 1)
    parts = [module(x[:, :, start : start + size]) for start in starts]
    return torch.cat([parts[0], *(part[:, :, 1:] for part in parts[1:])], 2)
