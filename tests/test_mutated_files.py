"""Damaged files of every format are refused by name, or read as they were: no traceback, and no silent change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attacks import attack, judge
from mutated_formats import FORMATS
from mutations import damage_bytes, damage_json

COUNT = 200


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_by_its_name_or_read_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "lerobot" in name or "reported" in name:
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'par-agent[lerobot]'")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    outcomes = attack(name, tmp_path, COUNT)
    assert not outcomes.faults, "\n\n".join(outcomes.faults)
    assert outcomes.counts.total() == COUNT and outcomes.counts["refused"] > COUNT / 4


def test_the_same_seed_makes_the_same_damage() -> None:
    content = b'{"a": [1, 2, {"b": "text"}]}'
    for damage in (damage_bytes, damage_json):
        first, second = ([damage(g, content) for _ in range(50)] for g in map(np.random.default_rng, (1, 1)))
        assert first == second and len(set(first)) > 20


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        ({"pixels": ("uint8", (2,), b"ab"), "steps": 3}, "equal"),
        ({"pixels": ("uint8", (2,), b"ac"), "steps": 3}, "payload"),
        ({"pixels": ("uint8", (1,), b"a"), "steps": 3}, "silent"),
        ({"pixels": ("uint8", (2,), b"ab"), "steps": 4}, "silent"),
        ({"pixels": ("uint8", (2,), b"ab")}, "silent"),
    ],
)
def test_changes_are_silent_but_where_nobody_can_check(found: dict, outcome: str) -> None:
    assert judge({"pixels": ("uint8", (2,), b"ab"), "steps": 3}, found, "pixels")[0] == outcome
