"""Variations change what they say in the real simulator, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from par_agent.errors import UserError
from par_agent.evaluation.object_search import find_object, object_colors
from par_agent.evaluation.protocol import load_states, protocol_file
from par_agent.evaluation.rollout import roll_out
from par_agent.simulation.environment import TaskEnvironment
from par_agent.simulation.episode_variation import EpisodeVariation, parts_for
from par_agent.simulation.textures import give_textures
from par_agent.simulation.variations import VARIATIONS, get_variation, hide_what_to_remember
from par_agent.simulation.world import Draw, World
from par_agent.tasks import get_task
from par_agent.wordings import HELD_OUT_WORDINGS, TRAINING_WORDINGS

SPEC = get_task("PushCube")
STATES = load_states(protocol_file(SPEC), SPEC)


@pytest.fixture(scope="module")
def env() -> Iterator[TaskEnvironment]:
    """A plain environment at the protocol's first initial state."""
    made = TaskEnvironment(SPEC, "paper")
    made.reset(STATES[:1])
    give_textures(World(made.simulation, SPEC), ("MO", "RO"))
    yield made
    made.close()


def image(env: TaskEnvironment) -> np.ndarray:
    return env.render()[0].astype(float)


@pytest.fixture(scope="module")
def plain(env: TaskEnvironment) -> np.ndarray:
    return image(env)


def varied(env: TaskEnvironment, variation: str, number: int = 0) -> np.ndarray:
    """An image of the scene under a variation, which is taken back."""
    world = World(env.simulation, SPEC)
    for part in parts_for(SPEC, variation):
        assert part.change is not None
        part.change(world, Draw(part.name, number, part.strength))
    json.dumps(world.drawn, allow_nan=False)
    assert world.drawn
    picture = image(env)
    world.restore()
    return picture


SHOWN = [name for name, variation in VARIATIONS.items() if variation.change is not None]


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_variation_shows_is_drawn_anew_for_each_number_and_taken_back(
    env: TaskEnvironment, plain: np.ndarray, name: str
) -> None:
    first, second = varied(env, name, 0), varied(env, name, 1)
    assert len({picture.tobytes() for picture in (plain, first, second)}) == 3
    assert np.array_equal(image(env), plain)


def test_the_same_number_shows_the_same_world_and_less_strength_a_closer_one(
    env: TaskEnvironment, plain: np.ndarray
) -> None:
    for name in ("light_intensity", "table_texture"):
        full, weak = varied(env, name), varied(env, f"{name}=0.3")
        assert np.array_equal(varied(env, name), full)
        assert 0 < np.abs(weak - plain).mean() < 0.8 * np.abs(full - plain).mean()


def test_objects_change_their_colour_where_they_are(env: TaskEnvironment, plain: np.ndarray) -> None:
    changed = np.abs(varied(env, "MO_color") - plain).max(-1) > 8
    rows, columns = np.nonzero(changed)
    assert 50 < changed.sum() < 2000
    assert np.ptp(rows) < 60 and np.ptp(columns) < 60


def test_the_background_changes_and_the_table_does_not(env: TaskEnvironment, plain: np.ndarray) -> None:
    black = plain.max(-1) == 0
    pixels = varied(env, "background_color")
    assert black.mean() > 0.1 and np.ptp(pixels[black], axis=0).max() < 3
    wood = (plain[..., 0] - plain[..., 2] > 40) & ~black
    assert wood.mean() > 0.1 and np.abs(pixels - plain)[wood].mean() < 1


def test_distractors_stand_away_from_what_the_task_needs(env: TaskEnvironment) -> None:
    world, part = World(env.simulation, SPEC), VARIATIONS["distractor_object"]
    needed = [actor.pose.p[0, :2].numpy() for role in ("MO", "RO") for actor in world.objects(role)]
    for number in range(8):
        assert part.change is not None
        part.change(world, Draw(part.name, number))
        places = [np.array(world.drawn[f"distractor_object.{index}"][2:]) for index in (0, 1)]
        assert min(float(np.linalg.norm(place - other)) for place in places for other in needed) > 0.09
        assert np.linalg.norm(places[0] - places[1]) > 0.09
        world.restore()
    assert "distractor" not in str(env.simulation.get_state_dict().keys())


def test_the_default_shader_has_a_grey_background_and_shows_the_same_scene(plain: np.ndarray) -> None:
    made = TaskEnvironment(SPEC, "paper", variation="shader")
    made.reset(STATES[:1])
    pixels = image(made)
    made.close()
    background = plain.max(-1) == 0
    grey = pixels[background]
    assert np.median(grey) > 100 and (np.ptp(grey, axis=-1) == 0).mean() > 0.9
    assert np.abs(pixels - plain)[~background].mean() < 2


