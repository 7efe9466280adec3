"""A picture of what a policy predicts: next frames below the true ones, actions over the true ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.training.validation import EpisodePrediction
from par_agent.utils.files import atomic_path

COLUMNS = 4
"""Curves side by side."""
TITLE = 0.5
"""Inches above an episode's block."""
DrawPart = Callable[[Any, EpisodePrediction], None]
"""Draws a part of an episode into a subfigure."""


def draw(episodes: list[EpisodePrediction], path: Path) -> np.ndarray:
    """Writes a PNG with one block per episode and returns it as (H, W, 3) uint8.

    Raises:
        OSError: the disk is full or not writable.
    """
    import imageio.v3 as iio
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [TITLE + sum(_heights(episode).values()) for episode in episodes]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    blocks: Any = figure.subfigures(len(episodes), 1, squeeze=False, height_ratios=heights)
    for block, episode in zip(blocks[:, 0], episodes, strict=True):
        block.suptitle(episode.name, fontsize="small")
        parts = _heights(episode)
        places = block.subfigures(len(parts), 1, squeeze=False, height_ratios=list(parts.values()))
        for place, draw_part in zip(places[:, 0], parts, strict=True):
            draw_part(place, episode)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return iio.imread(buffer.getvalue(), extension=".png")[..., :3]


def _heights(episode: EpisodePrediction) -> dict[DrawPart, float]:
    """What is drawn of an episode, and how high, in inches."""
    heights: dict[DrawPart, float] = {}
    if episode.frames is not None:
        heights[_draw_frames] = 3.2
    if episode.actions is not None:
        heights[_draw_curves] = 1.3 * -(-episode.actions.shape[1] // COLUMNS)
    return heights


def _draw_frames(block: Any, episode: EpisodePrediction) -> None:
    assert episode.frames is not None and episode.true_frames is not None
    axes = block.subplots(2, len(episode.frames), squeeze=False)
    for row, (label, frames) in enumerate({"true": episode.true_frames, "predicted": episode.frames}.items()):
        for axis, frame in zip(axes[row], frames, strict=True):
            axis.imshow(frame)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].set_ylabel(f"{label} next frame", fontsize="small")


def _draw_curves(block: Any, episode: EpisodePrediction) -> None:
    assert episode.actions is not None and episode.true_actions is not None
    size = episode.actions.shape[1]
    axes = block.subplots(-(-size // COLUMNS), COLUMNS, squeeze=False, sharex=True).flatten()
    for number, axis in enumerate(axes):
        axis.set_visible(number < size)
        if number < size:
            axis.plot(episode.true_actions[:, number], label="true")
            axis.plot(episode.actions[:, number], label="predicted")
            axis.set_title(f"action {number}", fontsize="x-small")
            axis.tick_params(labelsize="x-small")
    axes[0].legend(fontsize="x-small")
