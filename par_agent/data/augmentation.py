"""Augmentation of training frames: a shift and a change of colour, the same for all frames of an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from par_agent.utils.checked import Checked, Range

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a pixel's grey level."""


@dataclass(frozen=True)
class Augmentation(Checked):
    """How far frames may be changed."""

    shift: Annotated[int, Range(0, 1024)] = 6
    """Largest shift, pixels."""
    color_jitter: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Largest relative change of brightness, contrast and saturation, below 1."""

    def draw(self, generator: np.random.Generator) -> Change:
        """A random change within these bounds."""
        down, right = generator.integers(-self.shift, self.shift + 1, 2).tolist()
        factors = generator.uniform(1 - self.color_jitter, 1 + self.color_jitter, 3).tolist()
        return Change((down, right), (factors[0], factors[1], factors[2]))


@dataclass(frozen=True)
class Change:
    """One change of a clip."""

    shift: tuple[int, int] = (0, 0)
    """Pixels down and to the right."""
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of brightness, contrast and saturation."""

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames (N, H, W, 3) uint8, all changed alike."""
        frames = shift_frames(frames, np.array(self.shift)) if any(self.shift) else frames
        return frames if self.factors == (1.0, 1.0, 1.0) else jitter_colors(frames, self.factors)


def shift_frames(frames: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Shifts frames (N, H, W, 3) by (down, right) pixels; edge pixels repeat."""
    down, right = (int(value) for value in shift)
    rows = np.clip(np.arange(frames.shape[1]) - down, 0, frames.shape[1] - 1)
    columns = np.clip(np.arange(frames.shape[2]) - right, 0, frames.shape[2] - 1)
    return frames[:, rows][:, :, columns]


def jitter_colors(frames: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    """Frames (N, H, W, 3) uint8 with brightness, then contrast, then saturation multiplied by ``factors``.

    Contrast is the distance from the clip's mean grey level, saturation that from the pixel's own.
    """
    brightness, contrast, saturation = factors
    pixels = frames.astype(np.float32) * brightness
    grey = (pixels @ LUMA)[..., None]
    mixed = grey + saturation * (pixels - grey)
    changed = mixed * contrast + (1 - contrast) * grey.mean()
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)
