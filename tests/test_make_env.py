"""Environments that fit a policy are made, and others are refused before the first action."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

import par_agent
from par_agent import PARPolicy
from par_agent.errors import UserError
from par_agent.simulation.environment import make_simulation
from par_agent.simulation.observation_wrapper import RenderCameraObservation
from par_agent.tasks import get_task
from tiny import task_checkpoint

PUSH = get_task("PushCube")


def tiny_policy(**conventions: Any) -> PARPolicy:
    """A policy for PushCube with random weights and some other conventions."""
    checkpoint = task_checkpoint()
    assert checkpoint.transforms is not None
    return PARPolicy(
        dataclasses.replace(checkpoint, transforms=dataclasses.replace(checkpoint.transforms, **conventions)), "push"
    )


NATIVE = {"camera": "base_camera", "image_size": (128, 128)}


@pytest.fixture
def closing() -> Iterator[list[gym.Env]]:
    made: list[gym.Env] = []
    yield made
    for env in made:
        env.close()


@pytest.fixture(scope="module")
def simulation() -> Iterator[gym.Env]:
    """PushCube as its task says, with images of its sensor camera."""
    env = make_simulation(PUSH, obs_mode="rgb")
    yield env
    env.close()


def test_the_readmes_example_solves_its_task_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = text.split("## Use it\n")[1].split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert bool(names["info"]["success"]), names["info"]


@pytest.mark.parametrize("conventions", [{}, NATIVE, {"camera": "base_camera", "image_size": (64, 96)}])
def test_an_environment_is_made_with_what_the_policy_needs(conventions: dict[str, Any], closing: list[gym.Env]) -> None:
    policy = tiny_policy(**conventions)
    env = par_agent.make_env("PushCube-v1", policy, max_episode_steps=7)
    closing.append(env)
    policy.check(env)
    assert env.unwrapped.control_mode == "pd_joint_pos"
    observation, _ = env.reset(seed=3)
    image = observation["sensor_data"][policy.transforms.camera]["rgb"]
    assert image.shape == (1, *policy.transforms.image_size, 3)
    truncated = torch.tensor([False])
    for step in range(7):
        assert not truncated.any(), step
        observation, _, _, truncated, _ = env.step(policy.act(observation))
    assert truncated.all()


def test_the_environment_gets_the_policys_controller(closing: list[gym.Env]) -> None:
    policy = tiny_policy(control_mode="pd_joint_delta_pos", relative=(False,) * 8)
    env = par_agent.make_env(PUSH, policy)
    closing.append(env)
    assert env.unwrapped.control_mode == "pd_joint_delta_pos"


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(UserError, match=r"task NoSuchTask: environment 'NoSuchTask-v1' is not registered"):
        par_agent.make_env("NoSuchTask-v1", tiny_policy())
    with pytest.raises(UserError, match=r"make_env needs a policy .*, or a track .paper or native.; got 'par-mini'"):
        par_agent.make_env("PushCube", "par-mini")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'hand_camera'; PushCube-v1 has the cameras render_camera, base_camera"):
        par_agent.make_env("PushCube", tiny_policy(camera="hand_camera"))
    with pytest.raises(UserError, match="num_envs is 2; it must be 1, or more with backend='gpu'"):
        par_agent.make_env("PushCube", tiny_policy(), num_envs=2)
    with pytest.raises(UserError, match="trained on 512x512 images of render_camera; PushCube-v1 has 256x256"):
        sizes = {"shader_pack": "minimal", "width": 256, "height": 256}
        par_agent.make_env("PushCube", tiny_policy(), human_render_camera_configs=sizes)


@pytest.mark.parametrize(
    ("conventions", "message"),
    [
        ({"image_size": (256, 256)}, "trained on 256x256 images of render_camera; PushCube-v1 has 512x512"),
        ({**NATIVE, "image_size": (256, 256)}, "trained on 256x256 images of base_camera; PushCube-v1 has 128x128"),
        ({"control_mode": "pd_ee_pose"}, "commands pd_ee_pose; PushCube-v1 takes pd_joint_pos: give its environment"),
        ({"relative": (True,) * 7}, "gives 7 numbers per action; PushCube-v1 takes 8"),
        ({"camera": "hand_camera"}, "through 'hand_camera'; PushCube-v1 has the cameras render_camera, base_camera"),
        (
            {"proprioception_mean": (0.0,) * 7, "proprioception_std": (1.0,) * 7},
            "reads 7 joint positions; the robot of",
        ),
    ],
)
def test_a_policy_of_other_conventions_than_the_environments_is_refused(
    conventions: dict[str, Any], message: str, simulation: gym.Env
) -> None:
    if "relative" in conventions:
        conventions |= {"action_mean": ((0.0,) * 7,) * 4, "action_std": ((1.0,) * 7,) * 4}
    transforms = tiny_policy().transforms
    policy = object.__new__(PARPolicy)
    policy.transforms = dataclasses.replace(transforms, **conventions)
    with pytest.raises(UserError, match=message):
        policy.check(simulation)
    if policy.transforms.camera == "render_camera":
        with pytest.raises(UserError, match=message):
            RenderCameraObservation(simulation, policy)


def test_maniskills_default_controller_is_refused(closing: list[gym.Env]) -> None:
    env = make_simulation(PUSH, control_mode=None)
    closing.append(env)
    for wrap in (tiny_policy().check, lambda env: RenderCameraObservation(env, tiny_policy())):
        with pytest.raises(UserError, match=r"commands pd_joint_pos; PushCube-v1 takes pd_joint_delta_pos: give its"):
            wrap(env)
    with pytest.raises(UserError, match=r"base_camera.* observes no images .obs_mode 'none'.: make it with obs_mode="):
        tiny_policy(**NATIVE).check(env)


def test_the_wrapper_refuses_a_policy_that_sees_through_another_camera(simulation: gym.Env) -> None:
    tiny_policy(**NATIVE).check(simulation)
    with pytest.raises(UserError, match="sees through 'base_camera'; only 'render_camera' is shown here"):
        RenderCameraObservation(simulation, tiny_policy(**NATIVE))
    with pytest.raises(UserError, match="expected a ManiSkill environment of one robot, got CartPoleEnv"):
        tiny_policy().check(gym.make("CartPole-v1"))


def test_images_of_another_size_never_reach_the_bundled_native_policy() -> None:
    policy = PARPolicy.from_pretrained("par-mini-native", task="PickCube")
    assert policy.transforms.image_size == (128, 128)
    images = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    obs = {"agent": {"qpos": torch.zeros(1, 9)}, "sensor_data": {"base_camera": {"rgb": images}}, "extra": {}}
    with pytest.raises(UserError, match="gives images of 256x256 pixels; this checkpoint was trained with 128x128"):
        policy.act(obs)


def test_a_checkpoint_that_does_not_say_its_image_size_warns() -> None:
    with pytest.warns(UserWarning, match="does not say how large the images of render_camera were"):
        tiny_policy(image_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_policy()
        PARPolicy.from_pretrained("par-mini")
        PARPolicy.from_pretrained("par-mini-native")


def test_a_frame_that_was_not_rendered_is_not_taken_for_a_new_one(closing: list[gym.Env]) -> None:
    policy = tiny_policy()
    env = par_agent.make_env(PUSH, policy)
    closing.append(env)
    first, _ = env.reset(seed=1)
    ages, images = [0], [first["sensor_data"]["render_camera"]["rgb"]]
    observation = first
    for _ in range(policy.n_action_steps):
        observation, *_ = env.step(policy.act(observation))
        ages.append(int(observation["sensor_data"]["render_camera"]["age"]))
        images.append(observation["sensor_data"]["render_camera"]["rgb"])
    assert ages == [0, 1, 2, 3, 0]
    assert torch.equal(images[3], images[0]) and torch.equal(images[4], env.unwrapped.render())
    observation, *_ = env.step(policy.act(observation))
    policy.reset()
    with pytest.raises(UserError, match="the image of render_camera is 1 control steps old"):
        policy.act(observation)
    policy.act(env.reset(seed=1)[0])


def test_maniskills_recorder_records_trajectories_around_the_wrapper(tmp_path: Path, closing: list[gym.Env]) -> None:
    from mani_skill.utils.wrappers import RecordEpisode

    policy = tiny_policy()
    inner = par_agent.make_env(PUSH, policy)
    env = RecordEpisode(inner, str(tmp_path), save_trajectory=True, save_video=False, trajectory_name="recorded")
    closing.append(env)
    observation, _ = env.reset(seed=2)
    for _ in range(6):
        observation, *_ = env.step(policy.act(observation))
    env.flush_trajectory()
    with h5py.File(tmp_path / "recorded.h5") as file:
        shown = file["traj_0/obs/sensor_data/render_camera"]
        assert shown["rgb"].shape == (7, 512, 512, 3) and len(file["traj_0/actions"]) == 6
        assert np.asarray(shown["age"]).reshape(-1).tolist() == [0, 1, 2, 3, 0, 1, 2]
        assert (shown["rgb"][1] == shown["rgb"][0]).all()
    assert inner.observation_space["sensor_data"]["render_camera"]["age"].dtype == np.int32


def test_without_a_policy_every_step_is_rendered(closing: list[gym.Env]) -> None:
    env = RenderCameraObservation(make_simulation(PUSH), SimpleNamespace())
    closing.append(env)
    observation, _ = env.reset(seed=1)
    action = torch.cat([observation["agent"]["qpos"][:, :7], torch.ones(1, 1)], dim=1)
    for _ in range(2):
        observation, *_ = env.step(action)
        assert int(observation["sensor_data"]["render_camera"]["age"]) == 0
