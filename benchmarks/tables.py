"""Tables of the reported runs, in Markdown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from reported_runs import Run

from par_agent.errors import UserError
from par_agent.evaluation.measurements import Section
from par_agent.evaluation.records import Record
from par_agent.evaluation.results import (
    NOTHING,
    PHYSGEN_PAPER,
    PUBLISHED_RESULTS,
    TaskResult,
    markdown_table,
    measured_sections,
)
from par_agent.evaluation.statistics import compare_paired
from par_agent.simulation.variations import get_variation
from par_agent.tasks import PAPER_TASKS, PROTOCOL_STATES

ROWS = {
    "mini": "PAR-Full",
    "par-noar": "PAR-NoAR",
    "par-discrete": "PAR-Discrete",
    "act": "ACT",
    "bc-t": "BC-T",
    "dp": "DP",
    "icrt": "ICRT",
    "rdt": "RDT",
}
"""Names of policies -> rows of the paper's Tables 2 and 3."""
RENAMED = {"par-mini": "mini"}
"""Names of methods in records -> as tables show them: the preset `mini` once had the bundled checkpoint's name."""
FORMER_VARIATIONS = {
    "camera": "camera moved by 2 cm",
    "dim": "light 30% weaker",
    "bright": "light 30% stronger",
    "color": "objects of another colour",
    "delay": "every action one control step late",
}
"""Variations that records name and that have other names and ranges now."""
SMALL_PRESETS = ("mini", "par-mini")
"""Presets (the second name is a former one) that are too small for the released video weights."""
FROM_SCRATCH = "from scratch, no video weights"
COUNTED = "In brackets: the 95% Wilson interval. Rollouts that policy seeds repeat count once."
RESULTS_PAGE = "results.md"
EXPLAINED = (
    "Success at any control step in %, with successes, rollouts and the 95% Wilson interval. Rollouts with the same "
    "initial state and the same actions count once in Wilson's interval. In brackets: the 95% interval that resamples "
    "whole initial states. Rollouts that ended with an exception count as failures and are reported. Rows in italics "
    "are published figures, of the paper or of a later one, and were not measured here. Minutes are those of the "
    "training steps on the machine that trained (processor minutes in brackets). The time of a chunk is one planning "
    "`act()` with the frame encoder."
)
COMPARED = (
    "Difference of success rates in percentage points ({reference} = 0), on the same initial states and policy seeds. "
    "The 95% interval is by initial state. The p-value is that of the exact sign-flip test by initial state (McNemar's "
    "test, where each state has one rollout), for one cell and not corrected for the number of cells. An interval "
    "without width only means that both policies solved the same states."
)
SOURCES = "The hash is that of the weights and, for methods other than PAR, also of the method's code."
Runs = Mapping[str, Run]
"""Reported runs by name."""


def of_group(runs: Runs, group: str) -> list[Run]:
    """The runs of one group."""
    return [run for run in runs.values() if run.group == group]


# --- the bundled checkpoints ------------------------------------------------------------------------------------------


def bundled_table(runs: Runs, base: Path, reported: Path) -> list[str]:
    """What the bundled checkpoints solve beside the paper's figures, with the commands that measured it.

    ``base`` is the folder of the document that shows the table, ``reported`` that of the reported runs.
    """
    lines, commands = [], []
    link = os.path.relpath(reported / RESULTS_PAGE, base)
    for run in of_group(runs, "bundled"):
        track = "" if run.track == "paper" else f" on the {run.track} track"
        further = f", {run.states} initial states" if run.states > PROTOCOL_STATES else ""
        name = f"[{Path(run.about['policy']).name}]({link}#bundled), measured here{track}{further}"
        label, *rates = _row(name, run, partial(_rate, states=run.states))
        lines.append((label, *rates, _parameters(run), _demonstrations(run)))
        commands.append(f"`{run.about['command']}`")
    published = ("PAR-Full", "DP", "RDT", *PUBLISHED_RESULTS[PHYSGEN_PAPER])
    lines += [(*_published(method), NOTHING, NOTHING) for method in published]
    table = markdown_table(("success rate in %", *PAPER_TASKS, "parameters", "demonstrations a task"), lines)
    return [*table, "", f"Measured with {', '.join(commands)}. {COUNTED}", ""]


def _parameters(run: Run) -> str:
    """How many parameters the policy has, and whether it began with the released video weights."""
    parameters = run.about.get("parameters")
    count = NOTHING if parameters is None else f"{parameters / 1e6:.1f}M"
    preset = run.training.get("options", {}).get("preset")
    return f"{count}, {FROM_SCRATCH}" if preset in SMALL_PRESETS else count


