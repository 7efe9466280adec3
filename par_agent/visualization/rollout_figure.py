"""A rollout as a strip of frames (PNG) and as a video (MP4): imagined and predicted above executed, aligned in time."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from par_agent.evaluation.video_observer import FRAMES_PER_SECOND
from par_agent.utils.figures import (
    EXECUTED,
    IMAGINED,
    PREDICTED,
    TEXT,
    evenly,
    headed_figure,
    pixels,
    save,
    show_image,
)
from par_agent.utils.image_quality import psnr, ssim
from par_agent.utils.videos import write_video
from par_agent.visualization.curves import draw_curves, legend
from par_agent.visualization.rollout import Rollout

COLUMNS = 8
"""Moments shown in a strip at most."""
_ROWS = (("imagined at the start", IMAGINED), ("predicted a chunk before", PREDICTED), ("executed", EXECUTED))
HOLD = 1.5
"""Seconds that a video stays on its last image."""


class Moment(NamedTuple):
    """A control step with its frames (H, W, 3) uint8."""

    step: int
    """Control steps executed before."""
    imagined: np.ndarray | None
    """As imagined at the rollout's start."""
    predicted: np.ndarray | None
    """As predicted a chunk before."""
    executed: np.ndarray
    """As it was."""


def moments(rollout: Rollout, count: int = COLUMNS) -> list[Moment]:
    """Start, end and plans spread evenly between them, ``count`` at most."""
    plans = rollout.trace.plans
    shown: list[Moment] = []
    for i in evenly(len(plans), count - 1):
        imagined = plans[0].frames[i - 1] if 0 < i <= len(plans[0].frames) else None
        shown.append(Moment(plans[i].step, imagined, plans[i - 1].frames[0] if i else None, plans[i].frame))
    last = max(rollout.frames)
    if last > shown[-1].step:
        shown.append(Moment(last, None, None, rollout.frames[last]))
    return shown


def draw_strip(rollout: Rollout, path: Path) -> None:
    """Writes the PNG."""
    shown = moments(rollout)
    width = max(1.62 * len(shown) + 0.5, 9.0)
    figure, (top, bottom) = headed_figure(width, 8.6, (5.6, 2.7), rollout.title, rollout.instruction, rollout.outcome)
    _draw_frames(top, shown)
    draw_curves(bottom, rollout)
    legend(figure)
    save(figure, path)


def _draw_frames(block: Any, shown: list[Moment]) -> None:
    """Three rows of frames with their scores into a subfigure."""
    axes = block.subplots(3, len(shown), squeeze=False)
    for column, moment in enumerate(shown):
        images = (moment.imagined, moment.predicted, moment.executed)
        for row, (image, (_, colour)) in enumerate(zip(images, _ROWS, strict=True)):
            caption = f"step {moment.step}"
            if row < 2 and image is not None:
                caption = f"{psnr(image, moment.executed):.1f} dB, SSIM {ssim(image, moment.executed):.2f}"
            show_image(axes[row, column], image, colour, "" if image is None else caption)
    for row, (label, colour) in enumerate(_ROWS):
        axes[row, 0].set_ylabel(label, fontsize=9, color=colour, labelpad=6)


def draw_video(rollout: Rollout, path: Path) -> None:
    """Writes the MP4, in real time; imagined and predicted frames are those of the current chunk's end."""
    steps = sorted(rollout.frames)
    every = min(b - a for a, b in pairwise(steps)) if len(steps) > 1 else 1
    canvas = _Canvas(rollout)
    times = [*range(0, rollout.steps, every), rollout.steps]
    fps = FRAMES_PER_SECOND / every
    frames = [canvas.at(step) for step in times]
    write_video(path, np.stack(frames + [frames[-1]] * round(HOLD * fps)), fps)


class _Canvas:
    """The parts of a video that stay, drawn once; images, cursor and time are put on it for every step."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout
        figure, (top, bottom) = headed_figure(11, 7.6, (4.2, 3.1), rollout.title, rollout.instruction, dpi=100)
        places = top.subplots(1, 3)
        blank = np.full((*rollout.trace.plans[0].frame.shape[:2], 3), 244, np.uint8)
        for axis, (label, colour) in zip(places, _ROWS, strict=True):
            show_image(axis, blank, colour)
            axis.set_title(label, fontsize=10, color=colour)
        curves = draw_curves(bottom, rollout)
        legend(figure)
        self._image = pixels(figure)
        self._places = [self._box(axis) for axis in places]
        self._curves = [(*self._box(axis), axis.transData) for axis in curves]

    def _box(self, axis: Any) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of an axis, pixels."""
        extent, height = axis.get_window_extent(), axis.figure.figure.canvas.get_width_height()[1]
        return round(extent.x0), round(height - extent.y1), round(extent.x1), round(height - extent.y0)

    def at(self, step: int) -> np.ndarray:
        """The video's image (H, W, 3) uint8 after so many control steps."""
        image, rollout = self._image.copy(), self._rollout
        plans, length = rollout.trace.plans, rollout.chunk_length
        current = max(i for i, plan in enumerate(plans) if plan.step < max(step, 1))
        chunk = plans[current].step // length
        imagined = plans[0].frames[chunk] if chunk < len(plans[0].frames) else None
        executed = rollout.frames[max(taken for taken in rollout.frames if taken <= step)]
        for box, frame in zip(self._places, (imagined, plans[current].frames[0], executed), strict=True):
            if frame is not None:
                _paste(image, frame, box)
        for left, top, right, bottom, transform in self._curves:
            x = round(transform.transform((step, 0))[0])
            image[top:bottom, min(max(x, left), right - 1)] = (90, 101, 112)
        return _write_time(image, rollout, step)


def _paste(image: np.ndarray, frame: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Puts a frame inside a box, its outline left free."""
    import cv2

    left, top, right, bottom = box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1
    image[top:bottom, left:right] = cv2.resize(frame, (right - left, bottom - top), interpolation=cv2.INTER_AREA)


def _write_time(image: np.ndarray, rollout: Rollout, step: int) -> np.ndarray:
    """Writes step and success into the upper right corner."""
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFont

    solved = rollout.record["steps_to_success"] is not None and step >= rollout.record["steps_to_success"]
    text = f"step {step}" + (", success" if solved else "")
    page = Image.fromarray(image)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 15)
    ImageDraw.Draw(page).text((image.shape[1] - 12, 9), text, PREDICTED if solved else TEXT, font, anchor="ra")
    return np.asarray(page)
