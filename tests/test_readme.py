"""README's figures are those of the result files."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from pages import filled
from reported_runs import REPORTED, read_finished, read_reported

from made_runs import identity, write_finished, write_records
from par_agent.evaluation.records import read_run
from par_agent.tasks import PAPER_TASKS

ROOT = Path(__file__).parents[1]


def test_readme_shows_the_reported_results() -> None:
    text = (ROOT / "README.md").read_text()
    wrong = text.replace(" = **", " = **1", 1)
    assert wrong != text
    assert filled(wrong, read_reported(REPORTED), ROOT) == text


def results_of(folder: Path, repeated: bool) -> str:
    """The table of a bundled policy that solves 21 of 25 states, with 5 policy seeds that repeat each other or not."""
    run = identity()
    training = {"demonstrations": dict.fromkeys(PAPER_TASKS, 900), "options": {"preset": "mini"}}
    write_finished(folder, 21, 25, 5, run, policy="par-mini", parameters=7_500_000, training=training)
    _, records = read_run(folder)
    if repeated:
        write_records(folder, [{**record, "actions_sha256": f"{record['state']:016x}"} for record in records])
    found = read_finished(folder, "bundled/par-mini")
    return filled("<!-- results -->\n<!-- /results -->\n", {"bundled/par-mini": found}, ROOT)


def test_rollouts_that_policy_seeds_repeat_count_once(tmp_path: Path) -> None:
    table = results_of(tmp_path / "a", repeated=True)
    assert table.count("| 21/25 = **84.0** (65.3–93.6) ") == 3
    assert "| 7.5M, from scratch, no video weights | 900 |" in table
    assert results_of(tmp_path / "b", repeated=False).count("| 105/125 = **84.0** (76.6–89.4) ") == 3


def test_changes_that_were_measured_are_shown_with_the_results(tmp_path: Path) -> None:
    write_finished(tmp_path / "run", 11, 25, 1, identity(variation="delay"))
    document = (ROOT / "docs" / "results.md").read_text()
    shown = filled(document, {"a": read_finished(tmp_path / "run", "robustness/delay")}, ROOT)
    assert "| every action one control step late | 11/25 | 11/25 | 11/25 |" in shown
    assert shown != document


def test_success_by_context_length_is_in_order_of_the_length(tmp_path: Path) -> None:
    runs = {}
    for context, solved in ((16, 7), (4, 9)):
        written = identity(policy_options={"context": context})
        write_finished(tmp_path / str(context), solved, 25, 1, written)
        runs[str(context)] = read_finished(tmp_path / str(context), f"context/{context}")
    lines = filled("before\n<!-- context -->\n<!-- /context -->\nafter\n", runs, tmp_path).splitlines()
    assert lines[0] == "before" and lines[-1] == "after"
    assert lines[4:6] == ["| 4 | 9/25 | 9/25 | 9/25 |", "| 16 | 7/25 | 7/25 | 7/25 |"]


@pytest.mark.usefixtures("without_workers")
def test_the_examples_of_a_policy_and_a_task_of_ones_own_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder of the command is added
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for section, module in (("Your own policy", "my_policy"), ("Your own task", "my_task")):
        content = text.split(f"## {section}\n")[1].split("\n## ")[0]
        assert f"`{module}.py`" in content
        (tmp_path / f"{module}.py").write_text(content.split("```python\n")[1].split("```")[0])
        command = shlex.split(content.split("\n    python ")[1].split("\n")[0])
        options = ["--states", "1", "--policy-seeds", "1", "--workers", "1"]
        monkeypatch.setattr(sys, "argv", [*command, *options])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / command[0]), run_name="__main__")
        assert not ended.value.code
    records = [json.loads(path.read_text()) for path in tmp_path.glob("benchmarks/results/*/rollouts.jsonl")]
    found = {(record["task"], record["steps"], record["error"]) for record in records}
    assert found == {("PushCube", 400, None), ("NudgeCube", 12, None)}
