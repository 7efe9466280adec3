"""The tour of the package was executed, and runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from par_agent.utils.versions import installed_version, planner_problem

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "examples" / "par_agent_tour.ipynb"
SMALLER = {
    "max_episode_steps=120": "max_episode_steps=16",
    "max_episode_steps=48": "max_episode_steps=8",
    "imagine(6)": "imagine(2)",
    "frames[1:7] + frames[-1:] * (7 - len(frames))": "frames[:2]",
    "--num 10": "--num 2",
    "steps=80": "steps=4",
    "batch_size=16": "batch_size=4",
    "validate_every=40": "validate_every=4",
}
"""Numbers of the tour, and those that the test has in place of them."""


def outputs_of(path: Path) -> list[tuple[int, list[dict[str, Any]]]]:
    """Number and outputs of every code cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["execution_count"], cell["outputs"]) for cell in cells if cell["cell_type"] == "code"]


def pictures(path: Path) -> int:
    return sum("image/jpeg" in shown.get("data", ()) for _, outputs in outputs_of(path) for shown in outputs)


def test_the_tour_shows_what_its_cells_gave_and_nothing_of_the_machine() -> None:
    assert [number for number, _ in outputs_of(TOUR)] == list(range(1, len(outputs_of(TOUR)) + 1))
    assert pictures(TOUR) >= 4 and TOUR.stat().st_size < 1.5e6
    text = TOUR.read_text(encoding="utf-8")
    assert re.findall(r"(?:/home|/root|/tmp|/usr|/work)/\S+", text) == [] and "Traceback" not in text


@pytest.mark.slow
def test_the_tour_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    if problem := planner_problem(installed_version("numpy"), installed_version("mplib")):
        pytest.skip(problem)
    text = TOUR.read_text(encoding="utf-8")
    for whole, small in SMALLER.items():
        assert text.count(whole) == 1, whole
        text = text.replace(whole, small)
    copy = tmp_path / "tour.ipynb"
    copy.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "site" / "run_notebook.py"), str(copy)], stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == 0, done.stderr
    assert pictures(copy) == pictures(TOUR)
    assert copy.read_text(encoding="utf-8") != text
