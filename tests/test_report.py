"""Reported runs: kept to the bit, and shown in pages and pictures; and what --policy names."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compare import CompareConfig, comparison_table
from report import AddConfig, ExportConfig, MakeConfig, main
from reported_runs import DEVELOPMENT_FILE, REPORTED, ROLLOUTS_FILE, RUNS_FILE, add_run, read_finished, read_reported
from tables import by_policy, curves, methods_page, methods_table, of_group

from made_runs import failed, identity, write_finished, write_records
from par_agent.baselines import ABLATIONS, NAMES, find_policy
from par_agent.errors import UserError
from par_agent.evaluation.records import read_run
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
) -> Path:
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
    return folder


def report(folder: Path, name: str, policy: str, solved: int, **about: Any) -> None:
    """Adds such a run to the reported runs in a folder."""
    add_run(folder, read_finished(write_trained(folder / "runs" / name, policy, solved, **about), name))


def test_the_table_has_a_row_for_every_run_beside_the_papers(tmp_path: Path) -> None:
    report(tmp_path, "rows/a", "par-mini", 3)
    report(tmp_path, "rows/b", "dp", 1)
    report(tmp_path, "rows/c", "dp", 0, demos=50)
    report(tmp_path, "unseen/d", "dp", 4, state_seed=555000)
    runs = read_reported(tmp_path)
    rows = by_policy(of_group(runs, "rows"))
    page = methods_page(rows, {}, "mini", {})
    wilson = wilson_interval(6 / 8, 8)
    cell = f"**75.0** 6/8, {100 * wilson.low:.1f}–{100 * wilson.high:.1f} ["
    lines = page.splitlines()
    own = next(line for line in lines if line.startswith("| mini | **"))
    assert own.count(cell) == 3 and own.endswith("| 7.5M | 12 (21) | 20 |")
    assert lines[lines.index(own) + 1] == "| *PAR-Full, the paper's figure* | *100* | *73* | *48* | – | – | – |"
    assert "| *ACT, the paper's figure* | *76* | *20* | *30* |" in page
    assert "| *PhysGen, figure of arXiv 2603.00110* | *100* | *73* | *48* |" in page
    assert "| *Pi0, figure of arXiv 2603.00110* | *100* | *60* | *48* |" in page
    assert "| dp | -50.0 (-100.0 to +0.0), p = 0.5 |" in page
    assert page.count("| dp | ") == 3  # its row, its comparison and where it comes from
    page = methods_page(rows, by_policy(of_group(runs, "unseen")), "mini", {})
    assert "| dp | 555000 | **100.0** 8/8, " in page
    assert page.count("| dp | ") == 5


def test_a_row_recorded_under_the_former_name_of_its_preset_is_shown_under_the_present_one(tmp_path: Path) -> None:
    report(tmp_path, "rows/a", "par-mini", 3)
    assert list(by_policy(read_reported(tmp_path).values())) == ["mini"]
    report(tmp_path, "rows/b", "mini", 3)
    with pytest.raises(UserError, match="rows/a and rows/b are both of mini"):
        by_policy(read_reported(tmp_path).values())


def test_curves_are_of_runs_on_a_number_of_demonstrations_by_what_they_began_with(tmp_path: Path) -> None:
    report(tmp_path, "rows/a", "par-mini", 4)
    report(tmp_path, "rows/b", "par-mini", 3, demos=300)
    report(tmp_path, "rows/c", "par-mini", 1, demos=100)
    report(tmp_path, "rows/d", "par-mini", 2, demos=100, init="runs/video/policy")
    report(tmp_path, "rows/e", "par-mini", 4, demos=50, state_seed=555000)
    report(tmp_path, "rows/f", "par-mini", 3, demos=100, steps=1100)
    runs = read_reported(tmp_path)
    points = curves(runs.values())
    shown = {key: [(point.demonstrations, point.result.successes) for point in found] for key, found in points.items()}
    assert shown == {
        (task, policy, steps): found
        for task in PAPER_TASKS
        for policy, steps, found in (
            ("mini", 400, [(100, 2), (300, 6)]),
            ("mini", 1100, [(100, 6)]),
            ("mini, --init runs/video/policy", 400, [(100, 4)]),
        )
    }
    lines = methods_page(by_policy(runs.values()), {}, "mini", points).splitlines()
    line = next(
        line for line in lines if line.startswith("| PickCube | mini, --init runs/video/policy | 400 | **50.0** 4/8")
    )
    assert line.endswith("| – |")
    report(tmp_path, "rows/g", "par-mini", 3, demos=100)
    with pytest.raises(UserError, match="are both of mini after 400 steps with 100 demonstrations of PushCube"):
        curves(read_reported(tmp_path).values())


def test_curves_leave_out_tasks_that_the_policy_was_not_trained_on(tmp_path: Path) -> None:
    report(tmp_path, "rows/a", "act", 3, demos=50)
    (run,) = read_reported(tmp_path).values()
    run.training["demonstrations"] = {"PickCube": 50}
    assert list(curves([run])) == [("PickCube", "act", 400)]
    run.training["demonstrations"] = {"mine": 50}
    with pytest.raises(UserError, match="trained on datasets mine: a curve needs folders named like the tasks"):
        curves([run])


def test_errors_are_named_beside_the_rate_that_they_lower(tmp_path: Path) -> None:
    folder = write_trained(tmp_path / "a", "par-mini", 3)
    _, (first, *others) = read_run(folder)
    write_records(folder, [failed(first), *others])
    about = read_json(folder / "results.json")
    about["results"][0]["successes"] -= 1
    write_json(folder / "results.json", about)
    cells = methods_table(by_policy([read_finished(folder, "rows/a")]))[2].split(" | ")
    assert cells[1].startswith("**62.5** 5/8") and cells[1].endswith("], 1 errors")
    assert not any("errors" in cell for cell in cells[2:])


def test_what_cannot_be_shown_is_explained(tmp_path: Path) -> None:
    report(tmp_path, "rows/b", "dp", 1)
    with pytest.raises(UserError, match="no run of the protocol is of 'mini'; there are: dp"):
        main(MakeConfig(reported=tmp_path))
    report(tmp_path, "rows/c", "dp", 1)
    with pytest.raises(UserError, match="rows/b and rows/c are both of dp"):
        main(MakeConfig(reported=tmp_path))


def test_a_run_that_is_added_is_exported_as_it_was_and_shown_until_its_records_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, make, check = tmp_path / "kept", MakeConfig(tmp_path / "kept"), MakeConfig(tmp_path / "kept", check=True)
    first = write_trained(tmp_path / "first", "par-mini", 3)
    assert main(AddConfig(first, "rows", reported=kept)) == 0
    assert main(AddConfig(first, "development", "early", reported=kept)) == 0
    assert {path.name for path in kept.iterdir()} == {ROLLOUTS_FILE, DEVELOPMENT_FILE, RUNS_FILE}
    for name in ("rows/par-mini", "development/early"):
        out = tmp_path / name
        assert main(ExportConfig(name, out, kept)) == 0
        exported, recorded = ((folder / "rollouts.jsonl").read_text().splitlines() for folder in (out, first))
        assert list(map(json.loads, exported)) == list(map(json.loads, recorded))
        assert comparison_table(CompareConfig(Path(name), first, kept)).row_count == len(PAPER_TASKS)
    assert (tmp_path / "rows/par-mini/run.json").read_bytes() == (first / "run.json").read_bytes()
    assert read_finished(tmp_path / "rows/par-mini", "a") == read_finished(first, "a")
    assert (main(check), main(make), main(check)) == (1, 0, 0)
    pages = {ROLLOUTS_FILE, DEVELOPMENT_FILE, RUNS_FILE, "results.md", "results.csv", "table.md", "table.png"}
    assert {path.name for path in kept.iterdir()} == pages
    assert (kept / "table.png").stat().st_size > 5000

    other = write_trained(tmp_path / "other", "par-mini", 2)
    with pytest.raises(UserError, match="has a run rows/par-mini already; choose another --name, or give --replace"):
        main(AddConfig(other, "rows", reported=kept))
    assert main(check) == 0
    assert main(AddConfig(other, "rows", reported=kept, replace=True)) == 0
    capsys.readouterr()
    assert main(check) == 1
    stale = {line.split(" does not show")[0] for line in capsys.readouterr().out.splitlines()}
    assert {Path(path).name for path in stale} == {"results.md", "results.csv", "table.md", "table.png"}
    assert main(AddConfig(write_trained(tmp_path / "c", "par-mini", 1, demos=50), "demonstrations", reported=kept)) == 0
    assert (main(make), main(check)) == (0, 0)
    assert (kept / "demonstrations.png").stat().st_size > 5000


def test_runs_that_are_not_finished_or_damaged_are_not_added(tmp_path: Path) -> None:
    folder, kept = write_trained(tmp_path / "run", "dp", 1), tmp_path / "kept"
    (folder / "results.json").rename(folder / "elsewhere.json")
    with pytest.raises(UserError, match="holds no finished run"):
        main(AddConfig(folder, "rows", reported=kept))
    write_json(folder / "results.json", {})
    with pytest.raises(UserError, match=r"run/results\.json lacks provenance, results"):
        main(AddConfig(folder, "rows", reported=kept))
    (folder / "elsewhere.json").rename(folder / "results.json")
    with pytest.raises(UserError, match="'a/b' has a slash"):
        main(AddConfig(folder, "rows", "a/b", reported=kept))
    assert not kept.exists()


def test_a_run_counts_when_it_was_added_to_the_end(tmp_path: Path) -> None:
    report(tmp_path, "rows/a", "par-mini", 3)
    before = (tmp_path / RUNS_FILE).read_bytes()
    report(tmp_path, "rows/b", "dp", 3)
    (tmp_path / RUNS_FILE).write_bytes(before)  # as if it was stopped between its two files
    assert list(read_reported(tmp_path)) == ["rows/a"]
    report(tmp_path, "rows/b", "dp", 2)
    assert read_reported(tmp_path)["rows/b"].results["PushCube"].successes == 4


def test_a_damaged_or_missing_file_of_the_reported_runs_is_named(tmp_path: Path) -> None:
    report(tmp_path, "rows/a", "par-mini", 3)
    content = bytearray((tmp_path / ROLLOUTS_FILE).read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 4)
    (tmp_path / ROLLOUTS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"rollouts\.parquet is damaged"):
        read_reported(tmp_path)
    (tmp_path / ROLLOUTS_FILE).unlink()
    with pytest.raises(UserError, match=r"rollouts\.parquet does not exist"):
        read_reported(tmp_path)


def test_pages_and_documents_show_the_reported_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MakeConfig(check=True)) == 0, capsys.readouterr().out


def test_the_reported_rows_were_trained_alike() -> None:
    alike = ("task", "weights", "vae", "demos", "init", "steps", "learning_rate", "warmup", "ema", "clip", "seed")
    alike += ("weight_decay", "precision", "variants", "shift", "color_jitter", "recovery_noise")
    alike += ("proprioception_noise",)
    rows = {run.policy: run.training["options"] for run in of_group(read_reported(REPORTED), "rows")}
    assert len(rows) >= 8
    for name, options in rows.items():
        assert [options.get(key) for key in alike] == [rows["par-mini"].get(key) for key in alike], name
        steps = options["steps"] * options["batch_size"] * options["accumulation"] * options["window"]
        assert steps == (576_000 if name == "icrt" else 432_000), name


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
    assert "train it with: par-agent train-baseline --method icrt" in result.stderr
    assert not list(tmp_path.iterdir())
