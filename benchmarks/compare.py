"""Compares two runs on the rollouts that both have: `python benchmarks/compare.py RUN OTHER_RUN`.

With `--sequential` it says whether the runs may stop already, or how early they could have stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Annotated

import tyro
from reported_runs import REPORTED, reported_records
from rich.console import Console
from rich.table import Table

from par_agent.cli.options import run_script
from par_agent.errors import UserError
from par_agent.evaluation.records import Record, RecordKey, read_run, record_key
from par_agent.evaluation.sequential import compare_sequentially
from par_agent.evaluation.statistics import compare_paired
from par_agent.tasks import PROTOCOL_SEED
from par_agent.utils.checked import Checked, Range


@dataclass(frozen=True)
class CompareConfig(Checked):
    """Compares two runs, paired by task, initial state and policy seed."""

    first: tyro.conf.Positional[Path]
    """Folder of a run, as `par-agent benchmark` names it, or the name of a reported run, such as rows/act."""
    second: tyro.conf.Positional[Path]
    """The run to compare it with."""
    reported: Path = REPORTED
    """Folder of the reported runs."""
    sequential: bool = False
    """Tests the first policy seed's rollouts one initial state after another, at --alpha, until the policies are told
    apart. You may look at any time, also while the runs go on. The runs may start from different initial states."""
    alpha: Annotated[float, Range(0, 1, above=True, below=True)] = 0.05
    """Chance that the sequential test tells equal policies apart."""


Rollouts = Mapping[RecordKey, Record]
"""Records by the rollouts that they are of."""


def read_rollouts(place: Path, reported: Path) -> Rollouts:
    """The records of a run's folder or of a reported run."""
    if (place / "run.json").is_file():
        _, records = read_run(place)
    elif place.exists() or place.is_absolute():
        raise UserError(f"{place} holds no run; give the folder that `par-agent benchmark` printed")
    else:
        records = reported_records(reported, str(place))
    if not records:
        raise UserError(f"{place} holds no rollouts; run its command again, and compare it then")
    return {record_key(record): record for record in records}


def comparison_table(config: CompareConfig) -> Table:
    """One line per task that both runs have."""
    first, second = (read_rollouts(place, config.reported) for place in (config.first, config.second))
    starts = [next(r["env_seed"] - r["state"] for r in run.values()) for run in (first, second)]
    seed, other_seed = (None if start == PROTOCOL_SEED else start for start in starts)
    if seed != other_seed and not config.sequential:
        raise UserError(
            f"the runs start from different initial states (state seeds {seed} and {other_seed}); only --sequential "
            "compares such runs"
        )
    label = "" if seed is None else f"\nNOT THE PROTOCOL: initial states from seed {seed} on"
    if seed != other_seed:
        label = "\nNOT PAIRED: the runs start from different initial states"
    title = f"A: {config.first}\nB: {config.second}{label}"
    if config.sequential:
        return _sequential_table(title, first, second, config.alpha)
    columns = ("task", "pairs", "A only", "B only", "B - A", "95% by state", "p")
    table = _table(title, "B - A: success rate in points; p: exact sign-flip test by initial state", columns)
    for task in _tasks(first, second):
        result = compare_paired(*([r for key, r in run.items() if key[0] == task] for run in (first, second)))
        interval = f"{100 * result.interval.low:+.1f} to {100 * result.interval.high:+.1f}"
        counts = (str(result.pairs), str(result.only_first), str(result.only_second))
        table.add_row(task, *counts, f"{100 * result.risk_difference:+.1f}", interval, f"{result.p_value:.3g}")
    return table


def _sequential_table(title: str, first: Rollouts, second: Rollouts, alpha: float) -> Table:
    """One line per task: which policy is better, and the rollouts of both runs after which that was known."""
    columns = ("task", "pairs", "A only", "B only", "better", "rollouts", "saved", "p")
    caption = f"pairs until the test stopped, of one policy seed; p: valid at any time; better: p is at most {alpha:g}"
    table = _table(title, caption, columns)
    for task in _tasks(first, second):
        outcomes = _in_order(task, first, second)
        result = compare_sequentially(outcomes, alpha)
        better = ("B" if result.only_second > result.only_first else "A") if result.stopped else "not known yet"
        rollouts, saved = 2 * result.pairs, 2 * (len(outcomes) - result.pairs)
        counts = (str(result.pairs), str(result.only_first), str(result.only_second))
        table.add_row(task, *counts, better, str(rollouts), str(saved), f"{result.p_value:.3g}")
    return table


def _in_order(task: str, first: Rollouts, second: Rollouts) -> list[tuple[bool, bool]]:
    """The outcomes of both runs under their first policy seed, by initial state, up to the first one not finished."""
    seed = min(key[2] for key in first.keys() & second.keys() if key[0] == task)
    keys = takewhile(lambda key: key in first and key in second, ((task, state, seed) for state in count()))
    return [(bool(first[key]["success_once"]), bool(second[key]["success_once"])) for key in keys]


def _tasks(first: Rollouts, second: Rollouts) -> list[str]:
    """The tasks that both runs have rollouts of."""
    if not (tasks := sorted({key[0] for key in first.keys() & second.keys()})):
        raise UserError("the runs have no rollout in common")
    return tasks


def _table(title: str, caption: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, caption=caption)
    for column in columns:
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    return table


def main(config: CompareConfig) -> int:
    """Prints the table."""
    Console().print(comparison_table(config))
    return 0


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/compare.py", main, CompareConfig, __doc__))
