"""Dataclasses that check themselves: the annotation of a field says which values it takes.

::

    @dataclass(frozen=True)
    class Config(Checked):
        steps: Count = 100
        ema: Annotated[float, Range(0, 1)] = 0.99
        crop: tuple[Offset, Offset, Pixels, Pixels] | None = None
        conditions: Literal["actions", "token"] = "actions"
        logging: LoggingConfig = LoggingConfig()  # a dataclass of further options: a Group

On the command line and in JSON files the options of groups stand beside those of the dataclass itself.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from par_agent.errors import UserError, user_errors
from par_agent.utils.json_fields import describe, entry_hints, field_hints, fits, short

C = TypeVar("C", bound="Checked")
MANY = 10**9
"""Upper limit of numbers that have no limit of their own."""


@dataclass(frozen=True)
class Range:
    """Numbers from a lowest to a highest one."""

    lowest: float
    highest: float = MANY
    above: bool = False
    """Whether the lowest is itself out of range."""
    below: bool = False
    """Whether the highest is itself out of range."""

    def __contains__(self, value: float) -> bool:
        low = value > self.lowest if self.above else value >= self.lowest
        return low and (value < self.highest if self.below else value <= self.highest)

    def allowed(self, value: float) -> str:
        """What is allowed in place of a value out of range, in words."""
        low = f"{'above' if self.above else 'at least'} {_short(self.lowest)}"
        high = f"{'below' if self.below else 'at most'} {_short(self.highest)}"
        if self.highest <= 1:
            return f"{low} and {high}" if self.below else f"from {_short(self.lowest)} to {_short(self.highest)}"
        return low if value < self.highest else high


@dataclass(frozen=True)
class Pattern:
    """Text of one form."""

    expression: str
    """Regular expression of the whole text."""
    form: str
    """The form in words."""

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(self.expression, value) is not None

    def allowed(self, value: str) -> str:
        """What is allowed in place of text of another form, in words."""
        return self.form


class MayBeEmpty:
    """Marks texts and lists that may be empty."""


Count = Annotated[int, Range(1)]
NonNegative = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Length = Annotated[int, Range(1, 10_000)]
SmallCount = Annotated[int, Range(1, 1024)]
Size = Annotated[int, Range(1, 2**20)]
Sizes = Annotated[tuple[Size, ...], MayBeEmpty]
Pixels = Annotated[int, Range(1, 16_384)]
Offset = Annotated[int, Range(0, 16_383)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Minutes = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelow1 = Annotated[float, Range(0, 1, below=True)]
Strength = Annotated[float, Range(0, 1000)]
ClusterAddress = Annotated[
    str,
    Pattern(r"auto|(ray://)?([^\s/:]+|\[[\da-fA-F:]+\]):\d{1,5}", "HOST:PORT of a Ray cluster's head, or auto"),
]


class Checked:
    """Base of frozen dataclasses: values are of the annotated types and in their ranges, and no text or list is empty.

    What is not is a UserError that names the field. Numbers are finite.
    """

    out_is_file: ClassVar[bool] = False
    """Whether the option ``out`` names a file, and no folder."""

    def __post_init__(self) -> None:
        hints = field_hints(type(self))  # type: ignore[arg-type]
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            name, value, hint = field.name, getattr(self, field.name), hints[field.name]
            if not fits(value, hint):
                raise UserError(f"{name} is {short(value)}; expected {describe(hint)}")
            # () is allowed where it is the default, or None is
            if value == () and field.default not in ((), None) and MayBeEmpty not in get_args(hint):
                raise UserError(f"{name} is empty; leave it out, or give it a value")
            for part, rules in _values(value, hint):
                _check(name, value, part, rules)


class Group(Checked):
    """Options of a part: in files and on the command line they stand beside those of the dataclass that has them."""


def is_group(hint: Any) -> bool:
    """Whether a field holds further options."""
    return isinstance(hint, type) and issubclass(hint, Group)


def option_hints(cls: type) -> dict[str, Any]:
    """The annotations of all options of a dataclass and its groups, by the options' names."""
    found: dict[str, Any] = {}
    for name, hint in field_hints(cls).items():
        found |= option_hints(hint) if is_group(hint) else {name: hint}
    return found


def option_values(config: Any) -> dict[str, Any]:
    """The values of all options of a dataclass and its groups, by the options' names."""
    found: dict[str, Any] = {}
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        found |= option_values(value) if isinstance(value, Group) else {option.name: value}
    return found


def from_options(cls: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of :func:`option_values`; options that are not given have their defaults."""
    given: dict[str, Any] = {}
    for name, hint in field_hints(cls).items():  # type: ignore[arg-type]
        if is_group(hint):
            given[name] = from_options(hint, values)
        elif name in values:
            given[name] = values[name]
    with user_errors():
        return cls(**given)


def _values(value: Any, hint: Any, rules: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The single values that a field consists of, each with what is annotated to it."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        yield from _values(value, parts[0], parts[1:])
    elif kind in (Union, types.UnionType):
        yield from _values(value, next(part for part in parts if fits(value, part)), rules)
    elif kind is tuple:
        for part, of_part in zip(value, entry_hints(value, parts), strict=True):
            yield from _values(part, of_part)
    else:
        yield value, rules


def _check(name: str, value: Any, part: Any, rules: tuple[Any, ...]) -> None:
    """Checks one of the values of a field."""
    each = "each" if isinstance(value, list | tuple) else "it"
    if isinstance(part, str | Path):
        if "\0" in str(part):
            raise UserError(f"{name} is {str(part)!r}; {each} must not contain a NUL character")
        if not str(part).strip() and MayBeEmpty not in rules:
            raise UserError(f"{name} is empty; leave it out, or give it a value")
    for rule in rules:
        if isinstance(rule, Range | Pattern) and part is not None and part not in rule:
            raise UserError(f"{name} is {short(value)}; {each} must be {rule.allowed(part)}")


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
