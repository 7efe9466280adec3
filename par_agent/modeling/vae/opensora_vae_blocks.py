"""Building blocks of the video VAE: causal convolutions, residual blocks, per-frame attention, resampling.

Tensors are (B, C, H, W) in two-dimensional stages, where clips are folded into the batch sample-major, and (B, C, N,
H, W) in three-dimensional ones. Module names are those of the published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class CausalConv3d(nn.Conv3d):
    """3-D convolution that sees no later frame: the first frame is repeated in front.

    Args:
        in_channels, out_channels: channels.
        kernel_size: (time, height, width).
        stride: the same in time, height and width.
        padding: zeros around each frame; time is padded with the first frame.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int], stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, (0, padding, padding))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N, H, W) to (B, C', N', H', W')."""
        if x.shape[2] == 1:
            # Every tap in time sees the same frame: one 2-D convolution with the summed kernel is the same, 3 times
            # cheaper.
            weight = self.weight.sum(2, dtype=torch.float32).to(self.weight.dtype)
            y = F.conv2d(x[:, :, 0], weight, self.bias, self.stride[1:], self.padding[1:])
            return y[:, :, None]
        front = x[:, :, :1].expand(-1, -1, self.kernel_size[0] - 1, -1, -1)
        return super().forward(torch.cat([front, x], 2))


def convolution(dims: int, in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d | CausalConv3d:
    """Size-preserving convolution of a 2-D or 3-D stage (``dims``)."""
    if dims == 2:
        return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    return CausalConv3d(in_channels, out_channels, (kernel,) * 3, padding=kernel // 2)


class ResidualBlock(nn.Module):
    """Twice GroupNorm, SiLU, convolution, around a skip connection. In 3-D the norm spans the whole clip."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, NORM_EPS)
        self.conv1 = convolution(dims, in_channels, out_channels, 3)
        self.norm2 = nn.GroupNorm(groups, out_channels, NORM_EPS)
        self.conv2 = convolution(dims, out_channels, out_channels, 3)
        self.conv_shortcut = None if in_channels == out_channels else convolution(dims, in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N, H, W) to the same shape."""
        b, c, t, h, w = x.shape
        tokens = self.group_norm(x).permute(0, 2, 3, 4, 1).reshape(b * t, 1, h * w, c)
        out = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](out).reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3)


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(3, channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    """Halves height and width, in 3-D also time: N becomes (N - 1) // 2 + 1.

    One zero is padded on the right and at the bottom, none on the left and at the top.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv: nn.Conv2d | CausalConv3d
        if dims == 2:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2)
        else:
            self.conv = CausalConv3d(channels, channels, (3, 3, 3), stride=2)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Unfolds (B N, C, H, W) into ``frames`` frames where a 3-D stage follows a 2-D one."""
        if x.ndim == 4 and isinstance(self.conv, CausalConv3d):
            x = x.unflatten(0, (-1, frames)).transpose(1, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width, and time unless ``space_only``: the first frame stays one frame, N becomes 2 N - 1."""

    def __init__(self, channels: int, space_only: bool) -> None:
        super().__init__()
        self.space_only = space_only
        self.conv = CausalConv3d(channels, channels, (1 if space_only else 3, 3, 3), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.space_only:
            x = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
        else:
            parts = [F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")]
            if x.shape[2] > 1:
                parts.append(F.interpolate(x[:, :, 1:], scale_factor=(2, 2, 2), mode="trilinear"))
            x = torch.cat(parts, 2)
        return self.conv(x)


class DownBlock(nn.Module):
    """Residual blocks of one encoder resolution, then a downsample unless it is the last one."""

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, depth: int, groups: int, downsample_dims: int | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(dims, in_channels if j == 0 else out_channels, out_channels, groups) for j in range(depth)
        )
        if downsample_dims is not None:
            self.downsamplers = nn.ModuleList([Downsample(downsample_dims, out_channels)])
        self.last = downsample_dims is None

    def forward(self, x: Tensor, frames: int) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.last else self.downsamplers[0](x, frames)


class UpBlock(nn.Module):
    """Residual blocks of one decoder resolution, then an upsample unless it is the last one (``upsample`` None)."""

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, groups: int, upsample: str | None = None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(3, in_channels if j == 0 else out_channels, out_channels, groups) for j in range(depth)
        )
        if upsample is not None:
            self.upsamplers = nn.ModuleList([Upsample(out_channels, space_only=upsample == "space")])
        self.last = upsample is None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.last else self.upsamplers[0](x)
