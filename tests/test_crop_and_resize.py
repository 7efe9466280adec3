"""Cropping and resizing camera images."""

from __future__ import annotations

import numpy as np
import pytest

from par_agent.errors import UserError
from par_agent.policy.transforms import crop_and_resize

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def test_without_crop_and_size_the_image_stays():
    assert np.array_equal(crop_and_resize(IMAGE, None, None), IMAGE)
    assert np.array_equal(crop_and_resize(IMAGE, (0, 0, 12, 20), (12, 20)), IMAGE)


def test_a_crop_is_top_left_height_width():
    cropped = crop_and_resize(IMAGE, (2, 5, 4, 6), None)
    assert np.array_equal(cropped, IMAGE[2:6, 5:11])
    assert cropped.flags["C_CONTIGUOUS"]


def test_halving_averages_areas_after_the_crop():
    resized = crop_and_resize(IMAGE, (0, 4, 12, 16), (6, 8))
    exact = IMAGE[:, 4:].reshape(6, 2, 8, 2, 3).mean((1, 3))
    assert resized.shape == (6, 8, 3) and resized.dtype == np.uint8
    assert np.abs(resized - exact).max() <= 0.5


def test_size_is_height_then_width():
    assert crop_and_resize(IMAGE, None, (3, 10)).shape == (3, 10, 3)


@pytest.mark.parametrize(
    "crop", [(-1, 0, 4, 4), (0, -1, 4, 4), (0, 0, 0, 4), (0, 0, 4, 0), (9, 0, 4, 4), (0, 17, 4, 4), (0, 0, 13, 4)]
)
def test_a_crop_that_leaves_the_image_is_refused(crop):
    with pytest.raises(UserError, match=r"does not lie inside the 12x20 image"):
        crop_and_resize(IMAGE, crop, None)
