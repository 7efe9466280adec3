"""Augmentation of frames: what it changes, what it leaves, and that a clip is changed as one."""

from __future__ import annotations

import numpy as np
import pytest

from par_agent.data.augmentation import Augmentation, Change, jitter_colors, shift_frames
from par_agent.errors import UserError

CLIP = np.random.default_rng(0).integers(40, 200, (3, 8, 10, 3), dtype=np.uint8)


def test_shifts_move_all_frames_and_repeat_the_edge() -> None:
    moved = shift_frames(CLIP, np.array([2, -3]))
    np.testing.assert_array_equal(moved[:, 2:, :-3], CLIP[:, :-2, 3:])
    np.testing.assert_array_equal(moved[:, 0, :-3], CLIP[:, 0, 3:])
    np.testing.assert_array_equal(moved[:, 2:, -1], CLIP[:, :-2, -1])


def test_each_factor_changes_what_it_is_named_for() -> None:
    brighter = jitter_colors(CLIP, (1.2, 1.0, 1.0))
    np.testing.assert_allclose(brighter, 1.2 * CLIP.astype(float), atol=0.51)
    flatter = jitter_colors(CLIP, (1.0, 0.5, 1.0))
    np.testing.assert_allclose(np.ptp(flatter), np.ptp(CLIP) / 2, atol=1)
    np.testing.assert_allclose(flatter.mean(), CLIP.mean(), atol=2)
    grey = jitter_colors(CLIP, (1.0, 1.0, 0.0))
    assert np.ptp(grey, axis=-1).max() == 0
    np.testing.assert_array_equal(jitter_colors(CLIP, (1.0, 1.0, 1.0)), CLIP)


def test_a_clip_is_changed_as_one() -> None:
    still = np.repeat(CLIP[:1], 4, axis=0)
    change = Augmentation(3, 0.4).draw(np.random.default_rng(5))
    changed = change(still)
    assert not np.array_equal(changed, still)
    for frame in changed:
        np.testing.assert_array_equal(frame, changed[0])


def test_draws_are_seeded_and_stay_in_bounds() -> None:
    augmentation, generator = Augmentation(2, 0.3), np.random.default_rng(0)
    drawn = [augmentation.draw(generator) for _ in range(200)]
    assert drawn[0] == augmentation.draw(np.random.default_rng(0))
    assert {change.shift[0] for change in drawn} == set(range(-2, 3))
    factors = np.array([change.factors for change in drawn])
    assert factors.min() < 0.72 and factors.max() > 1.28 and (abs(factors - 1) <= 0.3).all()
    np.testing.assert_array_equal(Change()(CLIP), CLIP)


@pytest.mark.parametrize("values", [{"shift": -1}, {"color_jitter": 1.0}, {"color_jitter": -0.1}])
def test_values_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(values))} is {next(iter(values.values()))}; it must be"):
        Augmentation(**values)
