"""Position, text and motion embeddings, and the patch embedding of latent frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCY_BASE = 10000.0


def sincos(positions: Tensor, half: int) -> Tensor:
    """``[sin(p w), cos(p w)]`` (..., 2 * half) with ``w_k = 10000 ** (-k / half)``, for positions (...)."""
    w = FREQUENCY_BASE ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angles = positions.float()[..., None] * w
    return torch.cat([angles.sin(), angles.cos()], -1)


def apart(frames: Tensor, cameras: int, width_axis: int = -1) -> Tensor:
    """The frames (K B, ...) of ``K`` cameras, those of the first one first, of frames (B, ...) that show them side by
    side."""
    return frames if cameras == 1 else torch.cat(frames.chunk(cameras, width_axis))


def side_by_side(frames: Tensor, cameras: int, width_axis: int = -1) -> Tensor:
    """Inverse of :func:`apart`."""
    return frames if cameras == 1 else torch.cat(frames.chunk(cameras), width_axis)


def space_embedding(
    rows: int, columns: int, width: int, device: torch.device | None = None, cameras: int = 1
) -> Tensor:
    """Sine/cosine embedding (rows * columns, width) of the column, then of the row, row-major.

    Of ``cameras`` side by side, each counts its columns from 0.
    """
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    x = x % (columns // cameras)
    return torch.cat([sincos(x.flatten(), width // 4), sincos(y.flatten(), width // 4)], -1)


class TimeEmbedding(nn.Module):
    """Learned projection of a frame's sine/cosine time (NOVA's ``video_pos_embed``)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_proj = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, time: Tensor) -> Tensor:
        """Embeddings (..., D) of times (...), in units of the base clip's frames."""
        return self.norm(self.time_proj(sincos(time, 128).to(self.norm.weight.dtype)))


class TextEmbedding(nn.Module):
    """Pads frozen text features with learned null features and projects them to text tokens."""

    weight: Tensor

    def __init__(self, text_dim: int, width: int, length: int, buffer_length: int = 512) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("weight", torch.zeros(max(buffer_length, length), text_dim))
        self.proj = nn.Linear(text_dim, width)
        self.norm = nn.LayerNorm(width)

    def pad(self, features: list[Tensor]) -> Tensor:
        """Cuts or pads, with null features, each instruction's (length_i, text_dim) to (B, length, text_dim)."""
        rows = []
        for feature in features:
            feature = feature[: self.length].to(self.weight)
            rows.append(torch.cat([feature, self.weight[len(feature) : self.length]]))
        return torch.stack(rows)

    def forward(self, padded: Tensor) -> Tensor:
        """Text tokens (B, length, D) of padded features (B, length, text_dim)."""
        return self.norm(self.proj(padded))


class MotionEmbedding(nn.Module):
    """Two prefix tokens from optical-flow strength and frames a second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.flow_proj = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.fps_proj = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, flow: Tensor, fps: Tensor) -> Tensor:
        """Tokens (B, 2, D) of flow and fps (B,) each."""
        features = [sincos(value, 128).to(next(self.parameters()).dtype) for value in (flow, fps)]
        return torch.stack([self.flow_proj(features[0]), self.fps_proj(features[1])], 1)


def learned(*shape: int) -> nn.Parameter:
    """A parameter of small random numbers.

    The meta device holds no numbers; drawing them there all the same would have torch import its compiler first.
    """
    values = torch.empty(shape)
    return nn.Parameter(values if values.is_meta else values.normal_(std=0.02))


class MaskEmbedding(nn.Module):
    """The begin-of-video token and the token of a masked patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bos_token = learned(1, width)
        self.mask_token = learned(1, width)


class ResidualConv(nn.Module):
    """Two 3x3 convolutions around a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class PatchEmbedding(nn.Module):
    """Latent frames to frame tokens: one strided convolution, after an optional convolutional stem.

    The stem (none in NOVA) lets a small model that is trained from scratch localise objects below the patch size. It
    sees the frames of each of the ``cameras`` on their own.
    """

    def __init__(
        self, channels: int, patch: int, width: int, stem_widths: tuple[int, ...] = (), cameras: int = 1
    ) -> None:
        super().__init__()
        self.cameras = cameras
        layers: list[nn.Module] = []
        for index, stem_width in enumerate(stem_widths):
            layers.append(nn.Conv2d(channels, stem_width, 3, stride=1 if index == 0 else 2, padding=1))
            layers += [] if index == 0 else [ResidualConv(stem_width)]
            layers.append(nn.SiLU())
            channels = stem_width
        self.stem = nn.Sequential(*layers)
        kernel = patch // 2 ** max(0, len(stem_widths) - 1)
        self.proj = nn.Conv2d(channels, width, kernel, stride=kernel)

    def forward(self, latents: Tensor) -> Tensor:
        """Tokens (B, tokens, D), row-major, of latents (B, C, h, w)."""
        features = side_by_side(self.stem(apart(latents, self.cameras)), self.cameras)
        return self.proj(features).flatten(2).transpose(1, 2)


def patchify(latents: Tensor, patch: int) -> Tensor:
    """Patch vectors (B, tokens, patch * patch * C), channel fastest, of latents (B, C, h, w)."""
    b, c, h, w = latents.shape
    x = latents.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(vectors: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Inverse of :func:`patchify`: latents (B, C, h, w)."""
    b, _, size = vectors.shape
    c = size // patch**2
    x = vectors.reshape(b, *grid, patch, patch, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, c, grid[0] * patch, grid[1] * patch)
