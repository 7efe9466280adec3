"""Every row of the causal mask, against the paper's rule (section 4.2.4, Figure 3) written down a second time."""

from __future__ import annotations

import pytest
import torch

from par_agent.modeling.attention_mask import block_causal_mask, limit_context, physical_token_mask

SIZES = [(1, 2, 1, 2), (3, 4, 5, 2), (0, 3, 2, 3), (4, 1, 1, 1), (2, 3, 4, 1), (5, 2, 1, 4)]


def tokens(prefix: int, steps: int, frame_tokens: int, action_tokens: int) -> list[tuple[str, int, int]]:
    """(kind, step, position inside its kind) of every token of the sequence, in order."""
    sequence = [("text", -1, i) for i in range(prefix)]
    for n in range(steps):
        sequence += [("frame", n, i) for i in range(frame_tokens)]
        sequence += [("action", n, i) for i in range(action_tokens)]
    return sequence


def may_attend(row: tuple[str, int, int], column: tuple[str, int, int]) -> bool:
    kind, n, position = row
    other, m, other_position = column
    if kind == "text" or other == "text":
        return other == "text"
    if m != n:
        return m < n
    return {
        ("frame", "frame"): True,
        ("frame", "action"): False,
        ("action", "frame"): True,
        ("action", "action"): other_position <= position,
    }[kind, other]


@pytest.mark.parametrize("sizes", SIZES)
def test_every_row_follows_the_papers_rule(sizes):
    sequence = tokens(*sizes)
    mask = physical_token_mask(*sizes)
    assert mask.dtype == torch.bool and mask.shape == (len(sequence), len(sequence))
    for row, attended in zip(sequence, mask.tolist(), strict=True):
        assert attended == [may_attend(row, column) for column in sequence], row


def test_the_drawn_example_is_the_mask():
    drawing = [line.split()[1:] for line in physical_token_mask.__doc__.splitlines() if {"1", "."} & set(line.split())]
    drawing = [line for line in drawing if len(line) == 7]
    expected = torch.tensor([[cell == "1" for cell in line] for line in drawing])
    assert torch.equal(physical_token_mask(1, 2, 1, 2), expected)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_shorter_sequence_has_the_same_rows(steps):
    """Incremental inference: what a step sees does not depend on what comes after it."""
    longer, shorter = physical_token_mask(3, 4, 2, 3), physical_token_mask(3, steps, 2, 3)
    size = len(shorter)
    assert torch.equal(longer[:size, :size], shorter)
    assert not longer[:size, size:].any()


@pytest.mark.parametrize("sizes", SIZES)
def test_a_limited_context_hides_older_steps_and_nothing_else(sizes):
    prefix, steps, frame_tokens, action_tokens = sizes
    sequence = tokens(*sizes)
    context = torch.randint(1, steps + 1, (4, steps), generator=torch.Generator().manual_seed(0))
    limited = limit_context(physical_token_mask(*sizes), context, prefix, frame_tokens + action_tokens)
    assert limited.shape == (4, 1, len(sequence), len(sequence))
    for b in range(4):
        for row, attended in zip(sequence, limited[b, 0].tolist(), strict=True):

            def remembered(column, row=row, b=b):
                return column[0] == "text" or row[0] == "text" or column[1] > row[1] - int(context[b, row[1]])

            assert attended == [may_attend(row, column) and remembered(column) for column in sequence], (b, row)


def test_a_context_of_all_steps_changes_nothing():
    mask = physical_token_mask(2, 4, 3, 2)
    limited = limit_context(mask, torch.tensor([[4, 4, 4, 4], [1, 2, 3, 4]]), 2, 5)
    assert torch.equal(limited, mask.expand(2, 1, -1, -1))


def test_novas_slots_see_all_before_them_and_the_prefix_sees_slot_0():
    prefix, slots, patches = 2, 3, 2
    slot = [0] * prefix + [n for n in range(slots) for _ in range(patches)]
    expected = torch.tensor([[column <= row for column in slot] for row in slot])
    assert torch.equal(block_causal_mask(prefix, slots, patches), expected)
    assert expected[0, prefix] and not expected[0, prefix + patches]
