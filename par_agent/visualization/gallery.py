"""The pictures of README and site: tasks predicted against executed, as a picture and moving, attention, a failure."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.evaluation.video_observer import FRAMES_PER_SECOND
from par_agent.utils.figures import EXECUTED, PREDICTED, TEXT, new_figure, pixels, save, show_image
from par_agent.utils.files import atomic_path
from par_agent.visualization.failures import examine
from par_agent.visualization.rollout import HOLD, Rollout, axis_box, moments, paste
from par_agent.visualization.session import RolloutSession

COLUMNS = 8
"""Moments shown of a rollout."""


def draw_rollouts(rollouts: list[Rollout], path: Path) -> None:
    """Writes a PNG: for every rollout its predicted frames above those executed."""
    figure = new_figure(1.3 * COLUMNS + 0.5, 3.05 * len(rollouts), dpi=100)
    blocks: Any = figure.subfigures(len(rollouts), 1, squeeze=False)
    for block, rollout in zip(blocks[:, 0], rollouts, strict=True):
        shown = moments(rollout, COLUMNS)
        block.suptitle(
            f"{rollout.title}: {rollout.outcome}", fontsize=9.5, color=TEXT, x=0.008, ha="left", weight="bold"
        )
        axes = block.subplots(2, COLUMNS, squeeze=False)
        for column in range(COLUMNS):
            moment = shown[column] if column < len(shown) else None
            show_image(axes[0, column], None if moment is None else moment.predicted, PREDICTED)
            caption = "" if moment is None else f"step {moment.step}"
            show_image(axes[1, column], None if moment is None else moment.executed, EXECUTED, caption)
        axes[0, 0].set_ylabel("predicted", fontsize=8.5, color=PREDICTED)
        axes[1, 0].set_ylabel("executed", fontsize=8.5, color=EXECUTED)
    save(figure, path)


def draw_moving(rollouts: list[Rollout], every: int, path: Path) -> None:
    """Writes a GIF in real time with an image after every ``every`` control steps.

    Side by side it shows for every rollout the frame predicted for the end of the current chunk above the executed one.
    """
    figure = new_figure(2.1 * len(rollouts) + 0.3, 4.7, dpi=100)
    axes = figure.subplots(2, len(rollouts), squeeze=False)
    for column, rollout in enumerate(rollouts):
        blank = np.full_like(rollout.trace.plans[0].frame, 255)
        show_image(axes[0, column], blank, PREDICTED)
        show_image(axes[1, column], blank, EXECUTED, rollout.outcome)
        axes[0, column].set_title(rollout.title.partition(",")[0], fontsize=9.5, color=TEXT)
    axes[0, 0].set_ylabel("predicted, one chunk ahead", fontsize=8.5, color=PREDICTED)
    axes[1, 0].set_ylabel("executed", fontsize=8.5, color=EXECUTED)
    empty = pixels(figure)
    images = []
    for step in range(0, max(rollout.steps for rollout in rollouts) + every, every):
        image = empty.copy()
        for column, rollout in enumerate(rollouts):
            now = min(step, rollout.steps)
            paste(image, rollout.trace.plans[rollout.plan_at(now)].frames[0], axis_box(axes[0, column]))
            paste(image, rollout.executed_at(now), axis_box(axes[1, column]))
        images.append(image)
    _write_gif(images, FRAMES_PER_SECOND / every, path)


def _write_gif(images: list[np.ndarray], fps: float, path: Path) -> None:
    """Writes images (H, W, 3) uint8 with one palette for all, and stays on the last one for a moment."""
    from PIL import Image

    some = np.concatenate(images[:: max(1, len(images) // 6)])
    palette = Image.fromarray(some).quantize(255, Image.Quantize.MAXCOVERAGE)
    pages = [Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    times = [round(1000 / fps)] * len(pages)
    times[-1] += round(1000 * HOLD)
    with atomic_path(path) as temporary:
        pages[0].save(temporary, format="gif", save_all=True, append_images=pages[1:], duration=times, loop=0)


def draw_one_failure(session: RolloutSession, states: Iterable[int], path: Path) -> int | None:
    """Rolls out from initial states until one fails, and draws that; its number, or None where all succeed.

    Processors differ in the last bits, so that a rollout that failed on one may succeed on another.
    """
    for state in states:
        _, record, draw = examine(session, state, (0,))
        if not record["success_once"]:
            draw(path)
            return state
    return None


def compress(path: Path, width: int = 1000) -> None:
    """Writes a PNG anew with so many pixels in a row and a palette of 256 colours: several times smaller."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(path).convert("RGB")
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    palette = image.quantize(256, Image.Quantize.MAXCOVERAGE)  # which keeps the colours of small things
    image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(buffer, format="png", optimize=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
