"""What the package needs: no simulator to act, learn or exchange data, nothing heavy to be imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from par_agent.errors import UserError
from par_agent.simulation import planning
from par_agent.utils.versions import planner_problem
from rendered import write_dataset
from tiny import option_words, tiny_run

WITHOUT_A_SIMULATOR = """
import sys
from pathlib import Path

for name in ("mani_skill", "sapien", "mplib"):
    sys.modules[name] = None  # every import of it is an ImportError

import numpy as np
from par_agent import PARModel, PARPolicy
from par_agent.cli import main
import par_agent.policy.hub

folder, *finetune = sys.argv[1:]
image, joints = np.zeros((24, 32, 3), np.uint8), np.zeros(9, np.float32)
observation = {"agent": {"qpos": joints}, "sensor_data": {"render_camera": {"rgb": image}}}
policy = PARPolicy.from_pretrained(Path(folder, "init"), "push cube 1")
assert policy.act(observation).shape == (1, 8)
assert main(["finetune", *finetune]) == 0
if PYARROW:
    assert main(["export-lerobot", "--data", f"{folder}/rendered", "--out", f"{folder}/exported", "--images"]) == 0
    assert main(["import-lerobot", f"{folder}/exported", "--out", f"{folder}/imported"]) == 0
"""


def python(program: str, *arguments: str) -> str:
    """What a program prints in a process of its own."""
    command = [sys.executable, "-c", program, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_acting_training_and_exchanging_data_need_no_simulator(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=1)
    write_dataset(tmp_path / "rendered")
    pyarrow = importlib.util.find_spec("pyarrow") is not None
    program = WITHOUT_A_SIMULATOR.replace("PYARROW", str(pyarrow))
    python(program, str(tmp_path), *option_words(config))
    assert (tmp_path / "run" / "policy" / "policy.json").is_file()


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'gymnasium', 'mani_skill', 'sapien', 'huggingface_hub'}"
    assert python(f"import par_agent, sys; print({heavy} & set(sys.modules))") == "set()\n"


def test_the_motion_planner_is_refused_where_it_would_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planner_problem("1.26.4", "0.1.1") is None
    for version, mplib, problem in (
        ("2.2.6", "0.1.1", r"mplib 0\.1\.1, .*, crashes with numpy 2\.2\.6; .*par-agent\[demos\]"),
        ("2.2.6", None, r"mplib, .*, is not installed; .*par-agent\[demos\]"),
    ):
        versions = {"numpy": version, "mplib": mplib}
        monkeypatch.setattr(planning, "installed_version", versions.get)
        with pytest.raises(UserError, match=problem):
            planning.find_solution("PushCube-v1")


def test_checkpoints_leave_the_wheel_smaller_than_70_megabytes() -> None:
    package = Path(planning.__file__).parents[1]
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 70e6
