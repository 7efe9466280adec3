"""The causal mask over physical tokens (paper section 4.2.4, Figure 3), for training and inference alike."""

from __future__ import annotations

import torch
from torch import Tensor


def physical_token_mask(
    prefix: int, steps: int, frame_tokens: int, action_tokens: int, device: torch.device | str | None = None
) -> Tensor:
    """Which token (row) may attend to which (column): ``prefix`` tokens, then ``steps`` physical tokens ``[O_n; A_n]``.

    A frame's tokens see the prefix, all earlier physical tokens and one another, never an action of their own step. An
    action token sees all that, its own step's frame (the imagined next frame: implicit inverse kinematics) and the
    actions of its chunk up to itself. The prefix sees only itself.

    With 1 prefix token, 2 steps, 1 frame token and 2 action tokens::

              t  O0 A0 A0 O1 A1 A1
        t     1  .  .  .  .  .  .
        O0    1  1  .  .  .  .  .
        A0    1  1  1  .  .  .  .
        A0    1  1  1  1  .  .  .
        O1    1  1  1  1  1  .  .
        A1    1  1  1  1  1  1  .
        A1    1  1  1  1  1  1  1

    Returns:
        (S, S) bool with ``S = prefix + steps * (frame_tokens + action_tokens)``; True: may attend.
    """
    block = frame_tokens + action_tokens
    position = torch.arange(prefix + steps * block, device=device) - prefix
    step = torch.where(position < 0, -1, position // block)
    inside = torch.where(position < 0, -1, position % block)
    is_frame = inside < frame_tokens
    order = torch.where(is_frame, torch.full_like(inside, -1), inside)
    earlier = step[:, None] > step[None, :]
    same = (step[:, None] == step[None, :]) & (order[:, None] >= order[None, :])
    return earlier | same


def limit_context(mask: Tensor, context: Tensor, prefix: int, block: int) -> Tensor:
    """Narrows a mask so that step ``n`` of row ``b`` sees only its last ``context[b, n]`` steps and the prefix.

    Args:
        mask: (S, S) bool from :func:`physical_token_mask`.
        context: (B, N) int, at least 1 (a step always sees itself).
        prefix: Prefix tokens.
        block: Tokens of one physical token.

    Returns:
        (B, 1, S, S) bool, ready for ``scaled_dot_product_attention``.
    """
    position = torch.arange(mask.shape[0], device=mask.device) - prefix
    step = torch.where(position < 0, -1, position // block)
    oldest = torch.arange(context.shape[1], device=mask.device) - context + 1
    oldest_of_query = torch.cat([oldest.new_zeros(len(oldest), prefix), oldest.repeat_interleave(block, 1)], 1)
    recent = (step[None, None, :] >= oldest_of_query[:, :, None]) | (step < 0)[None, None, :]
    return (mask[None] & recent)[:, None]


def block_causal_mask(prefix: int, slots: int, tokens: int, device: torch.device | str | None = None) -> Tensor:
    """NOVA's mask: a slot sees itself and all before it; the prefix and slot 0 see each other.

    With 1 prefix token, 3 slots and 1 token a slot::

           t  0  1  2
        t  1  1  .  .
        0  1  1  .  .
        1  1  1  1  .
        2  1  1  1  1

    Returns:
        (S, S) bool with ``S = prefix + slots * tokens``; True: may attend.
    """
    number = torch.arange(slots, device=device).repeat_interleave(tokens)
    number = torch.cat([number.new_zeros(prefix), number])
    return number[:, None] >= number[None, :]
