"""A run's figures: one line per task with counts, intervals and times, and the paper's figures to set beside them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from par_agent.evaluation.alignment import ENCODER_PSNR, by_horizon
from par_agent.evaluation.records import Record
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


@dataclass(frozen=True)
class TaskResult:
    """One task's line in the table."""

    task: str
    rollouts: int
    """Rollouts finished, those with errors included."""
    planned: int
    """Rollouts in the run."""
    distinct: int
    """Rollouts that do not repeat another's actions from the same initial state, as those of other policy seeds do
    where a policy draws no random numbers."""
    successes: int
    """Rollouts with success at any step (``success_once``)."""
    errors: int
    """Rollouts that ended with an exception; they count as failures."""
    rate: float
    """Successes by rollouts, 0..1."""
    wilson: Interval
    """95% interval of the rate, as wide as for as many trials as there are distinct rollouts."""
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
    alignment: dict[str, list[float]] | None = None
    """By measure, its means at horizons 1, 2, …; see :mod:`par_agent.evaluation.alignment`. None: not measured."""
    encoder_psnr_db: float | None = None
    """Mean PSNR of the true frames seen through the frame encoder, dB."""


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
    distinct = len(distinct_rollouts(records))
    by_state: dict[Any, list[float]] = {}
    for record in records:
        by_state.setdefault(record["state"], []).append(float(record["success_once"]))

    def values(field: str) -> list[Any]:
        return [record[field] for record in records if record[field] is not None]

    def average(field: str) -> float | None:
        return mean(values(field)) if values(field) else None

    alignments = [record["alignment"] for record in records if record.get("alignment")]
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
        alignment=by_horizon(alignments) if alignments else None,
        encoder_psnr_db=mean(value for a in alignments for value in a[ENCODER_PSNR]) if alignments else None,
    )


def _percent(interval: Interval) -> str:
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


RESULT_HEADER = (
    "task",
    "successes",
    "distinct",
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


def result_row(result: TaskResult) -> tuple[str, ...]:
    unfinished = "" if result.rollouts == result.planned else f" (of {result.planned} planned)"
    return (
        result.task,
        f"{result.successes}/{result.rollouts}{unfinished}",
        str(result.distinct),
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


def comparison_rows(results: list[TaskResult], label: str, tasks: list[str]) -> list[tuple[str, ...]]:
    """Success rates by method: this run's, then the paper's for the tasks that the paper has."""
    measured = {result.task: result.rate for result in results}
    rows = [(label, "this run", *(_number(100 * measured[t]) if t in measured else "–" for t in tasks))]
    for method, rates in PAPER_RESULTS.items():
        if any(task in rates for task in tasks):
            rows.append((method, "paper", *(_number(rates.get(task)) for task in tasks)))
    return rows
