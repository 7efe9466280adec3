"""Compares two runs on the rollouts that both have: `python benchmarks/compare.py RUN OTHER_RUN`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from reported_runs import REPORTED, reported_records
from rich.console import Console
from rich.table import Table

from par_agent.cli.options import run_script
from par_agent.errors import UserError
from par_agent.evaluation.records import Record, RecordKey, read_run, record_key
from par_agent.evaluation.statistics import compare_paired
from par_agent.tasks import PROTOCOL_SEED
from par_agent.utils.checked import Checked


@dataclass(frozen=True)
class CompareConfig(Checked):
    """Compares two runs, paired by task, initial state and policy seed."""

    first: tyro.conf.Positional[Path]
    """Folder of a run, as `par-agent benchmark` names it, or the name of a reported run, such as rows/act."""
    second: tyro.conf.Positional[Path]
    """The run to compare it with."""
    reported: Path = REPORTED
    """Folder of the reported runs."""


def read_rollouts(place: Path, reported: Path) -> dict[RecordKey, Record]:
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
    if seed != other_seed:
        raise UserError(f"the runs start from different initial states (state seeds {seed} and {other_seed})")
    label = "" if seed is None else f"\nNOT THE PROTOCOL: initial states from seed {seed} on"
    title = f"A: {config.first}\nB: {config.second}{label}"
    table = Table(title=title, caption="B - A: success rate in points; p: exact sign-flip test by initial state")
    for column in ("task", "pairs", "A only", "B only", "B - A", "95% by state", "p"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for task in sorted({key[0] for key in first.keys() & second.keys()}):
        result = compare_paired(*([r for key, r in run.items() if key[0] == task] for run in (first, second)))
        interval = f"{100 * result.interval.low:+.1f} to {100 * result.interval.high:+.1f}"
        counts = (str(result.pairs), str(result.only_first), str(result.only_second))
        table.add_row(task, *counts, f"{100 * result.risk_difference:+.1f}", interval, f"{result.p_value:.3g}")
    if not table.row_count:
        raise UserError("the runs have no rollout in common")
    return table


def main(config: CompareConfig) -> int:
    """Prints the table."""
    Console().print(comparison_table(config))
    return 0


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/compare.py", main, CompareConfig, __doc__))
