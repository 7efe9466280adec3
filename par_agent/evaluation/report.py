"""A run's table, in the terminal and as results.md, results.csv and results.json, with the paper's figures."""

from __future__ import annotations

import csv
import io
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from par_agent.evaluation.records import Record
from par_agent.evaluation.statistics import Interval, cluster_bootstrap, wilson_interval
from par_agent.files import atomic_path, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from par_agent.evaluation.runner import BenchmarkRun

PAPER_RESULTS: dict[str, dict[str, float]] = {
    "PAR-Full": {"PushCube": 100.0, "PickCube": 73.0, "StackCube": 48.0},
    "PAR-NoAR": {"PushCube": 29.6, "PickCube": 4.0, "StackCube": 0.0},
    "PAR-Discrete": {"PushCube": 87.2, "PickCube": 65.6, "StackCube": 7.2},
    "ACT": {"PushCube": 76.0, "PickCube": 20.0, "StackCube": 30.0},
    "BC-T": {"PushCube": 98.0, "PickCube": 4.0, "StackCube": 14.0},
    "DP": {"PushCube": 88.0, "PickCube": 40.0, "StackCube": 80.0},
    "ICRT": {"PushCube": 77.0, "PickCube": 78.0, "StackCube": 30.0},
    "RDT": {"PushCube": 100.0, "PickCube": 77.0, "StackCube": 74.0},
}
"""Success rates in percent as printed in the paper (Tables 2 and 3); none of them was measured here."""


@dataclass(frozen=True)
class TaskResult:
    """One task's line in the table."""

    task: str
    rollouts: int
    """Rollouts finished, those with errors included."""
    planned: int
    """Rollouts in the run."""
    successes: int
    """Rollouts with success at any step (``success_once``)."""
    errors: int
    """Rollouts that ended with an exception; they count as failures."""
    rate: float
    """Successes by rollouts, 0..1."""
    wilson: Interval
    """95% interval over rollouts."""
    cluster: Interval
    """95% interval that draws whole initial states."""
    success_at_end: int | None
    """Rollouts solved after the last step; None unless rollouts ran to the end."""
    steps_to_success: float | None
    """Mean control steps of the successful rollouts."""
    reward: float | None
    """Mean sum of rewards of the rollouts without error."""
    plan_ms: float | None
    """Median over rollouts of the time of one planning ``act()``, milliseconds."""
    renders: float | None
    """Mean frames that the policy consumed."""
    seconds: float | None
    """Mean wall time of a rollout."""


def summarise(records: list[Record], tasks: list[str], planned: int) -> list[TaskResult]:
    """One line per task that has records, in the order of `tasks`.

    Args:
        records: of one run.
        tasks: task names.
        planned: rollouts per task in the whole run.
    """
    by_task = {task: [record for record in records if record["task"] == task] for task in tasks}
    return [_summarise_task(task, found, planned) for task, found in by_task.items() if found]


def _summarise_task(task: str, records: list[Record], planned: int) -> TaskResult:
    successes = sum(record["success_once"] for record in records)
    by_state: dict[Any, list[float]] = {}
    for record in records:
        by_state.setdefault(record["state"], []).append(float(record["success_once"]))

    def values(field: str) -> list[Any]:
        return [record[field] for record in records if record[field] is not None]

    def average(field: str) -> float | None:
        return mean(values(field)) if values(field) else None

    return TaskResult(
        task=task,
        rollouts=len(records),
        planned=planned,
        successes=successes,
        errors=sum(record["error"] is not None for record in records),
        rate=successes / len(records),
        wilson=wilson_interval(successes, len(records)),
        cluster=cluster_bootstrap(by_state),
        success_at_end=sum(values("success_at_end")) if values("success_at_end") else None,
        steps_to_success=average("steps_to_success"),
        reward=average("reward"),
        plan_ms=median(values("plan_ms")) if values("plan_ms") else None,
        renders=average("renders"),
        seconds=average("seconds"),
    )


def _percent(interval: Interval) -> str:
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


_RESULT_HEADER = (
    "task",
    "successes",
    "rate %",
    "95% Wilson",
    "95% by state",
    "at end",
    "errors",
    "steps to success",
    "reward",
    "plan ms",
    "frames",
    "s/rollout",
)

_TERMINAL_COLUMNS = ("task", "successes", "rate %", "95% Wilson", "95% by state", "errors", "plan ms")
"""Those that fit a narrow terminal; the files have all."""


def _result_row(result: TaskResult) -> tuple[str, ...]:
    unfinished = "" if result.rollouts == result.planned else f" (of {result.planned} planned)"
    return (
        result.task,
        f"{result.successes}/{result.rollouts}{unfinished}",
        f"{100 * result.rate:.1f}",
        _percent(result.wilson),
        _percent(result.cluster),
        "–" if result.success_at_end is None else f"{result.success_at_end}/{result.rollouts}",
        str(result.errors),
        _number(result.steps_to_success),
        _number(result.reward),
        _number(result.plan_ms),
        _number(result.renders),
        _number(result.seconds, 2),
    )


