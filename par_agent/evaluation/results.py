"""A run's figures: one line per task with counts, intervals and times, and published figures to set beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import mean, median
from typing import Any

from par_agent.evaluation.measurements import Section, known_measurements
from par_agent.evaluation.records import Record
from par_agent.evaluation.stages import STAGES
from par_agent.evaluation.statistics import Interval, cluster_bootstrap, distinct_rollouts, wilson_interval

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

PHYSGEN_PAPER = "arXiv 2603.00110"
"""A later paper with figures for the same protocol."""

PUBLISHED_RESULTS: dict[str, dict[str, dict[str, float]]] = {
    "paper": PAPER_RESULTS,
    PHYSGEN_PAPER: {
        "PhysGen": {"PushCube": 100.0, "PickCube": 73.0, "StackCube": 48.0},
        "Pi0": {"PushCube": 100.0, "PickCube": 60.0, "StackCube": 48.0},
    },
}
"""Success rates in percent by where they are printed and by method; none of them was measured here."""

NOTHING = "–"
"""A cell without a figure."""


@dataclass(frozen=True)
class TaskResult:
    """One task's line in the table."""

    task: str
    rollouts: int
    """Rollouts finished, those with errors included."""
    planned: int
    """Rollouts in the run."""
    distinct: int
    """Rollouts that do not repeat another's actions from the same initial state."""
    successes: int
    """Rollouts with success at any step (``success_once``)."""
    errors: int
    """Rollouts that ended with an exception; they count as failures."""
    rate: float
    """Successes by rollouts, 0..1."""
    wilson: Interval
    """95% interval of the rate, with as many trials as there are distinct rollouts."""
    cluster: Interval
    """95% interval that draws whole initial states."""
    success_at_end: int | None
    """Rollouts solved after the last step; None if rollouts ended with the first success."""
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
    stages: dict[str, int] = field(default_factory=dict)
    """Rollouts that came to a stage at any step, by stage; those of the task."""
    measured: dict[str, Any] = field(default_factory=dict)
    """Summaries of what was measured besides, by the measurement's name."""


def summarise(records: list[Record], tasks: list[str], planned: int) -> list[TaskResult]:
    """One line per task that has records, in the order of `tasks`; `planned` rollouts make a task complete."""
    by_task = {task: [record for record in records if record["task"] == task] for task in tasks}
    return [_summarise_task(task, found, planned) for task, found in by_task.items() if found]


def _summarise_task(task: str, records: list[Record], planned: int) -> TaskResult:
    successes = sum(record["success_once"] for record in records)
    distinct = len(distinct_rollouts(records))
    by_state: dict[Any, list[float]] = {}
    for record in records:
        by_state.setdefault(record["state"], []).append(float(record["success_once"]))

    def values(field: str) -> list[Any]:
        return [record[field] for record in records if record[field] is not None]

    def average(field: str) -> float | None:
        return mean(values(field)) if values(field) else None

    measured = {}
    for name, measurement in known_measurements().items():
        if found := [record[name] for record in records if record.get(name)]:
            measured[name] = measurement.summarise(found)
    return TaskResult(
        task=task,
        rollouts=len(records),
        planned=planned,
        distinct=distinct,
        successes=successes,
        errors=sum(record["error"] is not None for record in records),
        rate=successes / len(records),
        wilson=wilson_interval(successes / len(records), distinct),
        cluster=cluster_bootstrap(by_state),
        success_at_end=sum(values("success_at_end")) if values("success_at_end") else None,
        steps_to_success=average("steps_to_success"),
        reward=average("reward"),
        plan_ms=median(values("plan_ms")) if values("plan_ms") else None,
        renders=average("renders"),
        seconds=average("seconds"),
        stages={name: sum(r.get(name, False) for r in records) for name in STAGES if any(name in r for r in records)},
        measured=measured,
    )


def _number(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _successes(result: TaskResult) -> str:
    unfinished = "" if result.rollouts == result.planned else f" (of {result.planned} planned)"
    return f"{result.successes}/{result.rollouts}{unfinished}"


def _share(count: int | None, result: TaskResult) -> str:
    return NOTHING if count is None else f"{count}/{result.rollouts}"


_COLUMNS: dict[str, Callable[[TaskResult], str]] = {
    "task": lambda result: result.task,
    "successes": _successes,
    "distinct": lambda result: str(result.distinct),
    "rate %": lambda result: f"{100 * result.rate:.1f}",
    "95% Wilson": lambda result: result.wilson.percent,
    "95% by state": lambda result: result.cluster.percent,
    "success at end": lambda result: _share(result.success_at_end, result),
    **{stage: partial(lambda stage, result: _share(result.stages.get(stage), result), stage) for stage in STAGES},
    "errors": lambda result: str(result.errors),
    "steps to success": lambda result: _number(result.steps_to_success),
    "reward": lambda result: _number(result.reward),
    "plan ms": lambda result: _number(result.plan_ms),
    "frames": lambda result: _number(result.renders),
    "s/rollout": lambda result: _number(result.seconds, 2),
}


def result_table(results: Sequence[TaskResult]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of tasks' results, without the columns that none of them has."""
    columns = {name: [cell(result) for result in results] for name, cell in _COLUMNS.items()}
    shown = {name: cells for name, cells in columns.items() if any(cell != NOTHING for cell in cells)}
    return tuple(shown), list(zip(*shown.values(), strict=True))


def csv_cells(result: TaskResult) -> dict[str, Any]:
    """A task's cells in CSV files, by column."""
    cells = {name: getattr(result, name) for name in ("task", "successes", "rollouts", "distinct", "errors")}
    cells |= {"success_at_end": result.success_at_end, **{stage: result.stages.get(stage) for stage in STAGES}}
    cells["rate_percent"] = f"{100 * result.rate:.2f}"
    for name, interval in (("wilson", result.wilson), ("state", result.cluster)):
        cells |= {f"{name}_low": f"{100 * interval.low:.2f}", f"{name}_high": f"{100 * interval.high:.2f}"}
    return cells


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)]


def comparison_rows(results: list[TaskResult], label: str, tasks: list[str]) -> list[tuple[str, ...]]:
    """Success rates by method: this run's, then the published ones of these tasks, each with where it is printed."""
    measured = {result.task: result.rate for result in results}
    rows = [(label, "this run", *(_number(100 * measured[t]) if t in measured else NOTHING for t in tasks))]
    for source, methods in PUBLISHED_RESULTS.items():
        for method, rates in methods.items():
            if any(task in rates for task in tasks):
                rows.append((method, source, *(_number(rates.get(task)) for task in tasks)))
    return rows


def measured_sections(results: list[TaskResult]) -> list[Section]:
    """What the pages show of what was measured besides."""
    sections = []
    for name, measurement in known_measurements().items():
        if summaries := {result.task: result.measured[name] for result in results if name in result.measured}:
            sections.append(measurement.section(summaries))
    return sections
