"""Numbers that a request to the page holds, whoever sent it."""

from __future__ import annotations

from typing import Any

from par_agent.errors import UserError

FARTHEST = 1e6
"""Pixels from an image's corner at which nothing is shown any more."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(name: str, value: Any) -> int:
    """A whole number, which may come as a float.

    Raises:
        UserError: it is something else.
    """
    if not _is_number(value) or not abs(value) <= 2**53 or value != int(value):  # also what is not a number
        raise UserError(f"{name} is {short(value)}; it must be a whole number")
    return int(value)


def pixel(value: Any) -> tuple[float, float]:
    """A place [x, y] in an image, pixels.

    Raises:
        UserError: it is something else.
    """
    fits = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    if not fits or not all(abs(number) <= FARTHEST for number in value):
        raise UserError(f"{short(value)} is no place in the image; it must be [x, y] in pixels")
    return float(value[0]), float(value[1])


def short(value: Any) -> str:
    """What a message shows of a value."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