def _comparison_rows(results: list[TaskResult], label: str, tasks: list[str]) -> list[tuple[str, ...]]:
    """Success rates by method: this run's, then the paper's for the tasks that the paper has."""
    measured = {result.task: result.rate for result in results}
    rows = [(label, "this run", *(_number(100 * measured[t]) if t in measured else "–" for t in tasks))]
    for method, rates in PAPER_RESULTS.items():
        if any(task in rates for task in tasks):
            rows.append((method, "paper", *(_number(rates.get(task)) for task in tasks)))
    return rows


def terminal_tables(run: BenchmarkRun, results: list[TaskResult]) -> list[Table]:
    """The run's results and the comparison with the paper, for rich to print."""
    from rich.table import Table

    label = run.config.policy.label
    details = Table(title=f"{label}, {run.config.track} track, {run.config.protocol_label}")
    for column in _TERMINAL_COLUMNS:
        details.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for result in results:
        cells = dict(zip(_RESULT_HEADER, _result_row(result), strict=True))
        details.add_row(*(cells[column] for column in _TERMINAL_COLUMNS))
    tasks = [spec.name for spec in run.specs.values()]
    comparison = Table(title="success rate in % (rows labelled paper: printed there, not measured here)")
    for column in ("method", "source", *tasks):
        comparison.add_column(column, justify="left" if column in ("method", "source") else "right")
    for row in _comparison_rows(results, label, tasks):
        comparison.add_row(*row)
    return [details, comparison]


def write_results(run: BenchmarkRun, records: list[Record]) -> list[TaskResult]:
    """Writes results.md, results.csv and results.json into the run's folder; each appears when it is complete."""
    tasks = [spec.name for spec in run.specs.values()]
    results = summarise(records, tasks, run.config.states * run.config.policy_seeds)
    source = provenance(run)
    write_json(run.folder / "results.json", {"results": [asdict(result) for result in results], "provenance": source})
    for name, text in (
        ("results.md", _markdown(run, results, tasks, source)),
        ("results.csv", _csv(run, results, tasks)),
    ):
        with atomic_path(run.folder / name) as temporary:
            temporary.write_text(text)
    return results


def _markdown(run: BenchmarkRun, results: list[TaskResult], tasks: list[str], source: dict[str, Any]) -> str:
    def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
        return [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)]

    label = run.config.policy.label
    note = "" if run.config.track == "paper" else "The paper's figures are of the `paper` track."
    lines = [
        f"# {label}, {run.config.track} track",
        "",
        f"Initial states: {run.config.protocol_label}. Success is success at any control step.",
        "",
        *table(_RESULT_HEADER, [_result_row(result) for result in results]),
        "",
        f"Success rate in %. Rows labelled *paper* are printed there and were not measured here. {note}".strip(),
        "",
        *table(("method", "source", *tasks), _comparison_rows(results, label, tasks)),
        "",
        "## Provenance",
        "",
        f"- command: `{source['command']}`",
        f"- git commit: {source['git_commit']}",
        f"- checkpoint: {source['checkpoint']}",
        f"- device: {source['device']}; rendered by {source['renderer']}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in source['versions'].items())}",
    ]
    return "\n".join(lines) + "\n"


def _csv(run: BenchmarkRun, results: list[TaskResult], tasks: list[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    fields = ("successes", "rollouts", "errors", "rate_percent", "wilson_low", "wilson_high", "state_low", "state_high")
    writer.writerow(("method", "source", "initial_states", "track", "task", *fields))
    for r in results:
        bounds = (f"{100 * bound:.2f}" for bound in (r.wilson.low, r.wilson.high, r.cluster.low, r.cluster.high))
        head = (run.config.policy.label, "this run", run.config.protocol_label, run.config.track, r.task)
        writer.writerow((*head, r.successes, r.rollouts, r.errors, f"{100 * r.rate:.2f}", *bounds))
    for method, rates in PAPER_RESULTS.items():
        for task in tasks:
            if task in rates:
                writer.writerow((method, "paper", "the protocol", "paper", task, "", "", "", rates[task], *[""] * 4))
    return buffer.getvalue()


def provenance(run: BenchmarkRun) -> dict[str, Any]:
    """All that is needed to repeat the run."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git_commit": _git_commit(),
        "policy": run.config.policy.reference,
        "policy_options": run.config.policy.options,
        "checkpoint": run.fingerprint,
        "track": run.config.track,
        "initial_states": run.config.protocol_label,
        "tasks": [asdict(spec) for spec in run.specs.values()],
        "workers": run.config.workers,
        "device": f"{_processor()}, {os.cpu_count()} cores, policy on {run.config.policy.device}",
        "renderer": run.renderer,
        "platform": platform.platform(),
        "versions": run.versions,
    }


def _git_commit() -> str:
    """Commit of the repository that this package lies in, marked where files differ from it."""
    folder = Path(__file__).parent
    command = ("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"


def _processor() -> str:
    """The processor's name as Linux reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
