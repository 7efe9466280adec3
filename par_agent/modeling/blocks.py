"""Attention, MLP, and the transformer block with the norm after each branch, as in NOVA."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from par_agent.modeling.config import EncoderConfig
from par_agent.modeling.kv_cache import KVCache
from par_agent.modeling.rope import Rotation, rotate

SHORT = 256
"""Keys up to which scores are written out where that is faster."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Values (B, heads, S, head_dim) gathered for queries (B, heads, S, head_dim); ``mask`` True: may attend.

    On the CPU the backward pass of PyTorch's fused attention is slow for short sequences, up to ten times slower in
    bfloat16 than plain matrix products over scores that are kept; there training writes the scores out.
    """
    if q.device.type != "cpu" or not q.requires_grad or k.shape[2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


KeysAndValues = list[tuple[Tensor, Tensor]]
"""Cross-attention keys and values (B, heads, L, head_dim) of every block."""


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, S, head_dim) of tokens (B, S, D), rotated where asked."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return (q, k, v) if rotation is None else (rotate(q, rotation), rotate(k, rotation), v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention output (B, S, D); ``mask`` True: may attend."""
        return self.proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, mask: Tensor | None = None, rotation: Rotation | None = None) -> Tensor:
        return self.attend(*self.project(x, rotation), mask)


class CrossAttention(nn.Module):
    """Attention of actions to conditions whose keys and values were computed before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def keys_and_values(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B, heads, S, head_dim) each, of conditions (B, S, D)."""
        k, v = self.kv(z).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """``x + norm1(attention(x))``, then ``x + norm2(mlp(x))``; nothing is normalised before a branch."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_ratio * config.width)
        self.norm2 = nn.LayerNorm(config.width)
        for norm in (self.norm1, self.norm2):
            nn.init.constant_(norm.weight, config.branch_start)

    def forward(self, x: Tensor, mask: Tensor | None = None, rotation: Rotation | None = None) -> Tensor:
        """Tokens (B, S, D) to tokens; ``mask`` broadcasts to (B, heads, S, S), True: may attend."""
        x = x + self.norm1(self.attn(x, mask, rotation))
        return x + self.norm2(self.mlp(x))

    def step(self, x: Tensor, mask: Tensor, rotation: Rotation | None, cache: KVCache, layer: int) -> Tensor:
        """One physical token (B, block, D) against the cached past."""
        q, k, v = self.attn.project(x, rotation)
        keys, values = cache.write_block(layer, k, v)
        x = x + self.norm1(self.attn.attend(q, keys, values, mask))
        return x + self.norm2(self.mlp(x))

    def prefill(self, x: Tensor, rotation: Rotation | None, cache: KVCache, layer: int) -> Tensor:
        """The prefix (B, S, D), which sees only itself."""
        q, k, v = self.attn.project(x, rotation)
        cache.write_prefix(layer, k, v)
        x = x + self.norm1(self.attn.attend(q, k, v, None))
        return x + self.norm2(self.mlp(x))


def run_blocks(
    blocks: Iterable[nn.Module], x: Tensor, mask: Tensor | None, rotation: Rotation | None, recompute: bool
) -> Tensor:
    """Tokens (B, S, D) through several blocks; see :meth:`Block.forward`.

    ``recompute``: nothing inside a block is kept for the backward pass, which computes it again.
    """
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            x = checkpoint(block, x, mask, rotation, use_reentrant=False)
        else:
            x = block(x, mask, rotation)
    return x
