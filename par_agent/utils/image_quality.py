"""How close an image is to the true one: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from par_agent.utils.references import optional_module

MOVED = 20
"""Difference, of 255, from which a pixel counts as moving."""


def check_scikit_image() -> None:
    """Checks that :func:`ssim` can be computed."""
    optional_module("skimage.metrics", "comparing frames needs scikit-image", "viz")


def psnr_of_error(squared: float, value_range: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error, dB; at most that of rounding to 8 bits, 58.9 dB."""
    rounding = (value_range / 255) ** 2 / 12
    return 20 * math.log10(value_range) - 10 * math.log10(max(squared, rounding))


def psnr(image: ArrayLike, true: ArrayLike) -> float:
    """Peak signal-to-noise ratio of images uint8 of any shape, arrays or tensors, dB; see :func:`psnr_of_error`."""
    difference = np.asarray(image, np.float64) - np.asarray(true, np.float64)
    return psnr_of_error(float(np.mean(difference**2)), 255)


def moving_psnr(image: np.ndarray, true: np.ndarray, last: np.ndarray) -> float:
    """:func:`psnr` over the pixels where the true image (H, W, 3) uint8 differs from the last one by more than
    :data:`MOVED` in a colour; over all if none does."""
    moved = (np.abs(true.astype(np.int16) - last) > MOVED).any(-1)
    return psnr(image[moved], true[moved]) if moved.any() else psnr(image, true)


def ssim(image: np.ndarray, true: np.ndarray) -> float:
    """Structural similarity of an image (H, W, 3) uint8, mean over pixels and colours (Wang et al. 2004)."""
    from skimage.metrics import structural_similarity

    window = min(7, min(true.shape[:2]) // 2 * 2 - 1)
    return float(structural_similarity(image, true, channel_axis=2, data_range=255, win_size=window))
