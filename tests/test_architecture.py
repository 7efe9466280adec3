"""The parts of the package import in one direction, as docs/architecture.md says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import par_agent

PACKAGE = Path(par_agent.__file__).parent
ORDER = ("errors", "utils", "tasks", "modeling", "policy", "simulation", "evaluation", "visualization", "play", "cli")


def imported_parts(part: str) -> set[str]:
    """The parts of this package that the modules of one part import, wherever in them."""
    found = set()
    path = PACKAGE / part
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("par_agent."):
                found.add(str(node.module).split(".")[1])
    return found


@pytest.mark.parametrize("part", ORDER)
def test_no_part_imports_a_later_one(part: str) -> None:
    assert imported_parts(part).isdisjoint(ORDER[ORDER.index(part) + 1 :])


def test_data_knows_no_model_and_jobs_know_neither() -> None:
    assert "modeling" not in imported_parts("data")
    assert imported_parts("jobs").isdisjoint(("data", *ORDER[ORDER.index("modeling") :]))
