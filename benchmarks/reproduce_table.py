"""Rebuilds the table of all methods and its figures from the records of finished runs; nothing is simulated.

python benchmarks/reproduce_table.py                     # of the runs in benchmarks/reported
python benchmarks/reproduce_table.py --runs my-rows --out my-table   # of folders of benchmarks/results put into my-rows
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import draw_curves, draw_table
from finished_runs import ROWS, Curve, Point, Run, curves, read_runs, table_rows

from par_agent.cli.options import run_script
from par_agent.errors import UserError
from par_agent.evaluation.records import record_key
from par_agent.evaluation.results import PAPER_RESULTS, TaskResult
from par_agent.evaluation.statistics import compare_paired
from par_agent.option_ranges import Checked
from par_agent.tasks import PAPER_TASKS
from par_agent.utils.files import atomic_path, writing

REPORTED = Path(__file__).parent / "reported"
NOTHING = "–"
EXPLAINED = (
    "Success at any control step in %, with successes, rollouts and the 95% Wilson interval, as wide as for those "
    "rollouts that repeat no other's actions; in brackets the 95% interval that draws whole initial states. Rollouts "
    "that ended with an exception count as failures, and are named. Rows in italics are printed in the paper and were "
    "not measured here. Minutes are those of the training steps on the machine that trained (processor minutes in "
    "brackets); a chunk's time is one planning `act()`, frame encoder included."
)
COMPARED = (
    "Difference of success rates in points ({reference} = 0), on the same initial states and policy seeds: 95% "
    "interval by initial state, and the p-value of the exact sign-flip test by initial state (McNemar's, where each "
    "has one rollout); it is that of one cell, not corrected for their number. An interval of one point says only that "
    "no state was solved by one alone."
)
SOURCES = (
    "The hash is of the weights and, of methods that are not PAR, of the code around them: it changes with either."
)


@dataclass(frozen=True)
class TableConfig(Checked):
    """Where the runs are and where table and figures go."""

    runs: tuple[Path, ...] = (REPORTED / "rows", REPORTED / "unseen", REPORTED / "demonstrations")
    """Folders of the runs' folders, as benchmarks/run.py writes them."""
    out: Path = REPORTED / "rows"
    """Folder that table.md and the figures are written to."""
    reference: str = "par-mini"
    """Policy that the others are tested against."""


def table(
    rows: Mapping[str, Run],
    unseen: Mapping[str, Run],
    reference: str,
    points: Mapping[Curve, Sequence[Point]],
) -> str:
    """The page in Markdown.

    Args:
        rows: runs of the protocol, by policy.
        unseen: runs of other initial states, by policy.
        reference: the policy that the others are tested against.
        points: what :func:`finished_runs.curves` gives.

    Raises:
        UserError: there is no run of the reference.
    """
    lines = [
        "# All methods",
        "",
        EXPLAINED,
        "",
        *methods(rows),
        "",
        f"## Against {reference}",
        "",
        COMPARED.format(reference=reference),
        "",
        *_markdown(("method", *PAPER_TASKS), _comparisons(rows, reference)),
        "",
        *(["## From other initial states", "", *other_states(unseen), ""] if unseen else []),
        *(["## By number of demonstrations", "", *demonstrations(points), ""] if points else []),
        "## Where this comes from",
        "",
        SOURCES,
        "",
        *_markdown(
            ("method", "weights and code", "rollouts", "command"),
            [
                (name, f"`{run.about['checkpoint']}`", str(len(run.records)), f"`{run.about['command']}`")
                for found in (rows, unseen)
                for name, run in found.items()
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


def demonstrations(points: Mapping[Curve, Sequence[Point]]) -> list[str]:
    """Lines of the table in Markdown: a row for every curve, a column for every number."""
    numbers = sorted({point.demonstrations for found in points.values() for point in found})
    lines = []
    for curve, found in points.items():
        cells = {point.demonstrations: _cell(point.result) for point in found}
        lines.append((curve.task, curve.policy, str(curve.steps), *(cells.get(number, NOTHING) for number in numbers)))
    return _markdown(("task", "policy", "training steps", *(f"{number} demonstrations" for number in numbers)), lines)


def other_states(rows: Mapping[str, Run]) -> list[str]:
    """Lines of the table in Markdown: what the methods solve from initial states that are not the protocol's."""
    lines = []
    for name, run in rows.items():
        results = run.results()
        lines.append((name, str(run.state_seed), *(_cell(results.get(task)) for task in PAPER_TASKS)))
    return _markdown(("method", "states from seed", *PAPER_TASKS), lines)


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
    errors = f", {result.errors} errors" if result.errors else ""
    return f"**{100 * result.rate:.1f}** {result.successes}/{result.rollouts}, {wilson} [{cluster}]{errors}"


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
                [record for record in found if record["task"] == task]
                for found in (rows[reference].records, run.records)
            )
            if not {record_key(record) for record in first} & {record_key(record) for record in second}:
                cells.append(NOTHING)
                continue
            found = compare_paired(first, second)
            low, high = 100 * found.interval.low, 100 * found.interval.high
            cells.append(f"{100 * found.risk_difference:+.1f} ({low:+.1f} to {high:+.1f}), p = {found.p_value:.2g}")
        lines.append((name, *cells))
    return lines


def _markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)]


def main(config: TableConfig) -> int:
    """Reads the runs, writes table.md, table.png and, where there are such runs, demonstrations.png."""
    runs = [run for folder in config.runs for run in read_runs(folder)]
    rows, points = table_rows(runs), curves(runs)
    page = table(rows, table_rows(runs, protocol=False), config.reference, points)
    written = ["table.md", "table.png"]
    with writing(config.out):
        with atomic_path(config.out / "table.md") as temporary:
            temporary.write_text(page)
        draw_table(rows, config.reference, config.out / "table.png")
        if points:
            draw_curves(points, config.out / "demonstrations.png")
            written.append("demonstrations.png")
    print(page)
    print(f"written to {config.out}: {', '.join(written)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/reproduce_table.py", main, TableConfig, __doc__))
