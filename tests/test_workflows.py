"""What the workflows run exists: make targets, test modules, extras, and commands with their options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import par_agent
from par_agent.cli import SUBCOMMANDS
from par_agent.utils.checked import option_hints
from test_docs import COMMAND, ROOT, SHORT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps_of(path: Path) -> list[dict[str, Any]]:
    """Steps of all jobs, with the values of every matrix put in."""
    steps = []
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        rows = [{}, *matrix.get("include", [])] + [{"suite": suite} for suite in matrix.get("suite", [])]
        for row in rows:
            for step in job["steps"]:
                text = re.sub(
                    r"\$\{\{ matrix\.([\w-]+) \}\}", lambda m, row=row: str(row.get(m[1], "")), step.get("run", "")
                )
                steps.append({**step, "run": text})
    return steps


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_everything_that_a_workflow_runs_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {""}
    extras = set(re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for step in steps_of(path):
        commands = step["run"]
        assert set(re.findall(r"^make (\S*)", commands, re.MULTILINE)) <= targets
        assert set(re.findall(r'"\.\[(\w+)\]"', commands)) <= extras
        for file in re.findall(r"(?:tests|integrations|par_agent)/[\w/.]+", commands):
            assert (ROOT / file).exists(), file
        for name, words in COMMAND.findall(commands):
            known = SHORT | {option.replace("_", "-") for option in option_hints(SUBCOMMANDS[name].load()[1])}
            assert set(re.findall(r"--([a-z][a-z-]*)", words)) <= known, commands


def test_the_lowest_and_the_newest_versions_of_the_dependencies_are_tested() -> None:
    text = (ROOT / ".github" / "workflows" / "dependencies.yml").read_text()
    rows = yaml.safe_load(text)["jobs"]["bounds"]["strategy"]["matrix"]["include"]
    assert {row["resolution"] for row in rows} == {"lowest-direct", "highest"}
    versions = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert {row["python-version"] for row in rows} == set(versions)


def test_everything_that_a_tag_publishes_has_the_same_version() -> None:
    for file, line in (
        ("integrations/lerobot_policy_par/pyproject.toml", f'version = "{par_agent.__version__}"'),
        ("CITATION.cff", f"version: {par_agent.__version__}"),
    ):
        assert line in (ROOT / file).read_text().splitlines()
    publish = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["environment"] == "release"
    assert all("password" not in step.get("with", {}) for step in publish["steps"])
