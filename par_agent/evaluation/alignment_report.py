"""The agreement of imagined with executed as table rows and as a figure; :mod:`par_agent.evaluation.alignment` measures
it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from par_agent.evaluation.results import TaskResult
from par_agent.utils.files import atomic_path
from par_agent.visualization.palette import COLOURS

ALIGNMENT_FIGURE = "alignment.png"
"""The figure's name in a run's folder."""
ALIGNMENT_HEADER = ("task", "chunks ahead", "PSNR dB", "still PSNR dB", "encoder PSNR dB", "SSIM", "path cm")
ALIGNMENT_NOTE = (
    "Imagined frames against those executed, means over all looks of all rollouts. Still: the frame looked at last in "
    "place of the imagined one, to be beaten. Encoder: the true frame seen through the frame encoder, which imagined "
    "frames cannot exceed by much. Path: mean distance between where the imagined actions command the end effector to "
    "be and where it was, over the chunk; one chunk ahead, the imagined actions are the executed ones and what remains "
    "is the controller's lag."
)


def alignment_rows(results: list[TaskResult]) -> list[tuple[str, ...]]:
    """A line per task and horizon, for :data:`ALIGNMENT_HEADER`; none where nothing was measured."""

    def text(values: list[float], k: int, digits: int = 1) -> str:
        return f"{values[k]:.{digits}f}" if k < len(values) else "–"

    rows: list[tuple[str, ...]] = []
    for result in results:
        if result.alignment is None:
            continue
        found, encoder = result.alignment, f"{result.encoder_psnr_db:.1f}"
        for k in range(len(found["path_cm"])):
            frames = (text(found["psnr_db"], k), text(found["still_psnr_db"], k), encoder, text(found["ssim"], k, 3))
            rows.append((result.task, str(k + 1), *frames, text(found["path_cm"], k, 2)))
    return rows


def alignment_figure(results: list[TaskResult], path: Path) -> None:
    """Writes a PNG with PSNR, SSIM and the path's error over the horizon, one colour per task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    measured = [(result, found) for result in results if (found := result.alignment) is not None]
    for colour, (result, found) in zip(COLOURS * len(measured), measured, strict=False):
        for axis, name in zip(axes, ("psnr_db", "ssim", "path_cm"), strict=True):
            axis.plot(_ahead(found[name]), found[name], "o-", color=colour, markersize=4)
        axes[0].plot(_ahead(found["still_psnr_db"]), found["still_psnr_db"], ":", color=colour)
        axes[0].axhline(result.encoder_psnr_db, linestyle="--", linewidth=1, color=colour, alpha=0.6)
    for axis, title in zip(axes, ("PSNR, dB", "SSIM", "path error, cm"), strict=True):
        axis.set_title(title, fontsize=10, loc="left")
        _clean(axis)
    axes[1].set_ylim(0, 1)
    axes[2].set_ylim(bottom=0)
    styles: list[Any] = [
        Line2D([], [], color=colour, marker="o", markersize=4, label=result.task)
        for colour, (result, _) in zip(COLOURS * len(measured), measured, strict=False)
    ]
    lines: Any = (("-", "imagined"), (":", "still: the last frame"), ("--", "through the encoder alone"))
    for style, label in lines:
        styles.append(Line2D([], [], color="#5a6570", linestyle=style, label=label))
    figure.legend(handles=styles, loc="outside lower center", ncols=len(styles), frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _ahead(values: list[float]) -> range:
    return range(1, len(values) + 1)


def _clean(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("chunks ahead", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e3e7eb", linewidth=0.8)
    axis.set_axisbelow(True)
