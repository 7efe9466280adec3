"""Finished runs as `benchmarks/run.py` leaves them, read back for tables and figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from par_agent.errors import UserError
from par_agent.evaluation.records import Record, read_run
from par_agent.evaluation.results import TaskResult, summarise
from par_agent.tasks import PAPER_TASKS, PROTOCOL_POLICY_SEEDS, PROTOCOL_STATES
from par_agent.utils.files import read_object

ROWS = {
    "par-mini": "PAR-Full",
    "par-noar": "PAR-NoAR",
    "par-discrete": "PAR-Discrete",
    "act": "ACT",
    "bc-t": "BC-T",
    "dp": "DP",
    "icrt": "ICRT",
    "rdt": "RDT",
}
"""Names of policies -> rows of the paper's Tables 2 and 3."""


class _Result(TypedDict):
    """A task's line in results.json."""

    task: str
    rollouts: int
    successes: int


class _Training(TypedDict, total=False):
    """How a policy was trained, as far as is known."""

    steps: int | None
    demonstrations: dict[str, int]
    options: dict[str, Any]


class _Origin(TypedDict, total=False):
    training: _Training | None


class _Provenance(_Origin):
    command: str
    policy_options: dict[str, Any]


class _Results(TypedDict):
    """What is read of results.json."""

    provenance: _Provenance
    results: list[_Result]


@dataclass(frozen=True)
class Run:
    """One finished run, as its folder tells it."""

    name: str
    """The policy's."""
    folder: Path
    records: list[Record]
    about: _Provenance
    """The provenance in its results.json."""
    state_seed: int | None
    """First environment seed of its initial states; None: the protocol's."""

    @property
    def track(self) -> str:
        """What the policy sees."""
        return str(self.about["track"])

    @property
    def variation(self) -> str:
        """One thing that training did not show, or none."""
        return str(self.about["variation"])

    @property
    def training(self) -> dict[str, Any]:
        """How the policy was trained, as far as its checkpoint says."""
        return self.about.get("training") or {}

    @property
    def demos(self) -> int | None:
        """The option --demos of the training; None: all demonstrations, or unknown."""
        return self.training.get("options", {}).get("demos")

    @property
    def init(self) -> str | None:
        """The checkpoint that the training began with; None: from scratch, or unknown."""
        return self.training.get("options", {}).get("init")

    def results(self) -> dict[str, TaskResult]:
        """By task."""
        planned = PROTOCOL_STATES * PROTOCOL_POLICY_SEEDS
        return {result.task: result for result in summarise(self.records, list(PAPER_TASKS), planned)}


def finished_runs(folder: Path) -> list[Run]:
    """All finished runs in a folder, in the order of their folders' names.

    Raises:
        UserError: a file is damaged, or not of the run beside it.
    """
    return [_read(path) for path in sorted(folder.glob("*/results.json"))]  # written when a run is finished


def _read(results: Path) -> Run:
    run, records = read_run(results.parent)
    content = read_object(results, _Results)
    about = content["provenance"]
    for name in ("checkpoint", "track", "variation"):
        if about.get(name) != run[name]:
            raise UserError(f"{results} is of another run than run.json beside it: {name} is {about.get(name)!r} there")
    for told in content["results"]:
        found = [record["success_once"] for record in records if record["task"] == told["task"]]
        if (len(found), sum(found)) != (told["rollouts"], told["successes"]):
            raise UserError(
                f"{results} tells of {told['successes']} successes in {told['rollouts']} rollouts of {told['task']}, "
                f"the records beside it of {sum(found)} in {len(found)}: restore both, or run the same command again"
            )
    return Run(run["policy"], results.parent, records, about, run["state_seed"])


def read_runs(folder: Path) -> list[Run]:
    """All runs of the paper track below a folder, in the order of the paper's rows.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    runs = [run for run in finished_runs(folder) if run.track == "paper" and run.variation == "none"]
    if not runs:
        raise UserError(f"{folder} holds no finished run of the paper track; make one with benchmarks/run.py")
    order = list(ROWS)
    return sorted(runs, key=lambda run: order.index(run.name) if run.name in order else len(order))


def table_rows(runs: Iterable[Run], *, protocol: bool = True) -> dict[str, Run]:
    """The runs that the table of methods shows: of the protocol, or else of other states; of all demonstrations.

    Raises:
        UserError: two of them are of the same policy.
    """
    rows: dict[str, Run] = {}
    for run in runs:
        if (run.state_seed is None) != protocol or run.demos is not None:
            continue
        if run.name in rows:
            raise UserError(
                f"{rows[run.name].folder} and {run.folder} are both of {run.name}; the table has one row for each "
                "policy: move one of them elsewhere"
            )
        rows[run.name] = run
    return rows


@dataclass(frozen=True)
class Point:
    """Success after training on so many demonstrations."""

    demonstrations: int
    run: Run
    result: TaskResult


class Curve(NamedTuple):
    """What the points of one curve have in common."""

    task: str
    policy: str
    """Its name and, where its training began with a checkpoint, that."""
    steps: int
    """Of its training."""


def curves(runs: Iterable[Run]) -> dict[Curve, list[Point]]:
    """Success by number of demonstrations, of the protocol's runs whose policies were trained with --demos.

    Returns:
        Each curve's points by number.

    Raises:
        UserError: two runs make the same point, or a run's policy was rolled out on none of its training's datasets.
    """
    found: dict[Curve, dict[int, Point]] = {}
    for run in runs:
        if run.state_seed is not None or run.demos is None:
            continue
        policy = run.name if run.init is None else f"{run.name}, --init {run.init}"
        steps, counts, results = run.training["steps"], run.training["demonstrations"], run.results()
        trained = [task for task in results if task in counts]
        if not trained:
            raise UserError(
                f"{run.folder} rolled out {', '.join(results)} with a policy trained on datasets {', '.join(counts)}: "
                "a curve needs folders named like the tasks"
            )
        for task in trained:
            count, points = counts[task], found.setdefault(Curve(task, policy, steps), {})
            if count in points:
                raise UserError(
                    f"{points[count].run.folder} and {run.folder} are both of {policy} after {steps} steps with "
                    f"{count} demonstrations of {task}: move one of them elsewhere"
                )
            points[count] = Point(count, run, results[task])
    return {key: [points[count] for count in sorted(points)] for key, points in sorted(found.items())}
