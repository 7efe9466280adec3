"""Attention weights of the causal transformer (the paper's Figure 5), computed beside the fast path.

Fused attention never holds its weights; here they are computed once more from the same queries and keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from par_agent.modeling.attention_mask import physical_token_mask
from par_agent.modeling.blocks import Block
from par_agent.modeling.kv_cache import KVCache
from par_agent.modeling.par import PARModel, PARStream, PhysicalTokens


@dataclass(frozen=True)
class AttentionMaps:
    """Who attends to what while one physical token is read."""

    weights: Tensor
    """(layers, B, heads, F + L, S) float32 with ``S = prefix + slots * (F + L)``; a query's weights sum to 1."""
    steps: Tensor
    """(B, slots) int64: step that each slot holds, the one being read included; -1: nothing yet."""
    prefix: int
    """Prefix tokens, the instruction's first."""
    patches: tuple[int, int]
    """Rows and columns of the patches that each block of ``F + L`` begins with."""
    frame_tokens: int
    """Patches, and one token of joint positions where the model has it (``F``)."""

    @property
    def block(self) -> int:
        """Tokens of one physical token, ``F + L``."""
        return int(self.weights.shape[3])

    def tokens(self, slot: int) -> slice:
        """Where the ``F + L`` tokens of a slot lie among those attended to."""
        first = self.prefix + slot * self.block
        return slice(first, first + self.block)


@torch.no_grad()
def step_attention(model: PARModel, stream: PARStream, inputs: PhysicalTokens) -> AttentionMaps:
    """The weights with which :meth:`~par_agent.modeling.par.PARModel.step` reads its next physical token.

    Args:
        model: the model.
        stream: the past; it stays as it is.
        inputs: (N = 1) the physical token of every row.

    Raises:
        ValueError: the model has no transformer (ablation PAR-NoAR).
    """
    transformer = model.nova.video_encoder
    if not transformer.blocks:
        raise ValueError(f"{model.config.name} has no transformer, and so no attention to show")
    cache = stream.cache.take(torch.arange(len(stream.cache.age), device=stream.cache.age.device))
    steps = cache.age[:, None]
    x = model.tokens(inputs, steps)[:, 0]
    inside = physical_token_mask(0, 1, model.frame_tokens, model.config.action.chunk_length, x.device)
    mask, rotation = cache.block_mask(inside), model.rotation(steps)
    weights = []
    for layer, block in enumerate(transformer.blocks):
        assert isinstance(block, Block)
        queries, keys, values = block.attn.project(x, rotation)
        keys, _ = cache.write_block(layer, keys, values)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        weights.append(scores.float().masked_fill(~mask, float("-inf")).softmax(-1))
        x = block.step(x, mask, rotation, cache, layer)
    return AttentionMaps(
        torch.stack(weights), _steps_held(cache), cache.prefix, model.config.nova.video_grid, model.frame_tokens
    )


def _steps_held(cache: KVCache) -> Tensor:
    """(B, slots) int64 steps in the slots once the next physical token is written; -1: nothing."""
    slots = torch.arange(cache.slots, device=cache.age.device)
    age = cache.age[:, None]
    latest = age - (age - slots) % cache.slots
    return torch.where(latest >= 0, latest, -1)
