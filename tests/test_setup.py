"""`make setup` and the other targets: what they would run, and what the set-up script decides."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "setup.sh"
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")


def shell(program: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs bash with the set-up script's functions defined."""
    return subprocess.run(
        ["bash", "-c", f"source {SCRIPT}; {program}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("script", [".ci/setup.sh", ".ci/run"])
def test_scripts_are_valid_bash(script):
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_ci_runs_the_tests_command_of_the_makefile():
    assert "make test && make test-other-processor" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def make(*arguments: str) -> str:
    """What make prints, also when these tests run inside make."""
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def make_dry_run(target: str) -> list[str]:
    return make("-n", target).splitlines()


@pytest.mark.parametrize(("target", "seeds"), [("benchmark", 1), ("benchmark-full", 5)])
def test_benchmarks_set_up_first_and_run_the_three_tasks(target, seeds):
    first, command = make_dry_run(target)
    assert first.endswith(".ci/setup.sh")
    assert f"benchmarks/run.py --tasks PushCube PickCube StackCube --policy-seeds {seeds}" in command


def test_the_test_target_checks_style_and_types_too():
    commands = "\n".join(make_dry_run("test"))
    order = [
        commands.index(part) for part in ("setup.sh", "ruff check", "ruff format --check", "mypy par_agent", "pytest")
    ]
    assert order == sorted(order)


def test_help_names_every_target():
    text = make("help")
    for target in ("setup", "benchmark", "benchmark-full", "test", "test-under-load", "test-other-processor", "lint"):
        assert re.search(rf"make {target}\s", text)


def test_a_machine_without_a_supported_python_is_told_what_to_install():
    result = shell("find_python", PYTHON="/nonexistent/python")
    assert result.returncode == 1
    assert "no Python 3.10, 3.11 or 3.12 found at /nonexistent/python" in result.stderr
    assert "apt-get install python3" in result.stderr


def test_a_user_who_may_not_install_gets_the_exact_command():
    result = shell("id() { echo 1000; }; sudo() { return 1; }; as_root \"echo 'a b' > /not/run\"; echo went on")
    assert result.returncode == 1
    assert "went on" not in result.stdout
    command = result.stderr.splitlines()[-1].strip().removeprefix("sudo ")
    shown = subprocess.run(
        f"set -- {command}; printf '%s|' \"$@\"", shell=True, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "sh|-c|echo 'a b' > /not/run|"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the script, and a virtual environment whose Python only writes down how it was called."""
    for name in ("pyproject.toml", ".ci/setup.sh", ".ci/constraints-cpu.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> calls\n')
    python.chmod(0o755)
    return tmp_path


def install(checkout: Path, program: str = "install_packages") -> list[str]:
    """Calls of Python so far, after `program` has run in the folder."""
    subprocess.run(["bash", "-c", f"source .ci/setup.sh; {program}"], cwd=checkout, check=True, capture_output=True)
    return (checkout / "calls").read_text().splitlines()


def test_packages_are_installed_once_until_the_requirements_change(checkout):
    assert len(install(checkout)) == 1
    assert len(install(checkout)) == 1
    with open(checkout / "pyproject.toml", "a") as file:
        file.write("# changed\n")
    assert len(install(checkout)) == 2


def test_a_failed_installation_is_tried_again(checkout):
    python = checkout / ".venv" / "bin" / "python"
    working = python.read_text()
    python.write_text(f"{working}exit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        install(checkout)
    python.write_text(working)
    assert len(install(checkout)) == 2


def test_the_cpu_build_of_torch_is_chosen_only_without_a_gpu(checkout):
    (without,) = install(checkout, "has_nvidia_gpu() { false; }; install_packages")
    assert "-c .ci/constraints-cpu.txt" in without and without.endswith("-e .[dev]")
    with_gpu = install(checkout, "has_nvidia_gpu() { true; }; install_packages")[-1]
    assert "constraints" not in with_gpu and with_gpu.endswith("-e .[dev]")


SOURCES = {
    "list": (
        "debian.list",
        "deb [arch=amd64 signed-by=/keys/debian.gpg] https://mirror.test/debian bookworm main contrib\n"
        "deb https://mirror.test/security bookworm-security main\n",
        "deb [signed-by=/keys/debian.gpg] https://mirror.test/debian bookworm-backports main",
    ),
    "deb822": (
        "debian.sources",
        "Types: deb\nURIs: https://mirror.test/security\nSuites: bookworm-security\nComponents: main\n\n"
        "Types: deb\nURIs: https://mirror.test/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: /keys/debian.gpg\n",
        "deb [signed-by=/keys/debian.gpg] https://mirror.test/debian bookworm-backports main",
    ),
    "unsigned": (
        "debian.list",
        "deb https://mirror.test/debian bookworm main\n",
        "deb https://mirror.test/debian bookworm-backports main",
    ),
}


def apt_configuration(folder: Path, name: str, content: str) -> dict[str, str]:
    """Environment in which apt sees only the given source file."""
    parts, lists = folder / "sources", folder / "lists"
    parts.mkdir()
    (lists / "partial").mkdir(parents=True)
    (parts / name).write_text(content)
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{parts}";\nDir::State::lists "{lists}";\n'
        f'Dir::Cache "{folder}";\n'
    )
    return {"APT_CONFIG": str(configuration)}


@needs_apt
@pytest.mark.parametrize("kind", SOURCES)
def test_backports_come_from_the_mirror_that_apt_already_uses(kind, tmp_path):
    name, content, line = SOURCES[kind]
    result = shell("renderer_command bookworm", **apt_configuration(tmp_path, name, content))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(
        f"echo '{line}' > /etc/apt/sources.list.d/bookworm-backports.list && apt-get update"
    )
    assert "-t bookworm-backports mesa-vulkan-drivers" in result.stdout


@needs_apt
def test_backports_that_are_there_already_are_not_added_again(tmp_path):
    content = "deb https://mirror.test/debian bookworm main\ndeb https://mirror.test/debian bookworm-backports main\n"
    result = shell("renderer_command bookworm", **apt_configuration(tmp_path, "debian.list", content))
    assert result.returncode == 0 and "echo" not in result.stdout
    assert "-t bookworm-backports mesa-vulkan-drivers" in result.stdout


@needs_apt
def test_without_a_bookworm_source_there_is_an_error_and_no_command(tmp_path):
    content = "deb https://mirror.test/other stretch main\n"
    result = shell("renderer_command bookworm", **apt_configuration(tmp_path, "debian.list", content))
    assert result.returncode == 1 and result.stdout == ""
    assert "no source for bookworm" in result.stderr


def test_newer_distributions_install_their_own_driver():
    result = shell("renderer_command noble")
    assert "backports" not in result.stdout and "mesa-vulkan-drivers" in result.stdout
