"""Strict reading of JSON from files that may be damaged; a UserError names the fault."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from par_agent.errors import UserError

DEEPEST = 64
"""Levels of lists and objects within each other."""
LARGEST = 2**64
"""Whole numbers must be smaller than this and larger than its negative."""


def parse_json(content: bytes | str, origin: str) -> Any:
    """Reads JSON text in UTF-8; ``origin`` says where it is from, for messages: a file's path, for example.

    No NaN or infinity, no numbers of more than 64 bits, no name twice in an object, no halves of surrogate pairs, no
    character NUL, and no nesting deeper than :data:`DEEPEST`.
    """
    try:
        text = content if isinstance(content, str) else content.decode()
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_whole, parse_float=_decimal
        )
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        if "\\u0000" in text:
            raise ValueError("a text holds the character NUL")
    except RecursionError:
        raise _invalid(origin, f"nested deeper than {DEEPEST} levels") from None
    except ValueError as error:  # also those of JSON and of Unicode
        raise _invalid(origin, str(error)) from None
    if _deeper(value, DEEPEST):
        raise _invalid(origin, f"nested deeper than {DEEPEST} levels")
    return value


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Reads ``key=value`` options; values are JSON where they parse as such (``4``, ``true``, ``null``), else text."""
    parsed: dict[str, Any] = {}
    for option in options:
        key, separator, text = option.partition("=")
        if not separator or not key.isidentifier():
            raise UserError(f"policy option {option!r} is not of the form key=value")
        if key in parsed:
            raise UserError(f"policy option {key!r} is given twice")
        try:
            parsed[key] = parse_json(text, key)
        except UserError:
            parsed[key] = text
    return parsed


def _invalid(origin: str, fault: str) -> UserError:
    return UserError(f"{origin} is not valid JSON ({fault}); it may be truncated or damaged: copy or make it again")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return content


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= LARGEST:
        raise ValueError(f"the number {digits[:20]}... has more than 64 bits")
    return int(digits)


def _decimal(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is out of range")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects stand more than so many levels deep within each other."""
    level = [value]
    for _ in range(levels + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return False
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return True
