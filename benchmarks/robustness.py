"""Rolls a policy out as it is and under every variation, and makes a table and a heat map of success.

python benchmarks/robustness.py --policy par-mini

python benchmarks/robustness.py --policy dp --variations camera_pose camera_pose=0.5 table_texture --states 10

Every variation is a run of `benchmarks/run.py` in a folder of its own, so that the same command continues where it was
stopped; the table and the picture are made anew after each.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean

import numpy as np
from rich.console import Console

from par_agent.cli.benchmark import BenchmarkConfig, PolicyOptions, ProgressDisplay, run_config
from par_agent.cli.options import run_script
from par_agent.errors import UserError
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.report import write_results
from par_agent.evaluation.results import TaskResult, csv_cells, markdown_table
from par_agent.evaluation.run_config import RunOptions
from par_agent.simulation.episode_variation import parts_for
from par_agent.simulation.variations import VARIATIONS, get_variation
from par_agent.tasks import resolve_tasks
from par_agent.utils.checked import Length
from par_agent.utils.figures import LINE, SOFT, TEXT, new_figure, save
from par_agent.utils.files import write_text

UNCHANGED = "none"
NOTHING = "–"
Results = Mapping[str, Mapping[str, TaskResult]]
"""Results by variation and task; the unchanged task's first."""


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(RunOptions, PolicyOptions):
    """Rolls a policy out as it is and under variations, and makes a table and a heat map of success."""

    variations: tuple[str, ...] = tuple(name for name in VARIATIONS if name != UNCHANGED)
    """Variations as NAME or NAME=STRENGTH, for example camera_pose=0.5."""
    policy_seeds: Length = 1
    """Policy seeds per initial state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variation != UNCHANGED:
            raise UserError(f"variation is {self.variation!r}; give the variations with --variations")


def runs(config: RobustnessConfig) -> dict[str, BenchmarkRun]:
    """The runs by variation, the unchanged one first; each has the tasks that can have its variation."""
    shared = {field.name: getattr(config, field.name) for field in fields(BenchmarkConfig) if field.name != "alignment"}
    found = {}
    for text in dict.fromkeys((UNCHANGED, *config.variations)):
        label = get_variation(text).label
        tasks = tuple(task for task in config.tasks if fits(task, text, config.backend))
        if tasks:
            found[label] = BenchmarkRun(run_config(BenchmarkConfig(**shared | {"variation": label, "tasks": tasks})))
    return found


def fits(task: str, variation: str, backend: str) -> bool:
    """Whether a task and a backend can have a variation."""
    (spec,) = resolve_tasks([task]).values()
    try:
        parts_for(spec, variation, backend)
    except UserError:
        return False
    return True


def table(results: Results, tasks: list[str]) -> list[str]:
    """Successes in Markdown: a row for each variation, then the mean rate of all and its share of the unchanged one."""
    rows = [
        (name, get_variation(name).told, *(_cell(found.get(task)) for task in tasks)) for name, found in results.items()
    ]
    means = {task: _mean(results, task) for task in tasks}
    rows.append(("mean", "of all variations", *(_percent(means[task]) for task in tasks)))
    shares = (_share(means[task], results[UNCHANGED].get(task)) for task in tasks)
    rows.append(("share", "of the unchanged rate that is left", *map(_percent, shares)))
    return markdown_table(("variation", "what is different", *tasks), rows)


def _mean(results: Results, task: str) -> float | None:
    rates = [found[task].rate for name, found in results.items() if name != UNCHANGED and task in found]
    return mean(rates) if rates else None


def _share(rate: float | None, unchanged: TaskResult | None) -> float | None:
    return None if rate is None or unchanged is None or not unchanged.rate else rate / unchanged.rate


def _cell(result: TaskResult | None) -> str:
    if result is None:
        return NOTHING
    errors = f", {result.errors} errors" if result.errors else ""
    return f"{result.successes}/{result.rollouts} = {100 * result.rate:.0f} ({result.wilson.percent}){errors}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.0f}%"


def results_csv(results: Results) -> str:
    """The results, a line for each variation and task."""
    rows = [{"variation": name, **csv_cells(result)} for name, found in results.items() for result in found.values()]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def draw(results: Results, tasks: list[str], title: str, path: Path) -> None:
    """A PNG with a cell for each variation and task, in the colour of its success rate, which is written in it."""
    names = list(results)
    figure = new_figure(2.6 + 1.1 * len(tasks), 1.1 + 0.27 * len(names))
    axis = figure.subplots()
    rates = np.array([[100 * found[t].rate if t in found else np.nan for t in tasks] for found in results.values()])
    picture = axis.imshow(rates, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
    for (row, column), rate in np.ndenumerate(rates):
        text = NOTHING if np.isnan(rate) else f"{rate:.0f}"
        axis.text(column, row, text, ha="center", va="center", color=TEXT, size=8)
    axis.set_xticks(range(len(tasks)), tasks, fontsize=8, color=TEXT)
    axis.set_yticks(range(len(names)), names, fontsize=8, color=TEXT)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.axhline(0.5, color=TEXT, linewidth=1.5)  # below the unchanged task
    axis.set_xlabel(f"{title}: success rate in %", fontsize=8, color=SOFT)
    axis.spines[:].set_color(LINE)
    figure.colorbar(picture, ax=axis, shrink=0.6).ax.tick_params(labelsize=7)
    save(figure, path)


def main(config: RobustnessConfig) -> int:
    """Does the runs that are not on disk yet; writes the table and the picture after each."""
    console, results, todo = Console(), dict[str, dict[str, TaskResult]](), runs(config)
    first = todo[UNCHANGED].info
    tasks, title = first.tasks, f"{first.config.policy.label}, {first.config.track} track"
    folder = config.out / f"robustness-{first.folder.name}"
    for name, run in todo.items():
        console.print(f"{name}: {run.info.total} rollouts; results: {run.folder}", highlight=False)
        with ProgressDisplay(console, run.info.total) as display:
            records = run.run(display.begin, display.show)
        results[name] = {result.task: result for result in write_results(run.info, records)}
        lines = [f"# {title}", "", *table(results, tasks), "", f"Initial states: {first.config.protocol_label}."]
        write_text(folder / "robustness.md", "\n".join(lines) + "\n")
        write_text(folder / "robustness.csv", results_csv(results))
        draw(results, tasks, title, folder / "robustness.png")
    console.print(f"\n{(folder / 'robustness.md').read_text()}", highlight=False)
    console.print(f"table and picture in {folder}", highlight=False)
    return 0


if __name__ == "__main__":
    out = Path("benchmarks/results")
    sys.exit(run_script("benchmarks/robustness.py", main, RobustnessConfig, __doc__, resumes=True, out=out))
