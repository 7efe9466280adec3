"""One rollout as a strip of frames (PNG) and as a video (MP4): imagined and predicted above executed, aligned in time.

Below the frames are the curves of its actions, and of how well imagined and executed agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from par_agent.evaluation.alignment import AlignmentValues, align, imagined_path
from par_agent.evaluation.records import Record
from par_agent.evaluation.trace import RolloutTracer, Trace
from par_agent.evaluation.video_observer import FRAMES_PER_SECOND
from par_agent.simulation.end_effector import EndEffector
from par_agent.utils.figures import (
    EXECUTED,
    IMAGINED,
    LINE,
    PREDICTED,
    SOFT,
    TEXT,
    clean_axis,
    evenly,
    headed_figure,
    pixels,
    save,
    show_image,
)
from par_agent.utils.image_quality import psnr, ssim
from par_agent.utils.videos import write_video
from par_agent.visualization.session import FrameObserver, RolloutSession

COLUMNS = 8
"""Moments shown in a strip at most."""
CURVES = 4
"""Action curves side by side."""
HOLD = 1.5
"""Seconds that a video stays on its last image."""
_ROWS = (("imagined at the start", IMAGINED), ("predicted a chunk before", PREDICTED), ("executed", EXECUTED))
_IMAGINED: Any = {"color": IMAGINED, "linewidth": 1.2, "linestyle": (0, (3, 1.5))}


@dataclass(frozen=True)
class Rollout:
    """One rollout with all that is drawn of it."""

    title: str
    """Task, initial state and policy seed."""
    instruction: str
    """What the policy was told."""
    record: Record
    """How it ended."""
    trace: Trace
    """What the policy saw, imagined and did."""
    frames: dict[int, np.ndarray]
    """What its camera saw, (H, W, 3) uint8, by control step."""
    alignment: AlignmentValues
    """How well what it imagined in every plan agrees with what happened."""
    path: np.ndarray
    """(E + 1, 3) metres: where the end effector was."""
    start_path: np.ndarray
    """(N, L, 3) metres: where it would have been as imagined at the start."""
    action_names: tuple[str, ...]
    """(A,) with units."""

    @property
    def steps(self) -> int:
        """Control steps executed."""
        return len(self.trace.actions)

    @property
    def chunk_length(self) -> int:
        """Actions per chunk."""
        return int(self.trace.plans[0].actions.shape[1])

    def plan_at(self, step: int) -> int:
        """Number of the plan whose chunk the control step ``step`` belongs to; step 0 belongs to the first."""
        return max(i for i, plan in enumerate(self.trace.plans) if plan.step < max(step, 1))

    def executed_at(self, step: int) -> np.ndarray:
        """The newest frame (H, W, 3) uint8 after so many control steps."""
        return self.frames[max(taken for taken in self.frames if taken <= step)]

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.record["success_once"]:
            return f"success after {self.record['steps_to_success']} steps"
        return f"no success in {self.record['steps']} steps"


def record_rollout(
    session: RolloutSession,
    state: int,
    policy_seed: int,
    *,
    imagine: int = 12,
    every: int = 2,
    on_step: Callable[[int], None] = lambda steps: None,
) -> Rollout:
    """Repeats a rollout of the benchmark, with ``imagine`` chunks imagined at the start.

    ``every`` and ``on_step`` are those of :class:`FrameObserver`.
    """
    transforms, encoder = session.policy.transforms, session.policy.checkpoint.encoder
    tracer = RolloutTracer(session.env, session.policy, 1, imagine)
    observer = FrameObserver(session, every, on_step)
    record = session.roll_out(state, policy_seed, [tracer, observer])
    [trace], hand = tracer.traces, EndEffector(session.env)
    told = session.policy.instruction or ""
    return Rollout(
        title=session.title(state, policy_seed),
        instruction=told if isinstance(told, str) else told[0],
        record=record,
        trace=trace,
        frames=observer.frames,
        alignment=align(trace, transforms, encoder, hand),
        path=hand.positions(np.array(trace.joints)),
        start_path=imagined_path(trace.plans[0], transforms, hand),
        action_names=_action_names(transforms.relative),
    )


def _action_names(relative: tuple[bool, ...]) -> tuple[str, ...]:
    """Joint targets by number; a single other command beside them is the gripper's."""
    lone = sum(not joint for joint in relative) == 1 and any(relative)
    other = "gripper, −1 to 1" if lone else "command {}"
    return tuple(f"joint {i}, rad" if joint else other.format(i) for i, joint in enumerate(relative, start=1))


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
    _draw_curves(figure, bottom, rollout)
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
        curves = _draw_curves(figure, bottom, rollout)
        self._image = pixels(figure)
        self._places = [axis_box(axis) for axis in places]
        self._curves = [(*axis_box(axis), axis.transData) for axis in curves]

    def at(self, step: int) -> np.ndarray:
        """The video's image (H, W, 3) uint8 after so many control steps."""
        image, rollout = self._image.copy(), self._rollout
        plans, length = rollout.trace.plans, rollout.chunk_length
        current = rollout.plan_at(step)
        chunk = plans[current].step // length
        imagined = plans[0].frames[chunk] if chunk < len(plans[0].frames) else None
        shown = (imagined, plans[current].frames[0], rollout.executed_at(step))
        for box, frame in zip(self._places, shown, strict=True):
            if frame is not None:
                paste(image, frame, box)
        for left, top, right, bottom, transform in self._curves:
            x = round(transform.transform((step, 0))[0])
            image[top:bottom, min(max(x, left), right - 1)] = (90, 101, 112)
        return _write_time(image, rollout, step)


