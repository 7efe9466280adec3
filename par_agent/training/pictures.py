"""A picture of what a policy predicts: next frames below the true ones (as the frame encoder keeps them), actions over
the true ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.training.validation import EpisodePrediction
from par_agent.utils.figures import new_figure, save, show_image

COLUMNS = 4
"""Curves side by side."""


def draw(episodes: list[EpisodePrediction], path: Path) -> np.ndarray:
    """Writes a PNG with the frames and the actions of each episode, and returns it as (H, W, 3) uint8.

    Raises:
        OSError: the disk is full or not writable.
    """
    parts: list[tuple[float, Callable[[Any, EpisodePrediction], None], EpisodePrediction]] = []
    for episode in episodes:
        if episode.frames is not None:
            parts.append((3.7, _draw_frames, episode))
        if episode.actions is not None:
            parts.append((0.5 + 1.3 * -(-episode.actions.shape[1] // COLUMNS), _draw_curves, episode))
    heights = [height for height, *_ in parts]
    figure = new_figure(12, sum(heights), dpi=100)
    blocks: Any = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)
    for block, (_, draw_part, episode) in zip(blocks[:, 0], parts, strict=True):
        block.suptitle(episode.name, fontsize="small")
        draw_part(block, episode)
    return save(figure, path)


def _draw_frames(block: Any, episode: EpisodePrediction) -> None:
    assert episode.frames is not None and episode.true_frames is not None
    axes = block.subplots(2, len(episode.frames), squeeze=False)
    for row, (label, frames) in enumerate({"encoded": episode.true_frames, "predicted": episode.frames}.items()):
        for axis, frame in zip(axes[row], frames, strict=True):
            show_image(axis, frame)
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
