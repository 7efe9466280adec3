"""The cache of a batch of rollouts, against a list per row that remembers the same physical tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from par_agent.modeling.attention_mask import physical_token_mask
from par_agent.modeling.kv_cache import KVCache

LAYERS, BATCH, HEADS, HEAD_DIM, PREFIX = 2, 3, 2, 4, 2
FRAME_TOKENS, ACTION_TOKENS = 2, 1
BLOCK = FRAME_TOKENS + ACTION_TOKENS


def make(slots: int) -> KVCache:
    cache = KVCache(LAYERS, BATCH, HEADS, HEAD_DIM, PREFIX, slots, BLOCK)
    for layer in range(LAYERS):
        prefix = torch.full((BATCH, HEADS, PREFIX, HEAD_DIM), -1.0 - layer)
        cache.write_prefix(layer, prefix, 10 * prefix)
    return cache


def window(age: int, slots: int) -> list[int]:
    """Numbers of the physical tokens that a row sees while its token number ``age`` is written."""
    return list(range(age + 1))[-slots:]


def write(cache: KVCache, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes each row's next token, all of whose keys are its number (values ten times that); returns what is visible.

    Returns:
        Keys (layer 0) and the mask (B, block, length).
    """
    mask = cache.block_mask(physical_token_mask(0, 1, FRAME_TOKENS, ACTION_TOKENS))
    for layer in range(LAYERS):
        block = numbers.float().view(-1, 1, 1, 1).expand(BATCH, HEADS, BLOCK, HEAD_DIM) + 100 * layer
        keys, values = cache.write_block(layer, block, 10 * block)
        assert keys.shape == (BATCH, HEADS, PREFIX + cache.slots * BLOCK, HEAD_DIM)
        seen = mask.any(2, keepdim=True).transpose(-1, -2).expand_as(keys)
        assert torch.equal(values[seen], 10 * keys[seen])
        if layer == 0:
            first = keys.clone()
    cache.advance()
    return first, mask[:, 0]


def visible(keys: torch.Tensor, mask: torch.Tensor, row: int, query: int) -> list[int]:
    return sorted(int(number) for number in keys[row, 0, mask[row, query], 0])


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_a_row_sees_the_prefix_and_its_newest_tokens(slots):
    cache = make(slots)
    for age in range(12):
        keys, mask = write(cache, torch.full((BATCH,), age))
        assert mask.shape == (BATCH, BLOCK, PREFIX + slots * BLOCK)
        past = [number for number in window(age, slots) if number != age]
        for row in range(BATCH):
            whole = [-1] * PREFIX + sorted(past * BLOCK)
            assert visible(keys, mask, row, 0) == whole + [age] * FRAME_TOKENS
            assert visible(keys, mask, row, 1) == whole + [age] * FRAME_TOKENS
            assert visible(keys, mask, row, 2) == whole + [age] * BLOCK


def test_layers_keep_their_own_keys():
    cache = make(3)
    for age in range(3):
        write(cache, torch.full((BATCH,), age))
    assert torch.equal(cache.keys[1, :, :, PREFIX:], cache.keys[0, :, :, PREFIX:] + 100)
    assert (cache.keys[1, :, :, :PREFIX] == -2).all() and (cache.values[1, :, :, :PREFIX] == -20).all()


@given(st.integers(1, 5), st.lists(st.sets(st.integers(0, BATCH - 1)), min_size=1, max_size=14))
def test_a_reset_row_starts_anew_and_the_others_do_not_notice(slots, resets):
    cache = make(slots)
    ages = torch.zeros(BATCH, dtype=torch.long)
    for rows in map(sorted, resets):
        cache.reset(torch.tensor(rows, dtype=torch.long))
        ages[rows] = 0
        assert torch.equal(cache.age, ages)
        keys, mask = write(cache, ages)
        for row, age in enumerate(ages.tolist()):
            past = sorted([number for number in window(age, slots) if number != age] * BLOCK)
            assert visible(keys, mask, row, BLOCK - 1) == [-1] * PREFIX + past + [age] * BLOCK
        ages += 1


@given(st.integers(1, 4), st.integers(0, 9), st.sets(st.integers(0, BATCH - 1), min_size=1))
def test_rows_that_act_alone_and_come_back_are_as_if_all_had_acted(slots, age, chosen):
    together, apart = make(slots), make(slots)
    for cache in (together, apart):
        for step in range(age):
            write(cache, torch.full((BATCH,), step))
    rows = torch.tensor(sorted(chosen))
    part = apart.take(rows)
    alone = torch.full((len(rows), HEADS, BLOCK, HEAD_DIM), float(age))
    for layer in range(LAYERS):
        part.write_block(layer, alone + 100 * layer, 10 * (alone + 100 * layer))
    part.advance()
    apart.put(rows, part)
    write(together, torch.full((BATCH,), age))
    for name in ("keys", "values"):
        assert torch.equal(getattr(apart, name)[:, rows], getattr(together, name)[:, rows])
    assert torch.equal(apart.age[rows], together.age[rows]) and torch.equal(apart.filled[rows], together.filled[rows])
    others = [row for row in range(BATCH) if row not in chosen]
    assert (apart.age[others] == age).all()


def test_nothing_but_the_prefix_is_visible_before_the_first_token():
    cache = make(4)
    mask = cache.block_mask(torch.ones(BLOCK, BLOCK, dtype=torch.bool))
    assert mask.shape == (BATCH, 1, BLOCK, PREFIX + 4 * BLOCK)
    assert mask[..., : PREFIX + BLOCK].all() and not mask[..., PREFIX + BLOCK :].any()


def test_the_dtype_is_the_one_asked_for():
    cache = KVCache(1, 1, 1, 2, 0, 1, 1, dtype=torch.bfloat16)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
