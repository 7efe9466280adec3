"""The table of all methods, rebuilt from records; and what --policy names."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from finished_runs import curves, read_runs, table_rows
from reproduce_table import REPORTED, TableConfig, main, methods, table

from made_runs import failed, identity, write_finished, write_records
from par_agent.baselines import ABLATIONS, NAMES, find_policy
from par_agent.errors import UserError
from par_agent.evaluation.records import read_run
from par_agent.evaluation.results import summarise
from par_agent.evaluation.statistics import wilson_interval
from par_agent.tasks import PAPER_TASKS
from par_agent.utils.files import read_json, write_json

ROOT = Path(__file__).parents[1]


def write_trained(
    folder: Path,
    policy: str,
    solved: int,
    *,
    demos: int | None = None,
    init: str | None = None,
    steps: int = 400,
    state_seed: int | None = None,
) -> None:
    """A run of 4 initial states and 2 policy seeds a task; the first ``solved`` states are solved in every task."""
    counts = dict.fromkeys(PAPER_TASKS, demos or 950)
    options = {"demos": demos, "init": init}
    training = {
        "minutes": 12.4,
        "processor_minutes": 20.6,
        "demonstrations": counts,
        "steps": steps,
        "options": options,
    }
    run = identity(policy, state_seed)
    write_finished(folder, solved, 4, 2, run, parameters=7_500_000, training=training)


def test_the_table_has_a_row_for_every_run_beside_the_papers(tmp_path: Path) -> None:
    write_trained(tmp_path / "a", "par-mini", 3)
    write_trained(tmp_path / "b", "dp", 1)
    write_trained(tmp_path / "c", "dp", 0, demos=50)
    write_trained(tmp_path / "d", "dp", 4, state_seed=555000)
    runs = read_runs(tmp_path)
    page = table(table_rows(runs), {}, "par-mini", {})
    wilson = wilson_interval(6 / 8, 8)
    cell = f"**75.0** 6/8, {100 * wilson.low:.1f}–{100 * wilson.high:.1f} ["
    lines = page.splitlines()
    own = next(line for line in lines if line.startswith("| par-mini | **"))
    assert own.count(cell) == 3 and own.endswith("| 7.5M | 12 (21) | 20 |")
    assert lines[lines.index(own) + 1] == "| *PAR-Full, the paper's figure* | *100* | *73* | *48* | – | – | – |"
    assert "| *ACT, the paper's figure* | *76* | *20* | *30* |" in page
    assert "| dp | -50.0 (-100.0 to +0.0), p = 0.5 |" in page
    assert page.count("| dp | ") == 3  # its row, its comparison and where it comes from
    page = table(table_rows(runs), table_rows(runs, protocol=False), "par-mini", {})
    assert "| dp | 555000 | **100.0** 8/8, " in page
    assert page.count("| dp | ") == 5


def test_figures_are_drawn_and_nothing_else_is_written(tmp_path: Path) -> None:
    write_trained(tmp_path / "runs" / "a", "par-mini", 3)
    write_trained(tmp_path / "runs" / "b", "act", 2)
    config = TableConfig(runs=(tmp_path / "runs",), out=tmp_path / "out")
    assert main(config) == 0
    assert {path.name for path in config.out.iterdir()} == {"table.md", "table.png"}
    write_trained(tmp_path / "runs" / "c", "act", 1, demos=50)
    assert main(config) == 0
    assert {path.name for path in config.out.iterdir()} == {"table.md", "table.png", "demonstrations.png"}
    assert all(path.stat().st_size > 5000 for path in config.out.glob("*.png"))


def test_curves_are_of_runs_on_a_number_of_demonstrations_by_what_they_began_with(tmp_path: Path) -> None:
    write_trained(tmp_path / "a", "par-mini", 4)
    write_trained(tmp_path / "b", "par-mini", 3, demos=300)
    write_trained(tmp_path / "c", "par-mini", 1, demos=100)
    write_trained(tmp_path / "d", "par-mini", 2, demos=100, init="runs/video/policy")
    write_trained(tmp_path / "e", "par-mini", 4, demos=50, state_seed=555000)
    write_trained(tmp_path / "f", "par-mini", 3, demos=100, steps=1100)
    runs = read_runs(tmp_path)
    points = curves(runs)
    shown = {key: [(point.demonstrations, point.result.successes) for point in found] for key, found in points.items()}
    assert shown == {
        (task, policy, steps): found
        for task in PAPER_TASKS
        for policy, steps, found in (
            ("par-mini", 400, [(100, 2), (300, 6)]),
            ("par-mini", 1100, [(100, 6)]),
            ("par-mini, --init runs/video/policy", 400, [(100, 4)]),
        )
    }
    lines = table(table_rows(runs), {}, "par-mini", points).splitlines()
    line = next(
        line
        for line in lines
        if line.startswith("| PickCube | par-mini, --init runs/video/policy | 400 | **50.0** 4/8")
    )
    assert line.endswith("| – |")
    write_trained(tmp_path / "g", "par-mini", 3, demos=100)
    with pytest.raises(UserError, match="are both of par-mini after 400 steps with 100 demonstrations of PushCube"):
        curves(read_runs(tmp_path))


def test_curves_leave_out_tasks_that_the_policy_was_not_trained_on(tmp_path: Path) -> None:
    write_trained(tmp_path / "a", "act", 3, demos=50)
    about = read_json(tmp_path / "a" / "results.json")
    about["provenance"]["training"]["demonstrations"] = {"PickCube": 50}
    write_json(tmp_path / "a" / "results.json", about)
    assert list(curves(read_runs(tmp_path))) == [("PickCube", "act", 400)]
    about["provenance"]["training"]["demonstrations"] = {"mine": 50}
    write_json(tmp_path / "a" / "results.json", about)
    with pytest.raises(UserError, match="trained on datasets mine: a curve needs folders named like the tasks"):
        curves(read_runs(tmp_path))


def test_what_cannot_be_shown_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished run of the paper track"):
        read_runs(tmp_path)
    write_trained(tmp_path / "b", "dp", 1)
    with pytest.raises(UserError, match="no run of the protocol is of 'par-mini'; there are: dp"):
        table(table_rows(read_runs(tmp_path)), {}, "par-mini", {})
    write_trained(tmp_path / "unfinished", "dp", 1)
    (tmp_path / "unfinished" / "results.json").unlink()
    assert len(read_runs(tmp_path)) == 1
    write_trained(tmp_path / "c", "dp", 1)
    with pytest.raises(UserError, match="are both of dp"):
        table_rows(read_runs(tmp_path))
    write_json(tmp_path / "c" / "results.json", {})
    with pytest.raises(UserError, match=r"c/results\.json lacks provenance, results"):
        read_runs(tmp_path)


def test_errors_are_named_beside_the_rate_that_they_lower(tmp_path: Path) -> None:
    write_trained(tmp_path / "a", "par-mini", 3)
    _, (first, *others) = read_run(tmp_path / "a")
    write_records(tmp_path / "a", [failed(first), *others])
    about = read_json(tmp_path / "a" / "results.json")
    about["results"][0]["successes"] -= 1
    write_json(tmp_path / "a" / "results.json", about)
    cells = methods(table_rows(read_runs(tmp_path)))[2].split(" | ")
    assert cells[1].startswith("**62.5** 5/8") and cells[1].endswith("], 1 errors")
    assert not any("errors" in cell for cell in cells[2:])


def test_the_reported_table_is_that_of_the_reported_runs(tmp_path: Path) -> None:
    assert main(TableConfig(out=tmp_path)) == 0
    assert (tmp_path / "table.md").read_text() == (REPORTED / "rows" / "table.md").read_text()


@pytest.mark.parametrize("path", sorted(REPORTED.glob("**/results.json")), ids=lambda path: path.parent.name)
def test_reported_results_are_those_of_the_records_beside_them(path: Path) -> None:
    results = read_json(path)["results"]
    _, records = read_run(path.parent)
    again = [asdict(result) for result in summarise(records, [r["task"] for r in results], results[0]["planned"])]
    for name in ("task", "successes", "rollouts", "rate", "wilson", "cluster", "errors"):
        found, reported = ([_rounded(result[name]) for result in run] for run in (again, results))
        assert found == reported, name


def test_the_reported_rows_were_trained_alike() -> None:
    alike = ("task", "weights", "vae", "demos", "init", "steps", "learning_rate", "warmup", "ema", "clip", "seed")
    alike += ("weight_decay", "precision", "variants", "shift", "color_jitter", "recovery_noise")
    alike += ("proprioception_noise",)
    rows = {run.name: run.training["options"] for run in read_runs(REPORTED / "rows")}
    assert len(rows) >= 8
    for name, options in rows.items():
        assert [options.get(key) for key in alike] == [rows["par-mini"].get(key) for key in alike], name
        steps = options["steps"] * options["batch_size"] * options["accumulation"] * options["window"]
        assert steps == (576_000 if name == "icrt" else 432_000), name


def _rounded(value: Any) -> Any:
    """Floating-point numbers, and those in a dictionary, to 9 digits."""
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 9))


@pytest.mark.parametrize("name", NAMES + ABLATIONS)
def test_a_row_that_was_not_trained_yet_says_how_it_is_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"runs/{name}/policy does not exist; train it with: .* --out runs/{name}"):
        find_policy(name, {}, "cpu")


def test_policies_are_found_by_name_by_folder_and_by_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "runs" / "dp" / "policy" / "baseline.json", {"method": "dp"})
    for name in ("par-noar", "par-mini"):
        write_json(tmp_path / "runs" / name / "policy" / "config.json", {"name": name})
    named = find_policy("dp", {}, "cpu")
    assert named.label == "dp" and named.folder == Path("runs/dp/policy")
    assert dataclasses.replace(find_policy("runs/dp/policy", {}, "cpu"), checkpoint=named.checkpoint) == named
    ablation = find_policy("par-noar", {}, "cpu")
    assert ablation.label == "par-noar" and ablation.folder == Path("runs/par-noar/policy")
    assert find_policy("par-mini", {}, "cpu").label == "par-mini"
    assert find_policy("par-mini", {}, "cpu", Path("runs/par-mini/policy")).label == "par-mini"
    with pytest.raises(UserError, match="holds par-noar, not par-mini"):
        find_policy("par-mini", {}, "cpu", Path("runs/par-noar/policy"))
    with pytest.raises(UserError, match="holds dp, not par-noar"):
        find_policy("par-noar", {}, "cpu", Path("runs/dp/policy"))
    with pytest.raises(UserError, match="holds dp, not act"):
        find_policy("act", {}, "cpu", Path("runs/dp/policy"))
    with pytest.raises(UserError, match="holds par-noar, not act"):
        find_policy("act", {}, "cpu", Path("runs/par-noar/policy"))
    with pytest.raises(UserError, match="runs/dp holds no policy, not dp; give --policy-checkpoint runs/dp/policy"):
        find_policy("dp", {}, "cpu", Path("runs/dp"))
    with pytest.raises(UserError, match="--policy-checkpoint goes with"):
        find_policy("runs/dp/policy", {}, "cpu", Path("runs/dp/policy"))


def test_a_baselines_weights_and_sources_are_its_fingerprint(tmp_path: Path) -> None:
    write_json(tmp_path / "p" / "baseline.json", {"method": "dp"})
    source = find_policy("dp", {}, "cpu", tmp_path / "p")
    first = source.fingerprint()
    assert source.fingerprint() == first
    write_json(tmp_path / "p" / "baseline.json", {"method": "dp", "trained": {}})
    assert source.fingerprint() != first
    plain = dataclasses.replace(source, reference="harness_policies:SevenNumbersPolicy", options={})
    assert plain.fingerprint() != source.fingerprint()


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT / "tests")


def test_the_command_line_refuses_a_row_without_checkpoint(tmp_path: Path) -> None:
    result = run("--policy", "icrt", "--out", tmp_path)
    assert result.returncode == 2
    assert "train it with: python benchmarks/train_baseline.py --method icrt" in result.stderr
    assert not list(tmp_path.iterdir())
