"""Spatial encoder (NOVA; paper section 4.2.2): masked set-by-set modelling inside one frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from par_agent.modeling.blocks import Block, run_blocks
from par_agent.modeling.config import EncoderConfig
from par_agent.modeling.embeddings import PatchEmbedding
from par_agent.modeling.rope import Rotation


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` (B, k) int64 of tokens (B, M, D): (B, k, D)."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[-1]))


def scatter_tokens(x: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Tokens (B, M, D) with rows ``ids`` (B, k) replaced by ``values`` (B, k, D)."""
    return x.scatter(1, ids[..., None].expand(-1, -1, x.shape[-1]), values.to(x.dtype))


class SpatialEncoder(nn.Module):
    """Reads the condition of a frame and its known patches; its outputs condition the de-tokenizer at the masked ones.

    The first half of the blocks sees the condition and the known tokens only, the second half the whole frame, in which
    masked patches hold the mask token. With ``reads_last_frame`` the patches of the frame before are added to every
    patch, and again to the outputs.
    """

    def __init__(self, config: EncoderConfig, channels: int, patch: int, reads_last_frame: bool = False) -> None:
        super().__init__()
        self.recompute = False
        self.last_embed = PatchEmbedding(channels, patch, config.width) if reads_last_frame else None
        self.last_output = PatchEmbedding(channels, patch, config.width) if reads_last_frame else None
        self.change_head = nn.Linear(config.width, 1) if reads_last_frame else None
        self.patch_embed = PatchEmbedding(channels, patch, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        known_ids: Tensor,
        rotation: Rotation | None = None,
        last: Tensor | None = None,
    ) -> Tensor:
        """Outputs (B, M, D).

        Args:
            x: (B, M, D) patch embeddings, masked ones replaced by the mask token, positions added.
            condition: (B, F, D) condition tokens of the frame.
            known_ids: (B, k) int64, known patches; their order matters for nothing but rotary positions.
            rotation: cosines and sines (M, head_dim / 2) of the patches' rotary positions.
            last: (B, C, h, w) latents of the frame before; needed by an encoder that reads it.
        """
        if self.last_embed is not None:
            x = x + self.last_embed(last)
        prefix, half = condition.shape[1], len(self.blocks) // 2
        first, second = _rotations(rotation, prefix, known_ids)
        sequence = torch.cat([condition, gather_tokens(x, known_ids)], 1)
        sequence = run_blocks(self.blocks[:half], sequence, None, first, self.recompute)
        x = scatter_tokens(x, known_ids, sequence[:, prefix:])
        sequence = torch.cat([sequence[:, :prefix], x], 1)
        sequence = run_blocks(self.blocks[half:], sequence, None, second, self.recompute)
        outputs = self.norm(sequence)[:, prefix:]
        return outputs if self.last_output is None else outputs + self.last_output(last)


def _rotations(rotation: Rotation | None, prefix: int, ids: Tensor) -> tuple[Rotation | None, Rotation | None]:
    """Rotations of [condition, known] and of [condition, all]; conditions stay unrotated."""
    if rotation is None:
        return None, None
    cos, sin = rotation
    ones, zeros = (
        cos.new_ones(prefix, cos.shape[-1]),
        cos.new_zeros(prefix, cos.shape[-1]),
    )
    batch = (len(ids), -1, -1)
    first = torch.cat([ones.expand(batch), cos[ids]], 1), torch.cat([zeros.expand(batch), sin[ids]], 1)
    return first, (torch.cat([ones, cos]), torch.cat([zeros, sin]))
