"""The pictures of README: three tasks predicted against executed, one attention figure, one failure."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from par_agent.utils.figures import EXECUTED, PREDICTED, TEXT, new_figure, save, show_image
from par_agent.utils.files import atomic_path
from par_agent.visualization.failures import examine
from par_agent.visualization.rollout import Rollout, moments
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