def _demonstrations(run: Run) -> str:
    """How many demonstrations of each task it was trained on."""
    counts = run.training.get("demonstrations", {})
    return ", ".join(map(str, dict.fromkeys(counts.values()))) or NOTHING


def robustness_table(runs: Runs) -> list[str]:
    """Successes with one thing changed at a time."""
    found, rows = of_group(runs, "robustness"), []
    if not found:
        return []
    for run in found:
        change = "initial states never used before"
        if run.variation != "none":
            change = FORMER_VARIATIONS.get(run.variation) or get_variation(run.variation).told
        rows.append(_row(change, run, _count))
    title = f"Successes of `{found[0].policy}` in 25 rollouts a task, with one change that training did not show:"
    table = markdown_table(("", *PAPER_TASKS), rows)
    return [title, "", *table, "", "Measured before the variations had their present names and ranges.", ""]


def context_table(runs: Runs) -> list[str]:
    """Successes by the number of physical tokens that the policy remembers."""
    found = {run.about["policy_options"]["context"]: run for run in of_group(runs, "context")}
    rows = [_row(str(number), found[number], _count) for number in sorted(found)]
    return [*markdown_table(("physical tokens", *PAPER_TASKS), rows), ""]


def alignment_section(runs: Runs, group: str = "alignment") -> Section | None:
    """How well what was imagined agrees with what was executed in a group; None where no run measured it."""
    results = [result for run in of_group(runs, group) for result in run.results.values()]
    return next((section for section in measured_sections(results) if section.name == "alignment"), None)


def alignment_table(runs: Runs, group: str = "alignment") -> list[str]:
    """How well what was imagined agrees with what was executed, of the runs of a group."""
    section = alignment_section(runs, group)
    return [] if section is None else [*markdown_table(section.header, section.rows), ""]


def _row(name: str, run: Run, show: Callable[[TaskResult], str]) -> tuple[str, ...]:
    """A run's line in a table, a task's result as ``show`` writes it."""
    results = run.results
    return (name, *(show(results[task]) if task in results else NOTHING for task in PAPER_TASKS))


def _published(method: str) -> tuple[str, ...]:
    """A method's published success rates, labelled with where they are printed."""
    [(source, rates)] = [(source, found[method]) for source, found in PUBLISHED_RESULTS.items() if method in found]
    label = "the paper's figure" if source == "paper" else f"figure of {source}"
    return (f"{method}, {label}", *(f"{rates[task]:g}" for task in PAPER_TASKS))


def _rate(result: TaskResult, states: int) -> str:
    """`24/25 = 96.0 (80.5–99.3)`: successes, rollouts, rate in % and Wilson interval.

    Where every policy seed repeats the rollout from an initial state, each of the ``states`` counts once.
    """
    seeds = result.rollouts // states if result.distinct == states else 1
    successes, rollouts = result.successes // seeds, result.rollouts // seeds
    return f"{successes}/{rollouts} = **{100 * result.rate:.1f}** ({result.wilson.percent})"


def _count(result: TaskResult) -> str:
    return f"{result.successes}/{result.rollouts}"


# --- all methods ------------------------------------------------------------------------------------------------------


def by_policy(runs: Iterable[Run]) -> dict[str, Run]:
    """Runs of the paper track with nothing changed and all demonstrations, by policy, in the paper's order."""
    rows: dict[str, Run] = {}
    for run in runs:
        if run.track != "paper" or run.variation != "none" or run.demos is not None:
            continue
        policy = _method(run)
        if policy in rows:
            raise UserError(
                f"{rows[policy].name} and {run.name} are both of {policy}; the table has one row for each policy: give "
                "one of them another group"
            )
        rows[policy] = run
    return {name: rows[name] for name in sorted(rows, key=[*ROWS, *rows].index)}


def _method(run: Run) -> str:
    """The method's name in tables."""
    return RENAMED.get(run.policy, run.policy)


def methods_page(rows: Runs, unseen: Runs, reference: str, points: Mapping[Curve, Sequence[Point]]) -> str:
    """The page of all methods in Markdown; ``rows`` (the protocol) and ``unseen`` (other states) are by policy."""
    sources = (
        (name, f"`{run.about['checkpoint']}`", str(len(run.records)), f"`{run.about['command']}`")
        for found in (rows, unseen)
        for name, run in found.items()
    )
    lines = [
        *("# All methods", "", EXPLAINED, "", *methods_table(rows), ""),
        *(f"## Against {reference}", "", COMPARED.format(reference=reference), ""),
        *(*markdown_table(("method", *PAPER_TASKS), _comparisons(rows, reference)), ""),
        *(["## From other initial states", "", *unseen_table(unseen), ""] if unseen else []),
        *(["## By number of demonstrations", "", *demonstrations_table(points), ""] if points else []),
        *("## Where this comes from", "", SOURCES, ""),
        *markdown_table(("method", "weights and code", "rollouts", "command"), sources),
    ]
    return "\n".join(lines) + "\n"


