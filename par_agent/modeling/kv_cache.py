"""Keys and values of a rollout's past, for a batch of environments of different ages."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values: the prefix, then ``slots`` physical tokens a row.

    Every row has its own age. The slots are a ring: past its size, each physical token takes the place of the oldest.
    A row therefore sees its last ``slots`` physical tokens, as the mask of training shows them
    (:func:`~par_agent.modeling.attention_mask.limit_context`).

    Args:
        layers, batch, heads, head_dim: Sizes of the encoder.
        prefix: Prefix tokens.
        slots: Physical tokens kept.
        block: Tokens of one physical token.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, head_dim: int, prefix: int, slots: int, block: int,
        device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.prefix, self.slots, self.block = prefix, slots, block
        length = prefix + slots * block
        self.keys = torch.zeros(layers, batch, heads, length, head_dim, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.age = torch.zeros(batch, dtype=torch.long, device=device)
        self.filled = torch.zeros(batch, slots, dtype=torch.bool, device=device)

    def reset(self, rows: Tensor) -> None:
        """Forgets everything but the prefix of some rows; ``rows``: (k,) int64."""
        self.age[rows] = 0
        self.filled[rows] = False

    def take(self, rows: Tensor) -> KVCache:
        """A copy of some rows (k,) int64, as a cache of its own; :meth:`put` brings it back."""
        part = object.__new__(KVCache)
        part.prefix, part.slots, part.block = self.prefix, self.slots, self.block
        part.keys, part.values = self.keys[:, rows], self.values[:, rows]
        part.age, part.filled = self.age[rows], self.filled[rows]
        return part

    def put(self, rows: Tensor, part: KVCache) -> None:
        """Stores what :meth:`take` gave for the same rows."""
        self.keys[:, rows], self.values[:, rows] = part.keys, part.values
        self.age[rows], self.filled[rows] = part.age, part.filled

    def next_slots(self) -> Tensor:
        """Slot (B,) int64 that each row's next physical token goes to."""
        return self.age % self.slots

    def write_prefix(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Stores the prefix's keys and values (B, heads, prefix, head_dim)."""
        self.keys[layer, :, :, : self.prefix] = keys
        self.values[layer, :, :, : self.prefix] = values

    def write_block(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores one physical token (B, heads, block, head_dim) in every row's next slot.

        Returns:
            All keys and values of the layer (B, heads, prefix + slots * block, head_dim); hide the empty slots with
            :meth:`block_mask`.
        """
        rows = torch.arange(len(self.age), device=self.age.device)[:, None]
        columns = (
            self.prefix + self.next_slots()[:, None] * self.block + torch.arange(self.block, device=self.age.device)
        )
        self.keys[layer, rows, :, columns] = keys.transpose(1, 2)
        self.values[layer, rows, :, columns] = values.transpose(1, 2)
        return self.keys[layer], self.values[layer]

    def block_mask(self, inside: Tensor) -> Tensor:
        """Mask of the next physical token over the whole cache.

        Args:
            inside: (block, block) bool, who sees whom inside one physical token.

        Returns:
            (B, 1, block, prefix + slots * block) bool.
        """
        batch, slots = self.filled.shape
        mine = torch.zeros_like(self.filled)
        mine[torch.arange(batch, device=mine.device), self.next_slots()] = True
        past = (self.filled & ~mine)[:, None, :, None].expand(batch, self.block, slots, self.block)
        now = mine[:, None, :, None] & inside[None, :, None, :]
        steps = (past | now).flatten(2)
        return torch.cat([steps.new_ones(batch, self.block, self.prefix), steps], 2)[:, None]

    def advance(self) -> None:
        """Counts the physical token that all layers have written."""
        self.filled[torch.arange(len(self.age), device=self.age.device), self.next_slots()] = True
        self.age += 1
