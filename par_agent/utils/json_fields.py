"""Reads JSON strictly, checks it against annotations and makes frozen dataclasses of it; a UserError names each fault.

Supported: JSON types, ``Path``, ``tuple`` (a JSON list), ``Literal``, unions, ``list[X]``, ``dict[str, X]``,
dataclasses, TypedDicts (extra keys allowed), and any of these or None.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from par_agent.errors import UserError, user_errors

T = TypeVar("T")
DEEPEST = 64
"""Levels of lists and objects within each other."""
LARGEST = 2**64
"""Whole numbers must be smaller than this and larger than its negative."""
NAMES = {
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    Path: "a path",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


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
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
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


def build(cls: type[T], content: Any, added: Collection[str] | None = None) -> T:
    """Makes a dataclass from JSON: objects become the dataclasses that its fields name, lists become tuples.

    ``added`` are the only fields that may be missing, at any depth, because files of older versions lack them; None:
    all that have a default.
    """
    assert dataclasses.is_dataclass(cls)
    name, hints = cls.__name__, field_hints(cls)
    check(name, content, dict)
    if unknown := sorted(set(content) - set(hints)):
        raise UserError(
            f"unknown fields in {name}: {', '.join(unknown)}; known: {', '.join(sorted(hints))}. If a newer version "
            "wrote them: update par_agent"
        )
    required = (
        required_fields(cls) if added is None else [f.name for f in dataclasses.fields(cls) if f.name not in added]
    )
    if missing := sorted(field for field in required if field not in content):
        raise UserError(f"missing fields in {name}: {', '.join(missing)}")
    values = {field: check(f"{name}.{field}", value, hints[field], added) for field, value in content.items()}
    with user_errors(f"{name}: "):
        return cls(**values)


@functools.cache
def field_hints(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, with what is annotated to them."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def required_fields(cls: type) -> list[str]:
    """Names of a dataclass's fields without a default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]


def check(name: str, value: Any, hint: Any, added: Collection[str] | None = None) -> Any:
    """Checks a JSON value against an annotation, and returns it as that says: as a dataclass, a tuple or a path.

    ``name`` is the value's name in messages; for ``added`` see :func:`build`.
    """
    kind, parts = _parts(hint)
    if kind is Union and (nested := [part for part in parts if _has_entries(part)]):
        return None if value is None and type(None) in parts else check(name, value, nested[0], added)
    if not _has_entries(hint):
        if fits(value, hint):
            return _converted(value, hint)
        raise UserError(f"{name} is {short(value)}; expected {describe(hint)}")
    if dataclasses.is_dataclass(kind):
        return build(kind, value, added)  # type: ignore[arg-type]
    check(name, value, list if kind is list else dict)
    if kind is list:
        for number, entry in enumerate(value):
            check(f"{name}[{number}]", entry, parts[0])
        return value
    if is_typeddict(kind) and (missing := sorted(kind.__required_keys__ - set(value))):
        raise UserError(f"{name} lacks {', '.join(missing)}")
    hints = dict.fromkeys(value, parts[1]) if kind is dict else get_type_hints(kind)
    for key, part in hints.items():
        if key in value:
            check(f"{name}.{key}", value[key], part)
    return value


def _has_entries(hint: Any) -> bool:
    kind, parts = _parts(hint)
    return dataclasses.is_dataclass(kind) or is_typeddict(kind) or (kind in (list, dict) and bool(parts))


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number of at least 1."""
    return type(value) is int and value >= 1


def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type and the arguments of an annotation, without ``Annotated``; ``X | Y`` is a ``Union`` too."""
    if get_origin(hint) is Annotated:
        return _parts(get_args(hint)[0])
    kind = get_origin(hint) or hint
    return Union if kind is types.UnionType else kind, get_args(hint)


def short(value: Any) -> str:
    """What a message shows of a value."""
    text = repr(value)
    return f"{text[:60]}{'...' * (len(text) > 60)}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a type as :func:`check` takes it; any value is of a type that JSON does not have."""
    kind, parts = _parts(hint)
    if kind is Union:
        return any(fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is tuple:
        same_length = isinstance(value, list | tuple) and len(value) == len(entry_hints(value, parts))
        return same_length and all(map(fits, value, entry_hints(value, parts)))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind not in NAMES:
        return True
    return isinstance(value, str | Path if kind is Path else kind) and (kind is bool or not isinstance(value, bool))


def describe(hint: Any) -> str:
    """The values of an annotation in words."""
    kind, parts = _parts(hint)
    if kind in (Union, Literal):
        return " or ".join(map(describe if kind is Union else repr, parts))
    if kind is tuple and parts[-1] is Ellipsis:
        return f"a list, each entry {describe(parts[0])}"
    if kind is tuple:
        return f"a list of {len(parts)}: {', '.join(map(describe, parts))}"
    return NAMES.get(kind, "an object")


def _converted(value: Any, hint: Any) -> Any:
    kind, parts = _parts(hint)
    if kind is Union:
        return _converted(value, next(part for part in parts if fits(value, part)))
    if kind is tuple:
        return tuple(map(_converted, value, entry_hints(value, parts)))
    return Path(value) if kind is Path else value


def entry_hints(values: Sequence[Any], parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The annotation of each entry of a tuple."""
    return parts[:1] * len(values) if parts[-1] is Ellipsis else parts
