"""Causal transformer (paper section 4.2.1; NOVA's temporal encoder): reads text and physical tokens, one block after
another."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from par_agent.modeling.blocks import Block, run_blocks
from par_agent.modeling.config import EncoderConfig
from par_agent.modeling.embeddings import PatchEmbedding
from par_agent.modeling.kv_cache import KVCache
from par_agent.modeling.rope import Rotation


class Mixer(nn.Module):
    """NOVA's scaling-and-shift layer: a later frame's condition is the first slot's output, modulated by its own.

    Args:
        width: token width ``D``.
        rank: width of the bottleneck; negative: none.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.lora = nn.Linear(width, rank, bias=False) if rank > 0 else nn.Identity()
        self.proj = nn.Linear(rank if rank > 0 else width, 2 * width)

    def forward(self, first: Tensor, later: Tensor) -> Tensor:
        """Condition of ``later``'s shape (..., F, D) from slot 0's output ``first``, which broadcasts to it."""
        scale, shift = self.proj(self.lora(F.silu(later))).chunk(2, -1)
        return first * (1 + scale) + shift


class CausalTransformer(nn.Module):
    """Blocks over one sequence of prefix and physical tokens."""

    def __init__(
        self,
        config: EncoderConfig,
        channels: int,
        patch: int,
        mixer_rank: int | None,
        stem_widths: tuple[int, ...] = (),
        cameras: int = 1,
    ) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.patch_embed = PatchEmbedding(channels, patch, config.width, stem_widths, cameras)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.mixer = None if mixer_rank is None else Mixer(config.width, mixer_rank)

    def forward(self, x: Tensor, mask: Tensor | None = None, rotation: Rotation | None = None) -> Tensor:
        """Outputs (B, S, D) of a whole sequence (B, S, D); ``mask`` broadcasts to (B, heads, S, S), True: may
        attend."""
        return self.norm(run_blocks(self.blocks, x, mask, rotation, self.recompute))

    def prefill(self, x: Tensor, rotation: Rotation | None, slots: int, block: int) -> tuple[Tensor, KVCache]:
        """Outputs (B, S, D) of the prefix, which sees only itself, and a cache that holds its keys and values.

        Args:
            x: (B, S, D) the prefix.
            rotation: its cosines and sines.
            slots: physical tokens that the cache is to remember.
            block: tokens of one physical token.
        """
        config, (batch, length, _) = self.config, x.shape
        cache = KVCache(config.depth, batch, config.heads, config.head_dim, length, slots, block, x.device, x.dtype)
        for layer, module in enumerate(self.blocks):
            assert isinstance(module, Block)
            x = module.prefill(x, rotation, cache, layer)
        return self.norm(x), cache

    def step(self, x: Tensor, inside: Tensor, rotation: Rotation | None, cache: KVCache) -> Tensor:
        """Outputs (B, block, D) of one physical token against the cached past.

        Args:
            x: (B, block, D) its tokens.
            inside: (block, block) bool, who sees whom among them.
            rotation: their cosines and sines.
            cache: the past; the new token is added to it.
        """
        mask = cache.block_mask(inside)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x = block.step(x, mask, rotation, cache, layer)
        cache.advance()
        return self.norm(x)
