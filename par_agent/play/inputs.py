"""Checks of what a request to the page holds."""

from __future__ import annotations

from typing import Any

from par_agent.errors import UserError
from par_agent.utils.json_fields import fits, short

FARTHEST = 1e6
"""Pixels from an image's corner at which nothing is shown any more."""


def whole(name: str, value: Any) -> int:
    """A whole number, which may come as a float; raises UserError for anything else."""
    if not fits(value, float) or abs(value) > 2**53 or value != int(value):
        raise UserError(f"{name} is {short(value)}; it must be a whole number")
    return int(value)


def pixel(value: Any) -> tuple[float, float]:
    """A place [x, y] in an image, pixels; raises UserError for anything else."""
    if not fits(value, tuple[float, float]) or max(map(abs, value)) > FARTHEST:
        raise UserError(f"{short(value)} is no place in the image; it must be [x, y] in pixels")
    return float(value[0]), float(value[1])