def axis_box(axis: Any) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of an axis in its drawn figure, pixels."""
    extent, height = axis.get_window_extent(), axis.figure.figure.canvas.get_width_height()[1]
    return round(extent.x0), round(height - extent.y1), round(extent.x1), round(height - extent.y0)


def paste(image: np.ndarray, frame: np.ndarray, box: tuple[int, int, int, int]) -> None:
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


def _draw_curves(figure: Any, block: Any, rollout: Rollout) -> list[Any]:
    """Draws into a subfigure and explains the colours below; returns the axes, whose x is the control step."""
    from matplotlib.lines import Line2D

    rows = -(-len(rollout.action_names) // CURVES)
    grid = block.add_gridspec(rows, CURVES + 1, width_ratios=[1.0] * CURVES + [1.25])
    axes = []
    executed, imagined = np.array(rollout.trace.actions), np.concatenate(rollout.trace.plans[0].actions)
    imagined = imagined[: rollout.steps]
    steps = np.arange(1, rollout.steps + 1)
    for number, name in enumerate(rollout.action_names):
        axis = block.add_subplot(grid[number // CURVES, number % CURVES])
        axis.plot(steps, executed[:, number], color=EXECUTED, linewidth=1.4)
        axis.plot(steps[: len(imagined)], imagined[:, number], **_IMAGINED)
        clean_axis(axis, name)
        axes.append(axis)
    half = max(1, rows // 2)
    axes.append(_draw_psnr(block.add_subplot(grid[:half, CURVES]), rollout))
    axes.append(_draw_path(block.add_subplot(grid[half:, CURVES] if rows > 1 else grid[:, CURVES]), rollout))
    for axis in axes:
        axis.set_xlim(0, rollout.steps)
    for axis in (*axes[-2 - CURVES : -2], axes[-1]):
        axis.set_xlabel("control step", fontsize=7, color=SOFT)
    handles: Any = [
        Line2D([], [], color=EXECUTED, label="executed"),
        Line2D([], [], **_IMAGINED, label="imagined at the start"),
        Line2D([], [], color=PREDICTED, label="predicted a chunk before"),
        Line2D([], [], color=SOFT, linestyle=":", label="frame a chunk before"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return axes


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
