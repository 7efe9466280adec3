"""Finds a task's coloured objects in frames: whether an imagined frame shows them where they then are."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from par_agent.simulation.materials import actor_materials

if TYPE_CHECKING:
    from par_agent.simulation.environment import TaskEnvironment

HUE_TOLERANCE = 12 / 360
"""Largest difference of a pixel's hue from an object's, in turns of the colour wheel."""
SATURATION = 0.8
"""Smallest saturation of a pixel, over the object's."""
MIN_VALUE = 0.1
"""Smallest brightness of a pixel that has a colour, of 1."""
MIN_SHARE = 1.5e-4
"""Share of a frame's pixels from which an object counts as visible: 15 of 320x320."""
NEAR = 6 / 320
"""Largest distance between where two frames show an object that counts as the same place, of the frame's height."""

Color = tuple[float, float]
"""Hue, in turns of the colour wheel, and saturation, 0 to 1, as a camera shows them."""


def object_colors(env: TaskEnvironment, row: int) -> list[Color]:
    """Colours, each once, of the untextured coloured objects in row ``row`` of an environment: cubes, goals."""
    colors: set[Color] = set()
    for actor in env.simulation.scene.actors.values():
        for material in actor_materials(actor, row):
            red, green, blue = (_displayed(value) for value in material.base_color[:3])
            hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
            if material.base_color_texture is None and saturation > 0.5:
                colors.add((round(hue, 3), round(saturation, 3)))
    return sorted(colors)


def _displayed(linear: float) -> float:
    """The sRGB value of a linear one, both 0 to 1."""
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def find_object(frame: np.ndarray, color: Color) -> tuple[float, float] | None:
    """Centre (row, column), pixels, of the object of a colour in a frame (H, W, 3) uint8; None: it is not visible."""
    pixels = frame.astype(np.float32) / 255
    value, least = pixels.max(-1), pixels.min(-1)
    spread = np.maximum(value - least, 1e-6)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    hue = np.select([value == red, value == green], [(green - blue) / spread, (blue - red) / spread + 2])
    hue = np.where((value == blue) & (value > red) & (value > green), (red - green) / spread + 4, hue) / 6
    far = np.abs((hue - color[0] + 0.5) % 1 - 0.5) > HUE_TOLERANCE
    shown = ~far & (spread > SATURATION * color[1] * value) & (value > MIN_VALUE)
    if shown.sum() < MIN_SHARE * shown.size:
        return None
    rows, columns = shown.nonzero()
    return float(rows.mean()), float(columns.mean())


def share_in_place(frame: np.ndarray, true: np.ndarray, colors: Sequence[Color]) -> float:
    """Share of objects, at least one, that two frames (H, W, 3) uint8 show at the same place, within :data:`NEAR`, or
    both not at all."""
    agree = [_same_place(find_object(frame, color), find_object(true, color), len(true)) for color in colors]
    return float(np.mean(agree))


def _same_place(first: tuple[float, float] | None, second: tuple[float, float] | None, height: int) -> bool:
    if first is None or second is None:
        return first is second
    return float(np.hypot(first[0] - second[0], first[1] - second[1])) <= NEAR * height
