"""The wheel without the checkout: it holds all that its commands need, and they work in a folder that is empty."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

FEW = ("--policy-seeds", "1", "--num-states", "2")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "par_agent", folder / "par_agent", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    subprocess.run([*PIP, "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index"], cwd=folder, check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def programs(wheel: Path) -> Path:
    """Folder of the programs of an environment that has the wheel, and this environment's packages but no checkout."""
    environment = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "dependencies.pth").write_text("\n".join(here))  # whose own .pth files Python does not read
    return python.parent


def run(programs: Path, folder: Path, program: str, *arguments: str) -> str:
    """What a program of the environment prints when it is run in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(programs / program), *arguments]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_wheel_holds_every_file_of_the_package_but_pages_of_the_checkout(wheel: Path) -> None:
    package = ROOT / "par_agent"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(ROOT).as_posix() for path in files - {package / "training" / "README.md"}}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("par_agent/")}
    assert found == expected
    assert wheel.stat().st_size < 70e6


def test_the_sdist_holds_every_file_of_the_wheel(wheel: Path) -> None:
    program = "from setuptools import build_meta; print(build_meta.build_sdist('.'))"
    command = [sys.executable, "-c", program]
    made = subprocess.run(command, cwd=wheel.parent, check=True, capture_output=True, text=True).stdout.split()[-1]
    with tarfile.open(wheel.parent / made) as archive:
        found = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("par_agent/")} <= found
    assert {"pyproject.toml", "README.md", "LICENSE"} <= found


def test_the_commands_explain_themselves(programs: Path, tmp_path: Path) -> None:
    where = run(programs, tmp_path, "python", "-c", "import par_agent; print(par_agent.__file__)")
    assert Path(where.strip()).is_relative_to(programs.parent)
    assert "train-baseline" in run(programs, tmp_path, "par-agent", "--help")
    for command, option in (("benchmark", "--policy-seeds"), ("train-baseline", "--method")):
        assert option in run(programs, tmp_path, "par-agent", command, "--help")


def test_the_benchmark_runs_in_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    run(programs, tmp_path, "par-agent", "benchmark", "--tasks", "PushCube", *FEW)
    assert outcomes(tmp_path) == [("PushCube", 0, None, True), ("PushCube", 1, None, True)]
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark-results"]


def test_modules_in_the_current_folder_are_found_by_every_process(programs: Path, tmp_path: Path) -> None:
    for name in ("harness_policies.py", "harness_task.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    names = ("--tasks", "harness_task:NUDGE_CUBE", "--policy", "harness_policies:PlainResetPolicy")
    run(programs, tmp_path, "par-agent", "benchmark", *names, *FEW, "--workers", "2")
    assert outcomes(tmp_path) == [("NudgeCube", 0, None, False), ("NudgeCube", 1, None, False)]


def outcomes(folder: Path) -> list[tuple[str, int, str | None, bool]]:
    """Task, state, error and success of every rollout recorded below a folder."""
    (path,) = folder.glob("benchmark-results/*/rollouts.jsonl")
    records = map(json.loads, path.read_text().splitlines())
    return sorted((record["task"], record["state"], record["error"], record["success_once"]) for record in records)
