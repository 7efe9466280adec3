"""Variations change what they say in the real simulator, and nothing else."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from par_agent.errors import UserError
from par_agent.evaluation.object_search import find_object, object_colors
from par_agent.evaluation.protocol import load_states, protocol_file
from par_agent.evaluation.run_config import RunOptions
from par_agent.simulation.environment import TaskEnvironment
from par_agent.simulation.variations import VARIATIONS, hide_what_to_remember
from par_agent.tasks import get_task

SPEC = get_task("PushCube")


def environment(variation: str) -> TaskEnvironment:
    """At the protocol's first initial state; reset twice, as a change must not add up."""
    env = TaskEnvironment(SPEC, "paper", variation=variation)
    for _ in range(2):
        env.reset(load_states(protocol_file(SPEC), SPEC)[:1])
    return env


def image(variation: str) -> np.ndarray:
    env = environment(variation)
    picture = env.render()[0].astype(float)
    env.close()
    return picture


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return image("none")


@pytest.mark.parametrize(("variation", "low", "high"), [("dim", 0.8, 0.9), ("bright", 1.05, 1.2)])
def test_light_changes_brightness(plain: np.ndarray, variation: str, low: float, high: float) -> None:
    assert low < image(variation).mean() / plain.mean() < high


def test_the_camera_sees_the_scene_shifted(plain: np.ndarray) -> None:
    moved = image("camera")
    errors = [np.abs(np.roll(plain, shift, axis=1) - moved)[:, 64:-64].mean() for shift in range(25)]
    assert 4 <= int(np.argmin(errors)) <= 20


def test_another_color_is_seen_on_the_cube_alone(plain: np.ndarray) -> None:
    changed = np.abs(image("color") - plain).max(-1) > 8
    rows, columns = np.nonzero(changed)
    assert 50 < changed.sum() < 2000
    assert np.ptp(rows) < 60 and np.ptp(columns) < 60


def test_the_default_shader_has_a_grey_background_and_shows_the_same_scene(plain: np.ndarray) -> None:
    pixels = image("shader")
    background = plain.max(-1) == 0
    assert background.mean() > 0.1
    grey = pixels[background]
    assert np.median(grey) > 100 and (np.ptp(grey, axis=-1) == 0).mean() > 0.9
    assert np.abs(pixels - plain)[~background].mean() < 2


def test_a_delayed_action_takes_effect_one_step_later() -> None:
    late, prompt = environment("delay"), environment("none")
    start = late.observe(with_frame=False)["agent"]["qpos"]
    actions = torch.cat([start[:, :7] + 0.1, torch.ones(1, 1)], 1)
    late.step(actions)
    held = late.observe(with_frame=False)["agent"]["qpos"]
    torch.testing.assert_close(held[:, :7], start[:, :7], rtol=0, atol=2e-3)
    for env in (late, prompt):
        env.step(actions + 0.1)
    moved = [env.observe(with_frame=False)["agent"]["qpos"][:, 0] - start[:, 0] for env in (late, prompt)]
    assert 0.01 < moved[0] < moved[1]  # one of them goes for 0.1 rad, the other for 0.2
    for env in (late, prompt):
        env.close()


def test_an_unknown_variation_is_refused() -> None:
    with pytest.raises(UserError, match="unknown variation 'fog'; known variations: none, camera"):
        TaskEnvironment(SPEC, "paper", variation="fog")
    assert VARIATIONS["none"].delay == 0


def test_the_command_line_offers_every_variation() -> None:
    assert get_args(get_type_hints(RunOptions)["variation"]) == tuple(VARIATIONS)


@pytest.mark.parametrize(("task", "left"), [("PushCube", 1), ("PickCube", 1), ("StackCube", 0)])
def test_blink_hides_what_is_to_be_remembered_after_the_first_look(task: str, left: int) -> None:
    spec = get_task(task)
    env, states = TaskEnvironment(spec, "paper", variation="blink"), load_states(protocol_file(spec), spec)[:1]

    def visible() -> int:
        return sum(find_object(env.render()[0], color) is not None for color in colors)

    env.reset(states)
    colors, first = object_colors(env, 0), env.render()[0]
    assert len(colors) == visible() == 2
    show_again = hide_what_to_remember(env.simulation)  # as rendering of training data does
    assert visible() == left
    show_again()
    assert np.array_equal(env.render()[0], first)
    hold = torch.cat([env.observe(with_frame=False)["agent"]["qpos"][:, :7], torch.ones(1, 1)], 1)
    env.step(hold)
    assert visible() == left
    env.reset(states)
    assert np.array_equal(env.render()[0], first)
    env.close()


def test_blink_is_refused_where_there_is_nothing_to_hide() -> None:
    env = TaskEnvironment(get_task("LiftPegUpright"), "paper", variation="blink")
    with pytest.raises(UserError, match="neither a goal to hide nor several loose objects"):
        hide_what_to_remember(env.simulation)
    env.close()
