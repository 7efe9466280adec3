"""A run's table, in the terminal and as results.md, results.csv, results.json and report.html."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from par_agent.evaluation.alignment_report import (
    ALIGNMENT_FIGURE,
    ALIGNMENT_HEADER,
    ALIGNMENT_NOTE,
    alignment_figure,
    alignment_rows,
)
from par_agent.evaluation.html_report import html_report
from par_agent.evaluation.provenance import provenance
from par_agent.evaluation.records import Record
from par_agent.evaluation.results import (
    PAPER_RESULTS,
    RESULT_HEADER,
    TaskResult,
    comparison_rows,
    result_row,
    summarise,
)
from par_agent.utils.files import atomic_path, write_json, writing

if TYPE_CHECKING:
    from rich.table import Table

    from par_agent.evaluation.runner import BenchmarkRun

_TERMINAL_COLUMNS = ("task", "successes", "rate %", "95% Wilson", "95% by state", "errors", "plan ms")
"""Those that fit 80 characters, with headers of two lines; the files have all."""


def terminal_tables(run: BenchmarkRun, results: list[TaskResult]) -> list[Table]:
    """The run's results and the comparison with the paper, for rich to print."""
    from rich.table import Table

    label = run.config.policy.label
    details = Table(title=f"{label}, {run.config.track} track, {run.config.protocol_label}")
    for column in _TERMINAL_COLUMNS:
        justify: Literal["left", "right"] = "left" if column == "task" else "right"
        details.add_column(column.replace(" ", "\n", 1), justify=justify, no_wrap=True)
    for result in results:
        cells = dict(zip(RESULT_HEADER, result_row(result), strict=True))
        details.add_row(*(cells[column] for column in _TERMINAL_COLUMNS))
    tasks = [spec.name for spec in run.specs.values()]
    comparison = Table(title="success rate in % (rows labelled paper: printed there, not measured here)")
    for column in ("method", "source", *tasks):
        comparison.add_column(column, justify="left" if column in ("method", "source") else "right")
    for row in comparison_rows(results, label, tasks):
        comparison.add_row(*row)
    if not alignment_rows(results):
        return [details, comparison]
    alignment = Table(title="imagined against executed, by horizon")
    for column in ALIGNMENT_HEADER:
        alignment.add_column(column, justify="left" if column == "task" else "right")
    for row in alignment_rows(results):
        alignment.add_row(*row)
    return [details, alignment, comparison]


def write_results(run: BenchmarkRun, records: list[Record]) -> list[TaskResult]:
    """Writes results.md, .csv, .json and report.html into the run's folder; each appears when it is complete.

    Raises:
        UserError: they cannot be written, for example because the disk is full; the records are there still.
    """
    with writing(run.folder):
        return _write_results(run, records)


def _write_results(run: BenchmarkRun, records: list[Record]) -> list[TaskResult]:
    tasks = [spec.name for spec in run.specs.values()]
    results = summarise(records, tasks, run.config.states * run.config.policy_seeds)
    source = provenance(run)
    write_json(run.folder / "results.json", {"results": [asdict(result) for result in results], "provenance": source})
    if alignment_rows(results):
        alignment_figure(results, run.folder / ALIGNMENT_FIGURE)
    for name, text in (
        ("results.md", _markdown(run, results, tasks, source)),
        ("results.csv", _csv(run, results, tasks)),
        ("report.html", html_report(run, results, records, source)),
    ):
        with atomic_path(run.folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return results


def _markdown(run: BenchmarkRun, results: list[TaskResult], tasks: list[str], source: dict[str, Any]) -> str:
    def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
        return [f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows)]

    label = run.config.policy.label
    note = "" if run.config.track == "paper" else "The paper's figures are of the `paper` track."
    alignment = ["", *table(ALIGNMENT_HEADER, alignment_rows(results)), "", ALIGNMENT_NOTE]
    lines = [
        f"# {label}, {run.config.track} track",
        "",
        f"Initial states: {run.config.protocol_label}. Success is success at any control step. Rollouts that repeat "
        "another's actions from the same initial state, under another policy seed, are not distinct, and count once in "
        "the intervals.",
        "",
        *table(RESULT_HEADER, [result_row(result) for result in results]),
        *(alignment if alignment_rows(results) else []),
        "",
        f"Success rate in %. Rows labelled *paper* are printed there and were not measured here. {note}".strip(),
        "",
        *table(("method", "source", *tasks), comparison_rows(results, label, tasks)),
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
    fields = ("successes", "rollouts", "distinct", "errors", "rate_percent")
    bounds_of = ("wilson_low", "wilson_high", "state_low", "state_high")
    alignment = ("psnr_db", "ssim", "path_cm") if any(r.alignment for r in results) else ()  # one chunk ahead
    writer.writerow(("method", "source", "initial_states", "track", "task", *fields, *bounds_of, *alignment))
    for r in results:
        bounds = (f"{100 * bound:.2f}" for bound in (r.wilson.low, r.wilson.high, r.cluster.low, r.cluster.high))
        head = (run.config.policy.label, "this run", run.config.protocol_label, run.config.track, r.task)
        ahead = [f"{values[0]:.4f}" if values else "" for values in ((r.alignment or {}).get(n) for n in alignment)]
        writer.writerow((*head, r.successes, r.rollouts, r.distinct, r.errors, f"{100 * r.rate:.2f}", *bounds, *ahead))
    for method, rates in PAPER_RESULTS.items():
        for task in tasks:
            if task in rates:
                empty = [""] * (4 + len(alignment))
                writer.writerow((method, "paper", "the protocol", "paper", task, "", "", "", "", rates[task], *empty))
    return buffer.getvalue()
