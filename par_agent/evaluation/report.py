"""A run's table, in the terminal and as results.md, results.csv, results.json and report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from par_agent.evaluation.html_report import html_report
from par_agent.evaluation.measurements import known_measurements
from par_agent.evaluation.provenance import provenance, provenance_rows
from par_agent.evaluation.records import Record
from par_agent.evaluation.results import (
    NOTHING,
    PUBLISHED_RESULTS,
    TaskResult,
    comparison_rows,
    csv_cells,
    markdown_table,
    measured_sections,
    result_table,
    summarise,
)
from par_agent.evaluation.run_info import RunInfo
from par_agent.utils.files import write_json, write_text, writing

if TYPE_CHECKING:
    from rich.table import Table

_TERMINAL_COLUMNS = ("task", "successes", "rate %", "95% Wilson", "95% by state", "errors", "plan ms")
"""Those that fit 80 characters, with headers of two lines; the files have all."""


def terminal_tables(run: RunInfo, results: list[TaskResult]) -> list[Table]:
    """The run's results and the comparison with the paper, for rich to print."""
    label = run.config.policy.label
    header, rows = result_table(results)
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    details = _terminal_table(
        f"{label}, {run.config.track} track, {run.config.protocol_label}",
        [column.replace(" ", "\n", 1) for column in _TERMINAL_COLUMNS],
        [[row.get(column, NOTHING) for column in _TERMINAL_COLUMNS] for row in cells],
    )
    measured = [_terminal_table(s.title.lower(), s.header, s.rows) for s in measured_sections(results)]
    title = "success rate in % (rows labelled paper or arXiv: printed there, not measured here)"
    comparison = _terminal_table(title, ("method", "source", *run.tasks), comparison_rows(results, label, run.tasks))
    return [details, *measured, comparison]


def _terminal_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Numbers are aligned to the right."""
    from rich.table import Table

    table = Table(title=title)
    for column in header:
        justify: Literal["left", "right"] = "left" if column in ("task", "method", "source") else "right"
        table.add_column(column, justify=justify, no_wrap="\n" in column)
    for row in rows:
        table.add_row(*row)
    return table


def write_results(run: RunInfo, records: list[Record]) -> list[TaskResult]:
    """Writes results.md, .csv, .json and report.html into the run's folder; each appears when it is complete."""
    results = summarise(records, run.tasks, run.config.states * run.config.policy_seeds)
    source = provenance(run)
    with writing(run.folder):
        write_json(run.folder / "results.json", {"results": [asdict(r) for r in results], "provenance": source})
        for section in measured_sections(results):
            section.draw(run.folder / section.figure)
        for name, text in (
            ("results.md", _markdown(run, results, source)),
            ("results.csv", _csv(run, results)),
            ("report.html", html_report(run, results, records, source)),
        ):
            write_text(run.folder / name, text)
    return results


def _markdown(run: RunInfo, results: list[TaskResult], source: dict[str, Any]) -> str:
    label = run.config.policy.label
    note = "" if run.config.track == "paper" else "The paper's figures are of the `paper` track."
    lines = [
        f"# {label}, {run.config.track} track",
        "",
        f"Initial states: {run.config.protocol_label}. Success is success at any control step. Rollouts that repeat "
        "another's actions from the same initial state, under another policy seed, are not distinct, and count once in "
        "the intervals.",
        "",
        *markdown_table(*result_table(results)),
        *(line for s in measured_sections(results) for line in ("", *markdown_table(s.header, s.rows), "", s.note)),
        "",
        f"Success rate in %. Rows labelled *paper* or *arXiv* are printed there, not measured here. {note}".strip(),
        "",
        *markdown_table(("method", "source", *run.tasks), comparison_rows(results, label, run.tasks)),
        "",
        "## Provenance",
        "",
        *(f"- {name}: `{text}`" for name, text in provenance_rows(source)),
    ]
    return "\n".join(lines) + "\n"


def _csv(run: RunInfo, results: list[TaskResult]) -> str:
    buffer = io.StringIO()
    head = {"source": "this run", "initial_states": run.config.protocol_label, "track": run.config.track}
    rows: list[dict[str, Any]] = [{"method": run.config.policy.label, **head, **csv_cells(r)} for r in results]
    for row, result in zip(rows, results, strict=True):
        for name, summary in result.measured.items():
            row |= known_measurements()[name].cells(summary)
    for source, methods in PUBLISHED_RESULTS.items():
        head = {"source": source, "initial_states": "the protocol", "track": "paper"}
        for method, rates in methods.items():
            known = [task for task in run.tasks if task in rates]
            rows += [{"method": method, **head, "task": task, "rate_percent": rates[task]} for task in known]
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
