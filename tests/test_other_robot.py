"""The README's four commands for another task and another arm, at toy size: demonstrations, frames, policy, table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from par_agent.errors import UserError
from par_agent.policy.checkpoint import Checkpoint
from par_agent.simulation.planning import find_solution
from recordings import require_renderer

ROOT = Path(__file__).parents[1]


def run(*words: str | Path) -> str:
    """Runs a command and returns what it printed."""
    command = [sys.executable, *map(str, words)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_four_commands_lead_from_demonstrations_of_another_arm_to_its_table(tmp_path: Path) -> None:
    require_renderer()
    demos, data, policy = tmp_path / "demos", tmp_path / "PickCubeSO100", tmp_path / "run" / "policy"
    run("-m", "par_agent", "demos", "--task", "PickCubeSO100", "--num", "2", "--workers", "1", "--out", demos)
    trajectory = next(demos.rglob("*.h5"))
    crop = ("--crop", "60", "110", "320", "320")
    run("-m", "par_agent", "render", "--trajectory", trajectory, *crop, "--workers", "1", "--out", data)
    start = ("--init", ROOT / "par_agent" / "checkpoints" / "par-mini", "--new-robot")
    toy = ("--steps", "2", "--batch-size", "2", "--variants", "1")
    run("-m", "par_agent", "finetune", "--data", data, *start, *toy, "--out", tmp_path / "run")
    transforms = Checkpoint.load(policy).transforms
    assert transforms is not None and transforms.relative == (True,) * 6 and transforms.proprioception_size == 6
    states = ("--tasks", "PickCubeSO100", "--state-seed", "5000", "--num-states", "1", "--policy-seeds", "1")
    run("benchmarks/run.py", "--policy", policy, *states, "--workers", "1", "--out", tmp_path / "results")
    (records,) = (tmp_path / "results").rglob("rollouts.jsonl")
    (record,) = map(json.loads, records.read_text().splitlines())
    assert record["task"] == "PickCubeSO100" and not record.get("error")


def test_tasks_without_a_planner_are_refused_with_the_ones_that_have_one() -> None:
    assert callable(find_solution("PickCubeSO100-v1")) and callable(find_solution("PushCube-v1"))
    with pytest.raises(UserError, match=r"no motion planner for RollBall-v1; it has them for .*PickCubeSO100-v1"):
        find_solution("RollBall-v1")