def methods_table(rows: Runs) -> list[str]:
    """Every method, and below it what the paper prints of it."""
    lines = [line for name, run in rows.items() for line in _method_lines(name, run)]
    lines += [_published_line(row) for name, row in ROWS.items() if name not in rows]
    lines += [_published_line(row) for row in PUBLISHED_RESULTS[PHYSGEN_PAPER]]
    return markdown_table(("method", *PAPER_TASKS, "parameters", "training min", "ms per chunk"), lines)


def unseen_table(rows: Runs) -> list[str]:
    """What the methods solve from initial states that are not the protocol's."""
    lines = []
    for name, run in rows.items():
        results = run.results
        lines.append((name, str(run.state_seed), *(_cell(results.get(task)) for task in PAPER_TASKS)))
    return markdown_table(("method", "states from seed", *PAPER_TASKS), lines)


def _method_lines(name: str, run: Run) -> list[tuple[str, ...]]:
    """A method's own row, and the paper's below it."""
    results, training, parameters = run.results, run.training, run.about.get("parameters")
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
    return [own, _published_line(ROWS[name])] if name in ROWS else [own]


def _published_line(row: str) -> tuple[str, ...]:
    return (*(f"*{cell}*" for cell in _published(row)), NOTHING, NOTHING, NOTHING)


def _cell(result: TaskResult | None) -> str:
    if result is None:
        return NOTHING
    errors = f", {result.errors} errors" if result.errors else ""
    return f"**{100 * result.rate:.1f}** {_count(result)}, {result.wilson.percent} [{result.cluster.percent}]{errors}"


def _comparisons(rows: Runs, reference: str) -> list[tuple[str, ...]]:
    if reference not in rows:
        raise UserError(f"no run of the protocol is of {reference!r}; there are: {', '.join(rows) or 'none'}")
    first = rows[reference].records
    return [
        (name, *(_comparison(first, run.records, task=task) for task in PAPER_TASKS))
        for name, run in rows.items()
        if name != reference
    ]


def _comparison(*runs: list[Record], task: str) -> str:
    first, second = ([record for record in records if record["task"] == task] for records in runs)
    try:
        found = compare_paired(first, second)
    except ValueError:  # they have no rollout in common
        return NOTHING
    low, high = 100 * found.interval.low, 100 * found.interval.high
    return f"{100 * found.risk_difference:+.1f} ({low:+.1f} to {high:+.1f}), p = {found.p_value:.2g}"


# --- success by number of demonstrations ------------------------------------------------------------------------------


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
    """Points by number of demonstrations, of the protocol's runs whose policies were trained with --demos."""
    found: dict[Curve, dict[int, Point]] = {}
    for run in runs:
        if run.track != "paper" or run.variation != "none" or run.state_seed is not None or run.demos is None:
            continue
        policy = _method(run) if run.init is None else f"{_method(run)}, --init {run.init}"
        steps, counts, results = run.training["steps"], run.training["demonstrations"], run.results
        trained = [task for task in results if task in counts]
        if not trained:
            raise UserError(
                f"{run.name} rolled out {', '.join(results)} with a policy trained on datasets {', '.join(counts)}: "
                "a curve needs folders named like the tasks"
            )
        for task in trained:
            count, points = counts[task], found.setdefault(Curve(task, policy, steps), {})
            if count in points:
                raise UserError(
                    f"{points[count].run.name} and {run.name} are both of {policy} after {steps} steps with "
                    f"{count} demonstrations of {task}: give one of them another group"
                )
            points[count] = Point(count, run, results[task])
    return {key: [points[count] for count in sorted(points)] for key, points in sorted(found.items())}


def demonstrations_table(points: Mapping[Curve, Sequence[Point]]) -> list[str]:
    """A row for every curve, a column for every number."""
    numbers = sorted({point.demonstrations for found in points.values() for point in found})
    lines = []
    for curve, found in points.items():
        cells = {point.demonstrations: _cell(point.result) for point in found}
        lines.append((curve.task, curve.policy, str(curve.steps), *(cells.get(number, NOTHING) for number in numbers)))
    return markdown_table(
        ("task", "policy", "training steps", *(f"{number} demonstrations" for number in numbers)), lines
    )
