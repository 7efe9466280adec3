"""Rebuilds the table and the figure of all methods from the records of finished runs; nothing is simulated.

python benchmarks/reproduce_table.py                                # of the runs in benchmarks/reported/rows
python benchmarks/reproduce_table.py --runs benchmarks/results --out table
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from par_agent.errors import UserError
from par_agent.evaluation.records import Record, read_records, record_key
from par_agent.evaluation.results import PAPER_RESULTS, TaskResult, summarise
from par_agent.evaluation.statistics import compare_paired
from par_agent.files import atomic_path, cannot_write, read_json
from par_agent.tasks import PAPER_TASKS, PROTOCOL_POLICY_SEEDS, PROTOCOL_STATES

REPORTED = Path(__file__).parent / "reported" / "rows"
"""Runs of all methods after the same training."""
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
NOTHING = "–"


@dataclass(frozen=True)
class TableConfig:
    """Where the runs are and where table and figures go."""

    runs: Path = REPORTED
    """Folder of the runs' folders, as benchmarks/run.py writes them."""
    out: Path = REPORTED
    """Folder that table.md and the figures are written to."""
    reference: str = "par-mini"
    """Policy that the others are tested against."""


@dataclass(frozen=True)
class Run:
    """One finished run, as its folder tells it."""

    name: str
    """The policy's."""
    folder: Path
    records: list[Record]
    about: dict[str, Any]
    """The provenance in its results.json."""
    state_seed: int | None
    """First environment seed of its initial states; None: the protocol's."""

    @property
    def training(self) -> dict[str, Any]:
        """How the policy was trained, as far as its checkpoint says."""
        return self.about.get("training") or {}

    @property
    def demos(self) -> int | None:
        """The option --demos of the training; None: all demonstrations, or unknown."""
        return self.training.get("options", {}).get("demos")

    def results(self) -> dict[str, TaskResult]:
        """By task."""
        planned = PROTOCOL_STATES * PROTOCOL_POLICY_SEEDS
        return {result.task: result for result in summarise(self.records, list(PAPER_TASKS), planned)}


def read_runs(folder: Path) -> list[Run]:
    """All runs below a folder, in the order of the paper's rows.

    Raises:
        UserError: there are none, a file is damaged, or two runs of the protocol are of the same policy.
    """
    runs = []
    for path in sorted(folder.glob("*/rollouts.jsonl")):
        identity, about = read_json(path.parent / "run.json"), read_json(path.parent / "results.json")["provenance"]
        if identity["track"] == "paper" and identity.get("variation", "none") == "none":
            run = Run(identity["policy"], path.parent, read_records(path), about, identity["state_seed"])
            runs.append(run)
    if not runs:
        raise UserError(f"{folder} holds no finished run of the paper track; make one with benchmarks/run.py")
    order = list(ROWS)
    return sorted(runs, key=lambda run: order.index(run.name) if run.name in order else len(order))


def table_rows(runs: list[Run]) -> dict[str, Run]:
    """The runs that the table shows: of the protocol, trained on all demonstrations.

    Raises:
        UserError: two of them are of the same policy.
    """
    rows: dict[str, Run] = {}
    for run in runs:
        if run.state_seed is not None or run.demos is not None:
            continue
        if run.name in rows:
            raise UserError(
                f"{rows[run.name].folder} and {run.folder} are both of {run.name}; the table has one row for each "
                "policy: move one of them elsewhere"
            )
        rows[run.name] = run
    return rows


