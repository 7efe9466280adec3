"""Rows of a batch of environments, and the randomness of each; what is none is a :class:`UserError`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from par_agent.errors import UserError
from par_agent.modeling.random_numbers import seeded_generator
from par_agent.policy.observations import as_tensor

_ROW_NUMBERS = (torch.int8, torch.int16, torch.int32, torch.int64)


def checked_seed(seed: Any) -> int:
    """The seed as a number."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise UserError(f"seed is {seed!r}; it must be a whole number, 0 or more")
    return number


def row_generator(seed: int, row: int) -> torch.Generator:
    """A generator for one row: each has its own, so that a row acts the same in any batch."""
    mixed = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0]
    return seeded_generator(int(mixed) >> 1)


def chosen_rows(env_idx: Tensor | Sequence[int] | int, count: int | None, device: torch.device) -> Tensor:
    """Rows (n,) int64 that ``env_idx`` names, on ``device``.

    ``env_idx`` holds row numbers, each once, or is a mask (count,) bool. Whole numbers are always row numbers;
    ``uint8`` and floats are neither. ``count`` is the number of environments; None: it is not known, and not compared.
    """
    rows = as_tensor(env_idx, "env_idx")
    known = "" if count is None else f"; there are {count} environments"
    if rows.dtype == torch.bool:
        if rows.ndim != 1 or (count is not None and len(rows) != count):
            raise UserError(f"env_idx is a mask of shape {tuple(rows.shape)}; expected one bool per environment{known}")
        return rows.nonzero()[:, 0].to(device)
    if rows.shape == (0,):
        return torch.zeros(0, dtype=torch.long, device=device)
    if rows.ndim > 1 or rows.dtype not in _ROW_NUMBERS:
        raise UserError(
            f"env_idx is {rows.dtype} of shape {tuple(rows.shape)}; expected row numbers, as int64 in one dimension, "
            "or a mask with one bool per environment (done flags of another type: flags > 0)"
        )
    rows = rows.reshape(-1).long()
    if len(rows.unique()) < len(rows):
        raise UserError(
            f"env_idx {rows.tolist()} names a row twice; if these are done flags, give them as bool: flags > 0"
        )
    if int(rows.min()) < 0 or (count is not None and int(rows.max()) >= count):
        raise UserError(f"env_idx {rows.tolist()} names rows that do not exist{known}")
    return rows.to(device)
