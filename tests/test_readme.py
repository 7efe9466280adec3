"""README's figures are those of the result files."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from made_runs import identity, write_finished

ROOT = Path(__file__).parents[1]
REPORTED = ROOT / "benchmarks" / "reported"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme_table.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_readme_shows_the_reported_results(tmp_path: Path) -> None:
    result = run("--check")
    assert result.returncode == 0, result.stdout
    wrong = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text()
    wrong.write_text(text.replace(" = **", " = **1", 1))
    assert wrong.read_text() != text
    assert run("--check", "--documents", str(wrong)).returncode == 1
    assert run("--documents", str(wrong)).returncode == 0
    assert re.sub(r"\]\(.*?\)", "", wrong.read_text()) == re.sub(r"\]\(.*?\)", "", text)


def test_changes_that_were_measured_stand_below_the_results(tmp_path: Path) -> None:
    reported = tmp_path / "reported"
    shutil.copytree(REPORTED / "par-mini", reported / "par-mini")
    write_finished(reported / "robustness" / "delay", 11, 25, 1, identity(variation="delay"))
    document = tmp_path / "README.md"
    document.write_text((ROOT / "README.md").read_text())
    assert run("--reported", str(reported), "--documents", str(document)).returncode == 0
    assert "| every action one control step late | 11/25 | 11/25 | 11/25 |" in document.read_text()


def test_success_by_context_length_is_in_order_of_the_length(tmp_path: Path) -> None:
    for context, solved in ((16, 7), (4, 9)):
        written = identity(policy_options={"context": context})
        write_finished(tmp_path / "context" / str(context), solved, 25, 1, written)
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- context -->\n<!-- /context -->\nafter\n")
    assert run("--reported", str(tmp_path), "--documents", str(document)).returncode == 0
    lines = document.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after"
    assert lines[4:6] == ["| 4 | 9/25 | 9/25 | 9/25 |", "| 16 | 7/25 | 7/25 | 7/25 |"]


def test_the_examples_of_a_policy_and_a_task_of_ones_own_run_as_written(tmp_path: Path) -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for section, module in (("Your own policy", "my_policy"), ("Your own task", "my_task")):
        content = text.split(f"## {section}\n")[1].split("\n## ")[0]
        assert f"`{module}.py`" in content
        (tmp_path / f"{module}.py").write_text(content.split("```python\n")[1].split("```")[0])
        command = shlex.split(content.split("\n    python ")[1].split("\n")[0])
        command[0] = str(ROOT / command[0])
        options = ["--states", "1", "--policy-seeds", "1", "--workers", "1"]
        subprocess.run([sys.executable, *command, *options], cwd=tmp_path, check=True)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("benchmarks/results/*/rollouts.jsonl")]
    found = {(record["task"], record["steps"], record["error"]) for record in records}
    assert found == {("PushCube", 400, None), ("NudgeCube", 12, None)}


def test_links_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("par_agent/**/*.md")]
    assert ROOT / "README.md" in documents and ROOT / "benchmarks" / "EXPERIMENTS.md" in documents
    for document in documents:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