def table(rows: Mapping[str, Run], reference: str) -> str:
    """The page in Markdown.

    Raises:
        UserError: there is no run of the reference.
    """
    lines = [
        "# All methods",
        "",
        "Success at any control step in %, with successes, rollouts and the 95% Wilson interval; in brackets the 95% "
        "interval that draws whole initial states. Rows in italics are printed in the paper and were not measured "
        "here. Minutes are those of the training steps on the machine that trained (processor minutes in brackets); "
        "a chunk's time is one planning `act()`, frame encoder included.",
        "",
        *methods(rows),
        "",
        f"## Against {reference}",
        "",
        f"Difference of success rates in points ({reference} = 0), on the same initial states and policy seeds: 95% "
        "interval by initial state, and the p-value of McNemar's exact test, which takes rollouts as independent. "
        "Where the two disagree, trust the interval.",
        "",
        *_markdown(("method", *PAPER_TASKS), _comparisons(rows, reference)),
        "",
        "## Where this comes from",
        "",
        *_markdown(
            ("method", "checkpoint", "rollouts", "command"),
            [
                (name, f"`{run.about['checkpoint']}`", str(len(run.records)), f"`{run.about['command']}`")
                for name, run in rows.items()
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def methods(rows: Mapping[str, Run]) -> list[str]:
    """Lines of the table in Markdown: every method, and below it what the paper prints of it."""
    return _markdown(
        ("method", *PAPER_TASKS, "parameters", "training min", "ms per chunk"),
        [line for name, run in rows.items() for line in _method_lines(name, run)] + _unmeasured(rows),
    )


def _method_lines(name: str, run: Run) -> list[tuple[str, ...]]:
    """A method's own row, and the paper's below it."""
    results, training, parameters = run.results(), run.training, run.about.get("parameters")
    minutes = NOTHING
    if "minutes" in training:
        minutes = f"{training['minutes']:.0f} ({training['processor_minutes']:.0f})"
    speeds = [result.plan_ms for result in results.values() if result.plan_ms is not None]
    own = (
        name,
        *(_cell(results.get(task)) for task in PAPER_TASKS),
        NOTHING if parameters is None else f"{parameters / 1e6:.1f}M",
        minutes,
        f"{sum(speeds) / len(speeds):.0f}" if speeds else NOTHING,
    )
    return [own, _paper_line(ROWS[name])] if name in ROWS else [own]


def _paper_line(row: str) -> tuple[str, ...]:
    figures = (f"*{PAPER_RESULTS[row][task]:g}*" for task in PAPER_TASKS)
    return (f"*{row}, the paper's figure*", *figures, NOTHING, NOTHING, NOTHING)


def _unmeasured(rows: Mapping[str, Run]) -> list[tuple[str, ...]]:
    """The paper's rows that no run here is of."""
    return [_paper_line(row) for name, row in ROWS.items() if name not in rows]


def _cell(result: TaskResult | None) -> str:
    if result is None:
        return NOTHING
    wilson, cluster = (f"{100 * bounds.low:.1f}–{100 * bounds.high:.1f}" for bounds in (result.wilson, result.cluster))
    return f"**{100 * result.rate:.1f}** {result.successes}/{result.rollouts}, {wilson} [{cluster}]"


def _comparisons(rows: Mapping[str, Run], reference: str) -> list[tuple[str, ...]]:
    if reference not in rows:
        raise UserError(f"no run of the protocol is of {reference!r}; there are: {', '.join(rows) or 'none'}")
    lines = []
    for name, run in rows.items():
        if name == reference:
            continue
        cells = []
        for task in PAPER_TASKS:
            first, second = (
                {record_key(record): bool(record["success_once"]) for record in found if record["task"] == task}
                for found in (rows[reference].records, run.records)
            )
            if not first.keys() & second.keys():
                cells.append(NOTHING)
                continue
            found = compare_paired(first, second)
            low, high = 100 * found.interval.low, 100 * found.interval.high
            cells.append(f"{100 * found.risk_difference:+.1f} ({low:+.1f} to {high:+.1f}), p = {found.p_value:.2g}")
        lines.append((name, *cells))
    return lines


def _markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)]


def draw_table(rows: Mapping[str, Run], reference: str, path: Path) -> None:
    """Bars of the measured rates with Wilson intervals by task; the paper's figures as open marks."""
    figure, axes = _axes(len(PAPER_TASKS))
    for axis, task in zip(axes, PAPER_TASKS, strict=True):
        for place, (name, run) in enumerate(rows.items()):
            if (result := run.results().get(task)) is not None:
                rate = 100 * result.rate
                error = [[rate - 100 * result.wilson.low], [100 * result.wilson.high - rate]]
                axis.bar(place, rate, yerr=error, capsize=3, color="tab:blue" if name == reference else "tab:gray")
            if name in ROWS:
                axis.plot(place, PAPER_RESULTS[ROWS[name]][task], "o", mfc="none", color="tab:red")
        axis.set_title(task)
        axis.set_xticks(range(len(rows)), rows, rotation=45, ha="right")
    axes[0].set_ylabel("success rate, %")
    axes[-1].plot([], [], "o", mfc="none", color="tab:red", label="printed in the paper")
    axes[-1].legend(loc="upper right")
    _save(figure, path)


def draw_demos(runs: list[Run], path: Path) -> bool:
    """Rates by the number of demonstrations trained on, with Wilson intervals; False: no run was trained on fewer."""
    few = {run.name for run in runs if run.demos is not None}
    curves: dict[tuple[str, str], list[tuple[int, TaskResult]]] = {}
    for run in runs:
        if run.state_seed is None and run.name in few:
            for task, result in run.results().items():
                if (count := run.training.get("demonstrations", {}).get(task)) is not None:
                    curves.setdefault((task, run.name), []).append((count, result))
    if not curves:
        return False
    tasks = sorted({task for task, _ in curves})
    figure, axes = _axes(len(tasks))
    for (task, name), points in sorted(curves.items()):
        axis = axes[tasks.index(task)]
        points.sort(key=lambda point: point[0])
        rates = [100 * result.rate for _, result in points]
        below = [rate - 100 * result.wilson.low for rate, (_, result) in zip(rates, points, strict=True)]
        above = [100 * result.wilson.high - rate for rate, (_, result) in zip(rates, points, strict=True)]
        axis.errorbar([count for count, _ in points], rates, yerr=[below, above], marker="o", capsize=3, label=name)
        axis.set(title=task, xscale="log", xlabel="demonstrations")
        axis.legend()
    axes[0].set_ylabel("success rate, %")
    _save(figure, path)
    return True


def _axes(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * count, 4), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    axes[0].set_ylim(0, 105)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def main(config: TableConfig) -> int:
    """Reads the runs, writes table.md, table.png and, where there are such runs, demonstrations.png."""
    runs = read_runs(config.runs)
    rows = table_rows(runs)
    page = table(rows, config.reference)
    try:
        with atomic_path(config.out / "table.md") as temporary:
            temporary.write_text(page)
        draw_table(rows, config.reference, config.out / "table.png")
        written = ["table.md", "table.png"]
        if draw_demos(runs, config.out / "demonstrations.png"):
            written.append("demonstrations.png")
    except OSError as error:
        raise UserError(cannot_write(config.out, error)) from error
    print(page)
    print(f"written to {config.out}: {', '.join(written)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(TableConfig, description=__doc__)))
    except UserError as error:
        print(f"benchmarks/reproduce_table.py: error: {error}", file=sys.stderr)
        sys.exit(2)
