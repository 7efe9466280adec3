"""The curves below the frames of a rollout: its actions, and how well imagined and executed agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from par_agent.utils.figures import EXECUTED, IMAGINED, LINE, PREDICTED, SOFT, clean_axis
from par_agent.visualization.rollout import Rollout

COLUMNS = 4
"""Action curves side by side."""
_IMAGINED: Any = {"color": IMAGINED, "linewidth": 1.2, "linestyle": (0, (3, 1.5))}


def draw_curves(block: Any, rollout: Rollout) -> list[Any]:
    """Draws into a subfigure; returns the axes, whose x is the control step."""
    rows = -(-len(rollout.action_names) // COLUMNS)
    grid = block.add_gridspec(rows, COLUMNS + 1, width_ratios=[1.0] * COLUMNS + [1.25])
    axes = []
    executed, imagined = np.array(rollout.trace.actions), np.concatenate(rollout.trace.plans[0].actions)
    imagined = imagined[: rollout.steps]
    for number, name in enumerate(rollout.action_names):
        axis = block.add_subplot(grid[number // COLUMNS, number % COLUMNS])
        steps = np.arange(1, rollout.steps + 1)
        axis.plot(steps, executed[:, number], color=EXECUTED, linewidth=1.4)
        axis.plot(steps[: len(imagined)], imagined[:, number], **_IMAGINED)
        clean_axis(axis, name)
        axes.append(axis)
    half = max(1, rows // 2)
    axes.append(_draw_psnr(block.add_subplot(grid[:half, COLUMNS]), rollout))
    axes.append(_draw_path(block.add_subplot(grid[half:, COLUMNS] if rows > 1 else grid[:, COLUMNS]), rollout))
    for axis in axes:
        axis.set_xlim(0, rollout.steps)
    for axis in axes[-2 - COLUMNS : -2]:
        axis.set_xlabel("control step", fontsize=7, color=SOFT)
    axes[-1].set_xlabel("control step", fontsize=7, color=SOFT)
    return axes


def legend(figure: Any) -> None:
    """Explains the colours, below everything."""
    from matplotlib.lines import Line2D

    handles: Any = [
        Line2D([], [], color=EXECUTED, label="executed"),
        Line2D([], [], **_IMAGINED, label="imagined at the start"),
        Line2D([], [], color=PREDICTED, label="predicted a chunk before"),
        Line2D([], [], color=SOFT, linestyle=":", label="frame a chunk before"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _draw_psnr(axis: Any, rollout: Rollout) -> Any:
    """PSNR of predicted frames over the control step that they are of."""
    plans, found = rollout.trace.plans, rollout.alignment
    length = rollout.chunk_length
    scored = [i for i, row in enumerate(found["psnr_db"]) if row]
    steps = [plans[i].step + length for i in scored]
    axis.plot(steps, [found["still_psnr_db"][i][0] for i in scored], color=SOFT, linestyle=":", linewidth=1.2)
    axis.plot(steps, [found["psnr_db"][i][0] for i in scored], color=PREDICTED, linewidth=1.4)
    start = found["psnr_db"][0]
    axis.plot([length * (k + 1) for k in range(len(start))], start, **_IMAGINED)
    clean_axis(axis, "PSNR of frames, dB")
    axis.tick_params(labelbottom=False)
    return axis


def _draw_path(axis: Any, rollout: Rollout) -> Any:
    """Distance of the end effector from where it was to be as imagined at the start, and as planned."""
    errors = rollout.alignment["path_cm"]
    length = rollout.chunk_length
    planned = [(plan.step + length, row[0]) for plan, row in zip(rollout.trace.plans, errors, strict=True) if row]
    if planned:
        axis.plot(*zip(*planned, strict=True), color=PREDICTED, linewidth=1.4)
    imagined = rollout.start_path.reshape(-1, 3)[: rollout.steps]
    distance = 100 * np.linalg.norm(imagined - rollout.path[1 : len(imagined) + 1], axis=1)
    axis.plot(np.arange(1, len(distance) + 1), distance, **_IMAGINED, zorder=1)
    clean_axis(axis, "end effector off by, cm")
    axis.set_ylim(bottom=0)
    axis.axhline(0, color=LINE, linewidth=0.8)
    return axis
