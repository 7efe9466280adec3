"""Dataclasses of options that check themselves: the annotation of a field says which values it takes.

::

    @dataclass(frozen=True)
    class Config(Checked):
        steps: Count = 100
        ema: Annotated[float, Range(0, 1)] = 0.99
        crop: tuple[Offset, Offset, Pixels, Pixels] | None = None
        logging: LoggingConfig = field(default_factory=LoggingConfig)  # a group: another Checked dataclass

On the command line and in JSON files the options of groups stand beside those of the dataclass itself.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from par_agent.errors import UserError, user_errors
from par_agent.utils.json_fields import entry_hints

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
    allowed: str
    """The form in words."""


class MayBeEmpty:
    """Marks text that may be empty."""


Count = Annotated[int, Range(1)]
NonNegative = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Length = Annotated[int, Range(1, 10_000)]
SmallCount = Annotated[int, Range(1, 1024)]
Size = Annotated[int, Range(1, 65_536)]
Pixels = Annotated[int, Range(1, 16_384)]
Offset = Annotated[int, Range(0, 16_383)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Minutes = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Strength = Annotated[float, Range(0, 1000)]
ClusterAddress = Annotated[
    str,
    Pattern(r"auto|(ray://)?([^\s/:]+|\[[\da-fA-F:]+\]):\d{1,5}", "HOST:PORT of a Ray cluster's head, or auto"),
]


class Checked:
    """Base of frozen dataclasses of options: numbers are finite and in their ranges, and no text or list is empty.

    What is not is a UserError that names the option.
    """

    out_is_file: ClassVar[bool] = False
    """Whether the option ``out`` names a file, and no folder."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for option in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, option.name)
            if value == () and option.default not in ((), None):  # () is allowed where it is the default, or None is
                raise UserError(f"{option.name} is empty; leave it out, or give it a value")
            for part, rules in _values(value, hints[option.name]):
                _check(option.name, value, part, rules)


def is_group(hint: Any) -> bool:
    """Whether a field holds further options."""
    return isinstance(hint, type) and issubclass(hint, Checked)


def option_hints(cls: type) -> dict[str, Any]:
    """The annotations of all options of a dataclass and its groups, by the options' names."""
    hints = get_type_hints(cls, include_extras=True)
    found: dict[str, Any] = {}
    for option in dataclasses.fields(cls):
        hint = hints[option.name]
        found |= option_hints(hint) if is_group(hint) else {option.name: hint}
    return found


def option_values(config: Any) -> dict[str, Any]:
    """The values of all options of a dataclass and its groups, by the options' names."""
    found: dict[str, Any] = {}
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        found |= option_values(value) if isinstance(value, Checked) else {option.name: value}
    return found


def from_options(cls: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of :func:`option_values`; options that are not given have their defaults."""
    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    for option in dataclasses.fields(cls):  # type: ignore[arg-type]
        if is_group(hints[option.name]):
            given[option.name] = from_options(hints[option.name], values)
        elif option.name in values:
            given[option.name] = values[option.name]
    with user_errors():
        return cls(**given)


def _values(value: Any, hint: Any, rules: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The single values that an option consists of, each with what is annotated to it."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        yield from _values(value, parts[0], parts[1:])
    elif kind in (Union, types.UnionType):
        if value is not None:
            yield from _values(value, next(part for part in parts if part is not type(None)), rules)
    elif kind is tuple and isinstance(value, tuple):
        for part, of_part in zip(value, entry_hints(value, parts), strict=True):
            yield from _values(part, of_part)
    else:
        yield value, rules


def _check(name: str, value: Any, part: Any, rules: tuple[Any, ...]) -> None:
    """Checks one of the values of an option."""
    each = "each" if isinstance(value, tuple) else "it"
    if isinstance(part, str | Path):
        if "\0" in str(part):
            raise UserError(f"{name} is {str(part)!r}; {each} must not contain a NUL character")
        if not str(part).strip() and MayBeEmpty not in rules:
            raise UserError(f"{name} is empty; leave it out, or give it a value")
        for rule in rules:
            if isinstance(rule, Pattern) and not re.fullmatch(rule.expression, str(part)):
                raise UserError(f"{name} is {part!r}; {each} must be {rule.allowed}")
    elif isinstance(part, int | float) and not isinstance(part, bool):
        if not math.isfinite(part):
            raise UserError(f"{name} is {value}; {each} must be a finite number")
        for rule in rules:
            if isinstance(rule, Range) and part not in rule:
                raise UserError(f"{name} is {value}; {each} must be {rule.allowed(part)}")


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