def opened(variation: str, task: str = "PushCube") -> TaskEnvironment:
    """At the protocol's first initial state; reset twice, as a change must not add up."""
    spec = get_task(task)
    made = TaskEnvironment(spec, "paper", variation=variation)
    for _ in range(2):
        made.reset(load_states(protocol_file(spec), spec)[:1])
    return made


def joints(env: TaskEnvironment) -> torch.Tensor:
    found: torch.Tensor = env.observe(with_frame=False)["agent"]["qpos"]
    return found


def actions(env: TaskEnvironment, offset: float) -> torch.Tensor:
    return torch.cat([joints(env)[:, :7] + offset, torch.ones(1, 1)], 1)


@pytest.mark.parametrize(("variation", "late"), [("action_delay=0.25", 1), ("action_delay=0.5", 2)])
def test_a_delayed_action_takes_effect_later(variation: str, late: int) -> None:
    delayed, prompt = opened(variation), opened("none")
    start = joints(delayed)
    for _ in range(late):
        delayed.step(actions(prompt, 0.1))
        torch.testing.assert_close(joints(delayed)[:, :7], start[:, :7], rtol=0, atol=2e-3)
    first = actions(prompt, 0.1)
    delayed.step(first)
    prompt.step(first)
    torch.testing.assert_close(joints(delayed)[:, :7], joints(prompt)[:, :7], rtol=0, atol=5e-3)
    for env in (delayed, prompt):
        env.close()


def test_latency_lets_time_pass_before_a_planned_chunk_and_at_no_other_step() -> None:
    late, prompt = opened("chunk_latency"), opened("none")
    goal = actions(prompt, 0.1)
    for env in (late, prompt):
        env.step(goal)
    assert torch.equal(joints(late), joints(prompt))
    for env in (late, prompt):
        env.step(goal, planned=True)
    assert (joints(late)[:, 0] - goal[:, 0]).abs() < 0.5 * (joints(prompt)[:, 0] - goal[:, 0]).abs()
    for env in (late, prompt):
        env.close()


def test_sizes_keep_objects_on_the_table_and_success_reachable() -> None:
    env = opened("MO_size", "StackCube")
    base = env.simulation
    half = [actor.get_first_collision_mesh(to_world_frame=False).extents / 2 for actor in (base.cubeA, base.cubeB)]
    assert 0.016 <= half[0][2] <= 0.024 and abs(half[0][2] - 0.02) > 1e-4
    assert half[1] == pytest.approx([0.02] * 3, abs=1e-6)
    assert float(base.cubeA.pose.p[0, 2]) == pytest.approx(half[0][2], abs=1e-5)
    assert float(base.cube_half_size[2]) == pytest.approx((half[0][2] + 0.02) / 2, abs=1e-5)
    env.close()


def test_the_goal_counts_as_reached_in_proportion_to_its_size() -> None:
    env = opened("RO_size=2", "PickCube")
    drawn = Draw("RO_size", STATES[0].env_seed, 2.0).factor(0.2)
    assert env.simulation.goal_thresh == pytest.approx(0.025 * drawn) and drawn != 1
    env.close()


def test_the_robot_starts_elsewhere_with_its_gripper_as_it_was(env: TaskEnvironment) -> None:
    moved = opened("pose_randomization")
    change = (joints(moved) - STATES[0].env_state["articulations"]["panda"][:, 13:22]).abs()
    assert 0.02 < change[:, :7].max() <= 0.1 + 1e-5 and change[:, 7:].max() < 1e-6
    moved.step(actions(moved, 0.0))
    moved.close()


def test_noise_is_the_same_whenever_a_step_is_observed() -> None:
    env = opened("sensor_noise")
    first, second = env.observe(), env.observe()
    images = [found["sensor_data"]["render_camera"]["rgb"] for found in (first, second)]
    assert torch.equal(*images) and torch.equal(first["agent"]["qpos"], second["agent"]["qpos"])
    noise = images[0].float() - torch.from_numpy(env.render()).float()
    assert noise[noise.abs() > 0].std() == pytest.approx(10, rel=0.2)
    env.close()


class Listener:
    """A policy that holds still and notes what it is told."""

    action_size, needs_frame = 8, False

    def __init__(self) -> None:
        self.told: list[Any] = []

    def reset(self, env_idx: Any = None, seed: int | None = None, instruction: Any = None) -> None:
        self.told.append(instruction)

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        return torch.cat([obs["agent"]["qpos"][:, :7], torch.ones(1, 1)], 1)


