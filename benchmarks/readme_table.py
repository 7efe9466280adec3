"""Writes the tables of results in the READMEs and in the model cards from the records in `benchmarks/reported`.

python benchmarks/readme_table.py            # writes
python benchmarks/readme_table.py --check    # exits 1 if a document is not what it would write
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finished_runs import Run, curves, finished_runs, read_runs, table_rows
from reproduce_table import demonstrations, methods, other_states

from par_agent.cli.options import run_script
from par_agent.errors import UserError
from par_agent.evaluation.results import PAPER_RESULTS, TaskResult
from par_agent.option_ranges import Checked
from par_agent.simulation.variations import VARIATIONS
from par_agent.tasks import PAPER_TASKS
from par_agent.utils.files import atomic_path, read_content

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class TableConfig(Checked):
    """Where the results are and where the table goes."""

    reported: Path = ROOT / "benchmarks" / "reported"
    """Folders of finished runs of the protocol; those of `make benchmark-robustness` lie in `robustness`, those of one
    checkpoint that acts on more or less of the past in `context`, those of all methods after the same training in
    `rows`, and from other initial states in `unseen`, those of policies trained on fewer demonstrations in
    `demonstrations`."""
    documents: tuple[Path, ...] = (
        ROOT / "README.md",
        ROOT / "benchmarks" / "README.md",
        ROOT / "benchmarks" / "baselines" / "README.md",
        *sorted((ROOT / "par_agent").glob("checkpoints/*/README.md")),
    )
    """Files with pairs of marks, `<!-- results -->` and `<!-- /results -->` or the same of another of TABLES, that a
    table stands between."""
    check: bool = False
    """Only compare."""


def table(reported: Path, base: Path) -> str:
    """The protocol's results, as Markdown for a document in the folder ``base``, and what robustness was measured."""
    lines = header("success rate in %")
    commands = []
    for run in finished_runs(reported):
        link = os.path.relpath(run.folder / "results.md", base)
        track = "" if run.track == "paper" else f" on the {run.track} track"
        name = f"[{Path(run.about['policy']).name}]({link}), measured here{track}"
        lines.append(row(name, run, rate))
        commands.append(f"`{run.about['command']}`")
    for method in ("PAR-Full", "DP", "RDT"):
        figures = " | ".join(f"{PAPER_RESULTS[method][task]:g}" for task in PAPER_TASKS)
        lines.append(f"| {method}, the paper's figure | {figures} |")
    return "\n".join([*lines, "", f"Measured with {', '.join(commands)}.", "", *robustness(reported / "robustness")])


def robustness(folder: Path) -> list[str]:
    """The lines of a second table: successes with one thing changed at a time."""
    runs = finished_runs(folder)
    if not runs:
        return []
    rows = []
    for run in runs:
        unseen = run.variation == "none"
        change = "initial states never used before" if unseen else VARIATIONS[run.variation].description
        rows.append(row(change, run, count))
    policy = Path(runs[0].about["policy"]).name
    title = f"What `{policy}` does, 25 rollouts a task, when one thing is not as in training:"
    return [title, "", *header(""), *rows, "", "Measured with `make benchmark-robustness`.", ""]


def context_table(reported: Path) -> str:
    """Successes by the number of physical tokens that the policy remembers."""
    runs = {run.about["policy_options"]["context"]: run for run in finished_runs(reported / "context")}
    return "\n".join(
        [*header("physical tokens"), *(row(str(number), runs[number], count) for number in sorted(runs)), ""]
    )


def rows_table(reported: Path) -> str:
    """All methods after the same training."""
    return "\n".join([*methods(table_rows(read_runs(reported / "rows"))), ""])


def unseen_table(reported: Path) -> str:
    """All methods from initial states that they were never rolled out from before."""
    return "\n".join([*other_states(table_rows(read_runs(reported / "unseen"), protocol=False)), ""])


def demonstrations_table(reported: Path) -> str:
    """Success by number of demonstrations."""
    return "\n".join([*demonstrations(curves(read_runs(reported / "demonstrations"))), ""])


def header(first: str) -> list[str]:
    """The first two lines of a table with a column for every task."""
    return [f"| {first} | {' | '.join(PAPER_TASKS)} |", f"| --- |{' --- |' * len(PAPER_TASKS)}"]


def row(name: str, run: Run, show: Callable[[TaskResult], str]) -> str:
    """A run's line in a table, a task's result as ``show`` writes it."""
    found = {task: show(result) for task, result in run.results().items()}
    return f"| {name} | {' | '.join(found.get(task, '–') for task in PAPER_TASKS)} |"


def rate(result: TaskResult) -> str:
    """`123/125 = 98.4 (94.4–99.6)`: successes, rollouts, rate in % and Wilson interval."""
    return (
        f"{count(result)} = **{100 * result.rate:.1f}** ({100 * result.wilson.low:.1f}–{100 * result.wilson.high:.1f})"
    )


def count(result: TaskResult) -> str:
    """Successes and rollouts."""
    return f"{result.successes}/{result.rollouts}"


TABLES: dict[str, Callable[[Path, Path], str]] = {
    "results": table,
    "context": lambda reported, _: context_table(reported),
    "rows": lambda reported, _: rows_table(reported),
    "unseen": lambda reported, _: unseen_table(reported),
    "demonstrations": lambda reported, _: demonstrations_table(reported),
}


def filled(text: str, reported: Path, base: Path) -> str:
    """A document's text with the tables between its marks as they should be."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin in text:
            before, rest = text.split(begin)
            if end not in rest:
                raise UserError(f"a document in {base} has the mark {begin.strip()} without {end}")
            text = before + begin + make(reported, base) + end + rest.split(end)[1]
    return text


def main(config: TableConfig) -> int:
    """Writes or compares."""
    differing = 0
    for document in config.documents:
        text = read_content(document).decode(errors="surrogateescape")
        wanted = filled(text, config.reported, document.resolve().parent)
        if config.check and wanted != text:
            print(f"{document} does not show benchmarks/reported; run python benchmarks/readme_table.py")
            differing += 1
        if not config.check:
            with atomic_path(document) as temporary:
                temporary.write_bytes(wanted.encode(errors="surrogateescape"))
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/readme_table.py", main, TableConfig, __doc__))
