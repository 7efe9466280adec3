"""Frame de-tokenizer (paper section 4.2.2): a small diffusion MLP that draws each latent patch on its own (Li et al.
2024)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from par_agent.modeling.adaln import Modulation, Projection, TimestepEmbedding, modulate
from par_agent.modeling.embeddings import PatchEmbedding


class DiffusionBlock(nn.Module):
    """Gated residual MLP, modulated by time and condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = Modulation(width, 3)
        self.proj = Projection(width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.norm1(condition)
        return x + gate * self.norm2(self.proj(modulate(x, scale, shift)))


class TimeConditionEmbedding(nn.Module):
    """Sum of the projected condition and the projected diffusion time."""

    def __init__(self, condition_width: int, width: int) -> None:
        super().__init__()
        self.timestep_proj = TimestepEmbedding(width)
        self.condition_proj = Projection(condition_width, width)

    def forward(self, time: Tensor, condition: Tensor) -> Tensor:
        """Embeddings (B, k, width) of times (B,) or (B, k) and conditions (B, k, D)."""
        time = time[:, None] if time.ndim == 1 else time
        return self.condition_proj(condition) + self.timestep_proj(time)


class FrameDetokenizer(nn.Module):
    """Predicts the noise (or velocity) of noised latent patches from the spatial encoder's output.

    Every token is computed on its own, so any subset of a frame's tokens may be passed.

    Args:
        channels: latent channels ``C``.
        patch: latent pixels a side of one token, ``p``.
        condition_width: width ``D`` of the spatial encoder.
        width: width of the MLP.
        depth: number of blocks.
    """

    def __init__(self, channels: int, patch: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        size = patch * patch * channels
        self.patch_embed = PatchEmbedding(channels, patch, width)
        self.time_cond_embed = TimeConditionEmbedding(condition_width, width)
        self.blocks = nn.ModuleList(DiffusionBlock(width) for _ in range(depth))
        self.norm = Modulation(width, 2)
        self.head = nn.Linear(width, size)

    def forward(self, x: Tensor, time: Tensor, z: Tensor) -> Tensor:
        """Noise or velocity (B, k, p p C) in patch vector order.

        Args:
            x: (B, k, p p C) noised patch vectors, of any floating point type; results have the type of ``z``.
            time: (B,) or (B, k) diffusion time in network units (0 to 1000).
            z: (B, k, D) conditions.
        """
        # A convolution whose kernel is its stride is a linear layer on patch vectors (channel fastest).
        proj = self.patch_embed.proj
        x = F.linear(x.to(z.dtype), proj.weight.permute(0, 2, 3, 1).flatten(1), proj.bias)
        condition = self.time_cond_embed(time, z)
        for block in self.blocks:
            x = block(x, condition)
        scale, shift = self.norm(condition)
        return self.head(modulate(x, scale, shift))