class Deaf(Listener):
    def reset(self, env_idx: Any = None, seed: int | None = None) -> None:  # type: ignore[override]
        """Takes no instruction."""


def test_other_words_reach_the_policy_and_one_that_takes_none_is_refused() -> None:
    env, policy = TaskEnvironment(SPEC, "paper", variation="language"), Listener()
    for state in STATES[:2]:
        next(roll_out(env, policy, [state], 0))
    assert all(told in [[text] for text in HELD_OUT_WORDINGS["PushCube"]] for told in policy.told)
    with pytest.raises(UserError, match=r"reset\(\) of Deaf has no parameter instruction"):
        env.check(Deaf())
    env.check(policy)
    env.close()


def test_held_out_wordings_are_those_of_no_training_and_no_task() -> None:
    for task, held_out in HELD_OUT_WORDINGS.items():
        training = (*TRAINING_WORDINGS[task], get_task(task).instruction)
        texts = [text.casefold() for text in (*held_out, *training)]
        assert len(set(texts)) == len(texts) == len(held_out) + len(training)
        assert len(held_out) >= 5 and len(TRAINING_WORDINGS[task]) >= 12


def test_all_applies_colosseums_variations_that_the_task_can_have() -> None:
    assert {part.name for part in parts_for(SPEC, "all")} == set(VARIATIONS["all"].parts)
    lacking = {"RO_color", "RO_texture", "RO_size", "MO_size", "language"}
    found = {part.name for part in parts_for(get_task("LiftPegUpright"), "all=0.5")}
    assert found == set(VARIATIONS["all"].parts) - lacking
    assert all(part.strength == 0.5 for part in parts_for(SPEC, "all=0.5"))


def test_all_of_them_run_at_once() -> None:
    env = opened("all", "StackCube")
    env.step(actions(env, 0.0), planned=True)
    assert env.observe()["sensor_data"]["render_camera"]["rgb"].shape == (1, 512, 512, 3)
    env.close()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("fog", "unknown variation 'fog'; known variations: none, camera_pose"),
        ("camera_pose=much", "the strength must be a number from 0 to 10"),
        ("camera_pose=-1", "the strength must be a number from 0 to 10"),
        ("ambient=nan", "the strength must be a number from 0 to 10"),
        ("blink=0.5", "variation blink has no strength"),
    ],
)
def test_what_is_no_variation_is_refused(given: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        get_variation(given)
    assert get_variation("camera_pose=0.50").label == "camera_pose=0.5"


@pytest.mark.parametrize(
    ("task", "variation", "backend", "told"),
    [
        ("LiftPegUpright", "RO_color", "cpu", "its TaskSpec has no receiver_objects"),
        ("PlaceSphere", "MO_size", "cpu", "success with other sizes is known for PushCube-v1"),
        ("PlaceSphere", "language", "cpu", "held-out wordings for PushCube"),
        ("PushCube", "table_color", "gpu", "changes table_color, in which environments that a GPU simulates"),
    ],
)
def test_a_variation_that_a_task_or_a_backend_cannot_have_is_refused(
    task: str, variation: str, backend: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        parts_for(get_task(task), variation, backend)


def test_environments_of_a_batch_draw_what_they_draw_alone() -> None:
    parts = parts_for(SPEC, "pose_randomization", "gpu")
    seeds = [state.env_seed for state in STATES[:3]]
    robot = NineJoints()
    state = {"articulations": {"panda": torch.zeros(3, 13 + 18)}}
    together = EpisodeVariation(parts, robot.base, SPEC, 3)
    together.begin(seeds)
    together.place(state)
    for row, seed in enumerate(seeds):
        alone = EpisodeVariation(parts, robot.base, SPEC, 1)
        alone.begin([seed])
        single = {"articulations": {"panda": torch.zeros(1, 13 + 18)}}
        alone.place(single)
        assert torch.equal(single["articulations"]["panda"][0], state["articulations"]["panda"][row])
    assert state["articulations"]["panda"][:, 13:20].abs().min() > 0


class NineJoints:
    """A robot of nine joints, seven of them the arm's, as :func:`move_joints` reads ManiSkill's."""

    def __init__(self) -> None:
        names = [f"joint{number}" for number in range(9)]
        robot = SimpleNamespace(
            name="panda",
            active_joints=[SimpleNamespace(name=name) for name in names],
            get_qlimits=lambda: torch.tensor([[[-3.0, 3.0]] * 9]),
        )
        self.base = SimpleNamespace(agent=SimpleNamespace(robot=robot, arm_joint_names=names[:7]))


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
