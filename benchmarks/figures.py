"""Pictures of the reported runs. Each carries the table that it draws as its PNG description, to tell whether it is of
today's records whatever draws the pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reported_runs import Run
from tables import ROWS, Curve, Point

from par_agent.evaluation.results import PAPER_RESULTS, TaskResult
from par_agent.tasks import PAPER_TASKS
from par_agent.utils.files import atomic_path

DESCRIPTION = "Description"

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_picture(draw: Callable[[Path], None], path: Path, table: str) -> None:
    """Writes a PNG with the table that it draws, as text, as its description."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    description = PngInfo()
    description.add_itxt(DESCRIPTION, table)
    with atomic_path(path) as temporary:
        draw(temporary)
        with Image.open(temporary) as image:
            image.load()
        image.save(temporary, format="png", pnginfo=description)


def read_description(path: Path) -> str | None:
    """The table that a picture draws; None where it tells none, or is no picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return None
    found = image.info.get(DESCRIPTION)
    return None if found is None else str(found)


def draw_table(rows: Mapping[str, Run], reference: str, path: Path) -> None:
    """Bars of the measured rates with Wilson intervals by task; the paper's figures as open marks."""
    figure, axes = _axes(len(PAPER_TASKS))
    for axis, task in zip(axes, PAPER_TASKS, strict=True):
        for place, (name, run) in enumerate(rows.items()):
            if (result := run.results.get(task)) is not None:
                below, above = _error(result)
                color = "tab:blue" if name == reference else "tab:gray"
                axis.bar(place, 100 * result.rate, yerr=[[below], [above]], capsize=3, color=color)
            if name in ROWS:
                axis.plot(place, PAPER_RESULTS[ROWS[name]][task], "o", mfc="none", color="tab:red")
        axis.set_title(task)
        axis.set_xticks(range(len(rows)), list(rows), rotation=45, ha="right")
    axes[-1].plot([], [], "o", mfc="none", color="tab:red", label="printed in the paper")
    axes[-1].legend(loc="upper right")
    figure.savefig(path, format="png", dpi=120)


def draw_curves(curves: Mapping[Curve, Sequence[Point]], path: Path) -> None:
    """Rates by the number of demonstrations trained on, with Wilson intervals, a panel for each task."""
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    figure, axes = _axes(len(tasks))
    drawn = Counter[str]()
    for curve, points in curves.items():
        axis, beside = axes[tasks.index(curve.task)], 1.03 ** drawn[curve.task]  # intervals must not lie on one another
        drawn[curve.task] += 1
        counts = [beside * point.demonstrations for point in points]
        errors = list(zip(*(_error(point.result) for point in points), strict=True))
        rates = [100 * point.result.rate for point in points]
        axis.errorbar(counts, rates, yerr=errors, marker="o", capsize=3, label=f"{curve.policy}, {curve.steps:,} steps")
    for axis, task in zip(axes, tasks, strict=True):
        counts = sorted({point.demonstrations for curve in curves if curve.task == task for point in curves[curve]})
        axis.set(title=task, xscale="log", xlabel="demonstrations")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.legend(loc="lower right", fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def _error(result: TaskResult) -> tuple[float, float]:
    """What the Wilson interval reaches below and above the rate, in points."""
    return 100 * (result.rate - result.wilson.low), 100 * (result.wilson.high - result.rate)


def _axes(count: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * count if count > 1 else 6, 4), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    axes[0].set_ylim(0, 105)
    axes[0].set_ylabel("success rate, %")
    return figure, axes
