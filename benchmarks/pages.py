"""The page and the CSV file of all reported runs, and documents with tables of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from reported_runs import DEVELOPMENT, REPORTED, Run, results_by_task
from tables import (
    Runs,
    alignment_table,
    bundled_table,
    by_policy,
    context_table,
    curves,
    demonstrations_table,
    methods_table,
    of_group,
    robustness_table,
    unseen_table,
)

from par_agent.errors import UserError
from par_agent.evaluation.records import Record
from par_agent.evaluation.results import csv_cells, markdown_table, result_table
from par_agent.tasks import PROTOCOL_STATES

ALL_RUNS = (
    "Every run that the READMEs, the model cards and the lab book report. `runs.json` says more about each: versions, "
    "task specs, how the policy was trained. `python benchmarks/report.py export NAME --out FOLDER` writes a run's "
    "folder, `python benchmarks/compare.py NAME OTHER_NAME` compares two runs. Success is success at any control step. "
    "Rollouts with the same initial state and the same actions are one distinct rollout, and count once in Wilson's "
    "interval. In the groups rows, unseen and demonstrations, and in the names of development runs that begin with "
    "row-, par-mini is the former name of the preset `mini`; elsewhere it is the bundled checkpoint. The presets mini "
    "and par-* of the groups rows, unseen and demonstrations had no frame path that reads the last frame."
)
DEVELOPMENT_RUNS = "Runs made during development, by checkpoint and by how it acted. Only their rollouts are stored."


def results_page(runs: Runs, development: Mapping[str, list[Record]]) -> str:
    """The results of all runs in Markdown, by group, with the command that made each."""
    lines = ["# All runs", "", ALL_RUNS]
    for group in dict.fromkeys(run.group for run in runs.values()):
        found = of_group(runs, group)
        lines += ["", f"## {group}", "", *_results_table({run.name: run.records for run in found}), ""]
        lines += markdown_table(("run", "checkpoint", "git commit", "command"), map(_source, found))
    if development:
        lines += ["", f"## {DEVELOPMENT}", "", DEVELOPMENT_RUNS, "", *_results_table(development)]
    return "\n".join(lines) + "\n"


def _results_table(records: Mapping[str, list[Record]]) -> list[str]:
    results = [(name, result) for name, found in records.items() for result in results_by_task(found).values()]
    header, rows = result_table([result for _, result in results])
    return markdown_table(("run", *header), [(name, *row) for (name, _), row in zip(results, rows, strict=True)])


def _source(run: Run) -> tuple[str, ...]:
    about = run.about
    return (run.name, f"`{about['checkpoint']}`", str(about.get("git_commit"))[:12], f"`{about['command']}`")


def results_csv(runs: Runs) -> str:
    """The results of all runs, a line for each run and task."""
    buffer, rows = io.StringIO(), []
    for run in runs.values():
        states = "the protocol" if run.state_seed is None else f"from seed {run.state_seed}"
        if run.state_seed is None and run.states > PROTOCOL_STATES:
            states = f"the protocol and {run.states - PROTOCOL_STATES} further"
        head = {"run": run.name, "policy": run.policy, "track": run.track, "variation": run.variation}
        rows += [{**head, "initial_states": states, **csv_cells(result)} for result in run.results.values()]
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


TABLES: dict[str, Callable[[Runs], list[str]]] = {
    "robustness": robustness_table,
    "context": context_table,
    "alignment": alignment_table,
    "alignment-video": partial(alignment_table, group="alignment-video"),
    "rows": lambda runs: [*methods_table(by_policy(of_group(runs, "rows"))), ""],
    "unseen": lambda runs: [*unseen_table(by_policy(of_group(runs, "unseen"))), ""],
    "demonstrations": lambda runs: [*demonstrations_table(curves(of_group(runs, "demonstrations"))), ""],
}
"""Names of the marks in documents -> the lines of the table between them; besides these there is `results`."""


def filled(text: str, runs: Runs, base: Path, reported: Path = REPORTED) -> str:
    """The text of a document in the folder ``base`` with the tables between its marks, `<!-- rows -->` and
    `<!-- /rows -->` for example, as they should be."""
    tables = {**TABLES, "results": lambda runs: bundled_table(runs, base, reported)}
    for name, make in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin in text:
            before, rest = text.split(begin)
            if end not in rest:
                raise UserError(f"a document in {base} has the mark {begin.strip()} without {end}")
            text = before + begin + "\n".join(make(runs)) + end + rest.split(end)[1]
    return text
