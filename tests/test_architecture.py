"""The parts of the package import in one direction, as docs/architecture.md says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import par_agent

PACKAGE = Path(par_agent.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
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


def imports_of_the_package(file: Path) -> list[ast.stmt]:
    """A module's statements that import modules of this package, wherever they stand in it."""
    return [
        node
        for node in ast.walk(ast.parse(file.read_bytes()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "par_agent")
        or (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "par_agent" for name in node.names))
    ]


def test_no_module_imports_from_the_package_more_than_eleven_times() -> None:
    counts = {str(file.relative_to(PACKAGE)): len(imports_of_the_package(file)) for file in MODULES}
    assert {name: count for name, count in counts.items() if count > 11} == {}


def test_no_file_is_longer_than_400_lines() -> None:
    root = Path(__file__).parents[1]
    files = [*MODULES, *(root / "tests").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    counts = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {name: count for name, count in counts.items() if count > 400} == {}
