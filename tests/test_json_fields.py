"""Dataclasses from JSON: nested ones, tuples, and every fault named with what was given and what is expected."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from par_agent.errors import UserError
from par_agent.utils.checked import Checked, Size
from par_agent.utils.json_fields import build


@dataclass(frozen=True)
class Wheel:
    radius: float = 0.5


@dataclass(frozen=True)
class Cart(Checked):
    name: str
    wheel: Wheel
    size: tuple[Size, Size]
    rows: tuple[tuple[float, ...], ...] = ()
    drive: Literal["front", "rear"] = "rear"
    load: int | None = None
    open: bool = False


GOOD: dict[str, Any] = {"name": "cart", "wheel": {"radius": 1}, "size": [2, 3], "rows": [[1, 0.5], []], "load": 4}


def test_objects_become_dataclasses_and_lists_tuples() -> None:
    assert build(Cart, GOOD) == Cart("cart", Wheel(1), (2, 3), ((1, 0.5), ()), "rear", 4, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "Cart.name is 3; expected a string"),
        ({"wheel": [1]}, r"Wheel is \[1\]; expected an object"),
        ({"wheel": {"radius": "wide"}}, "Wheel.radius is 'wide'; expected a finite number"),
        ({"wheel": {"radius": float("nan")}}, "Wheel.radius is nan; expected a finite number"),
        ({"wheel": {"spokes": 8}}, "unknown fields in Wheel: spokes; known: radius.*update par_agent"),
        ({"size": [2, 3, 4]}, "expected a list of 2: a whole number, a whole number"),
        ({"size": [2, True]}, "expected a list of 2"),
        ({"size": 2.0}, "Cart.size is 2.0"),
        ({"rows": [[1], ["x"]]}, "expected a list, each entry a list, each entry a finite number"),
        ({"drive": "all"}, "Cart.drive is 'all'; expected 'front' or 'rear'"),
        ({"load": 1.5}, "Cart.load is 1.5; expected a whole number or null"),
        ({"open": 1}, "Cart.open is 1; expected true or false"),
    ],
)
def test_a_value_that_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Cart, {**GOOD, **changes})


def test_only_fields_that_were_added_later_may_be_missing() -> None:
    with pytest.raises(UserError, match="missing fields in Wheel: radius"):
        build(Cart, {**GOOD, "wheel": {}, "drive": "rear"}, added=("open",))
    with pytest.raises(UserError, match="missing fields in Cart: drive, open"):
        build(Cart, GOOD, added=())
    assert build(Cart, {**GOOD, "drive": "front"}, added=("open", "radius")).open is False


@pytest.mark.parametrize("size", [0, -1, 2**20 + 1, 10**12])
def test_sizes_that_no_model_has_are_refused(size: int) -> None:
    allowed = "at least 1" if size < 1 else "at most 1,048,576"
    with pytest.raises(UserError, match=rf"Cart: size is \(2, {size}\); each must be {allowed}"):
        build(Cart, {**GOOD, "size": [2, size]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drive": "all"}, "drive is 'all'; expected 'front' or 'rear'"),
        ({"open": 1}, "open is 1; expected true or false"),
        ({"rows": ((float("inf"),),)}, r"rows is \(\(inf,\),\); expected a list, each entry a list, .* finite number"),
    ],
)
def test_python_is_held_to_the_annotations_that_files_are_held_to(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        dataclasses.replace(build(Cart, GOOD), **changes)


def test_missing_fields_are_named_at_once_and_long_values_are_cut() -> None:
    with pytest.raises(UserError, match="missing fields in Cart: size, wheel"):
        build(Cart, {"name": "cart"})
    with pytest.raises(UserError, match=r"x{50}\.\.\.; expected true or false"):
        build(Cart, {**GOOD, "open": "x" * 500})
    with pytest.raises(UserError, match="Cart is None; expected an object"):
        build(Cart, None)
