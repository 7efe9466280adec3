"""The table and the heat map of `benchmarks/robustness.py`, made from records of real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from robustness import RobustnessConfig, main, runs

from par_agent.errors import UserError
from recordings import run_in_this_process


def config(folder: Path, **changes: Any) -> RobustnessConfig:
    variations = ("ambient", "MO_color", "action_delay=0.25")
    options: dict[str, Any] = {"tasks": ("harness_task:NUDGE_CUBE", "PushCube"), "variations": variations}
    options |= {"policy": "harness_policies:CountingPolicy", "policy_kwargs": ("rows=1",)}
    options |= {"states": 1, "workers": 1, "out": folder, **changes}
    return RobustnessConfig(**options)


def test_a_policy_is_rolled_out_under_each_variation_that_a_task_can_have_and_the_same_command_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("par_agent.evaluation.benchmark_run.open_runner", run_in_this_process)
    wanted = config(tmp_path, tasks=("harness_task:NUDGE_CUBE",))
    assert main(wanted) == 0
    (page,) = tmp_path.glob("robustness-*/robustness.md")
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| none", "| ambient", "| action_delay=0.25", "| mean", "| share"]
    assert all("/1 = " in row[2] for row in rows[2:5])
    with Image.open(page.with_suffix(".png")) as picture:
        assert picture.size[0] > 100
    assert page.with_suffix(".csv").read_text().count("NudgeCube") == 3
    capsys.readouterr()
    assert main(wanted) == 0
    assert capsys.readouterr().out.count("1 of 1 rollouts are on disk already") == 3


def test_each_run_has_the_tasks_that_can_have_its_variation(tmp_path: Path) -> None:
    found = {name: run.info.tasks for name, run in runs(config(tmp_path)).items()}
    both = ["NudgeCube", "PushCube"]
    assert found == {"none": both, "ambient": both, "MO_color": ["PushCube"], "action_delay=0.25": both}


def test_one_variation_is_no_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the variations with --variations"):
        config(tmp_path, variation="ambient")
