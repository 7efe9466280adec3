"""What all figures share: colours, canvas, axes and the text on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from par_agent.utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, told apart with any kind of colour vision."""
TEXT, SOFT, LINE = "#1d2329", "#5a6570", "#d5dbe1"
EXECUTED, IMAGINED, PREDICTED = COLOURS[:3]
"""What happened, what was imagined at the start, what was predicted a chunk before."""


def new_figure(width: float, height: float, dpi: float = 110) -> Figure:
    """An empty figure of so many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def headed_figure(
    width: float, height: float, parts: Sequence[float], title: str, text: str = "", right: str = "", dpi: float = 110
) -> tuple[Figure, list[Any]]:
    """A figure with a line of text, and its subfigures below that line, of the heights `parts` (inches)."""
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

    figure = new_figure(width, height, dpi)
    blocks: Any = figure.subfigures(1 + len(parts), 1, height_ratios=[0.35, *parts])
    header = blocks[0]
    texts: Any = [TextArea(title, textprops={"color": TEXT, "size": 11, "weight": "bold"})]
    texts.append(TextArea(text, textprops={"color": SOFT, "size": 9}))
    packed = HPacker(children=texts, align="baseline", pad=0, sep=12)
    place: Any = {"bbox_to_anchor": (0.008, 0.5), "bbox_transform": header.transSubfigure, "frameon": False}
    box = AnchoredOffsetbox("center left", child=packed, pad=0, borderpad=0, **place)
    box.set_in_layout(False)
    header.add_artist(box)
    header.text(0.992, 0.5, right, fontsize=11, color=TEXT, va="center", ha="right")
    return figure, list(blocks[1:])


def save(figure: Figure, path: Path) -> np.ndarray:
    """Writes a PNG atomically, and returns it: (H, W, 3) uint8."""
    from PIL import Image

    image = pixels(figure)
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="png", optimize=True)
    return image


def show_image(axis: Any, image: np.ndarray | None, colour: str = LINE, caption: str = "") -> None:
    """Shows an image (H, W, 3) uint8 without ticks in a thin frame, a caption below; None leaves the place empty."""
    axis.set_xlabel(caption, fontsize=7.5, color=SOFT, labelpad=2)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=1.0, visible=image is not None)
    if image is None:
        axis.set_facecolor("none")
    else:
        axis.imshow(image, aspect="equal")


def clean_axis(axis: Any, title: str) -> None:
    """A small plot: title at the left, two spines, light lines."""
    axis.set_title(title, fontsize=8, loc="left", color=TEXT, pad=3)
    axis.tick_params(labelsize=7, colors=SOFT, length=2.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(LINE)
    axis.grid(axis="y", color="#eef1f4", linewidth=0.8)
    axis.set_axisbelow(True)


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the indices from 0 to ``count - 1``, spread evenly, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))})


def smooth(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Weights (rows, columns) of the patches of a frame of ``shape`` (H, W, 3) over its pixels: (H, W) float32, smooth
    between the centres."""
    import cv2

    return cv2.resize(weights.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def pixels(figure: Figure) -> np.ndarray:
    """The drawn figure (H, W, 3) uint8; height and width are even, as videos need them."""
    canvas: Any = figure.canvas
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
