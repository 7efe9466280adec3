"""The benchmark's environments and initial states in the real simulator."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from par_agent.errors import UserError
from par_agent.evaluation.initial_states import make_states
from par_agent.evaluation.protocol import load_states, protocol_file, protocol_seeds, save_states
from par_agent.simulation.environment import InitialState, TaskEnvironment, make_simulation
from par_agent.simulation.observation_wrapper import RenderCameraObservation
from par_agent.tasks import PAPER_TASKS, TASKS, TaskSpec, get_task

OTHER_TASKS = [name for name in TASKS if name not in PAPER_TASKS]


def flatten(state: InitialState) -> dict[str, torch.Tensor]:
    return {f"{kind}/{name}": t for kind, group in state.env_state.items() for name, t in group.items()}


def assert_reset_gives_stored_states(task: str, count: int) -> None:
    spec = get_task(task)
    try:
        env = make_simulation(spec)
    except UserError as error:
        pytest.skip(str(error))
    stored = load_states(protocol_file(spec), spec)
    assert [state.env_seed for state in stored] == list(protocol_seeds())
    for state in stored[:count]:
        env.reset(seed=state.env_seed)
        found = InitialState(state.index, state.env_seed, env.unwrapped.get_state_dict())
        expected = flatten(state)
        assert flatten(found).keys() == expected.keys()
        for name, tensor in flatten(found).items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=f"{name} of state {state.index}")
    env.close()


@pytest.mark.parametrize("task", PAPER_TASKS)
def test_resetting_with_the_protocols_seeds_gives_the_stored_states(task: str) -> None:
    assert_reset_gives_stored_states(task, 25)


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_other_tasks_have_stored_states_too(task: str) -> None:
    assert_reset_gives_stored_states(task, 2)


@pytest.mark.slow
@pytest.mark.parametrize("task", OTHER_TASKS)
def test_resetting_other_tasks_with_the_protocols_seeds_gives_the_stored_states(task: str) -> None:
    assert_reset_gives_stored_states(task, 25)


@pytest.mark.slow
@pytest.mark.parametrize("track", ["paper", "native"])
@pytest.mark.parametrize("task", TASKS)
def test_every_registered_task_is_what_its_spec_says(task: str, track: str) -> None:
    spec = get_task(task)
    try:
        env = TaskEnvironment(spec, track)
    except UserError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise
    env.reset(load_states(protocol_file(spec), spec)[:1])
    observation = env.observe()
    assert observation["agent"]["qpos"].shape == (1, spec.joint_count)
    if track == "paper":
        assert observation["sensor_data"][spec.camera]["rgb"].shape == (1, *spec.image_size, 3)
    env.close()


def test_states_survive_saving_and_loading_exactly(tmp_path: Path) -> None:
    spec = get_task("PickCube")
    states = make_states(spec, [5, 6, 7])
    save_states(tmp_path / "states.safetensors", spec, states)
    for made, loaded in zip(states, load_states(tmp_path / "states.safetensors", spec), strict=True):
        assert (made.index, made.env_seed) == (loaded.index, loaded.env_seed)
        assert all(torch.equal(tensor, flatten(loaded)[name]) for name, tensor in flatten(made).items())


def test_states_of_another_task_are_refused() -> None:
    with pytest.raises(UserError, match=r"holds states of 'PushCube-v1', not of 'PickCube-v1'"):
        load_states(protocol_file(get_task("PushCube")), get_task("PickCube"))


def test_native_images_on_demand_equal_maniskills_own() -> None:
    import gymnasium as gym

    spec = get_task("PickCube")  # its goal is hidden from sensor cameras and shown in the render camera
    state = load_states(protocol_file(spec), spec)[3]
    env = TaskEnvironment(spec, "native")
    env.reset([state])
    plain = gym.make(
        spec.env_id,
        obs_mode="rgb",
        control_mode=spec.control_mode,
        render_mode="rgb_array",
        sim_backend="physx_cpu",
        render_backend="cpu",
        sensor_configs={"shader_pack": "minimal"},
        human_render_camera_configs={"shader_pack": "minimal"},
    )
    theirs, _ = plain.reset(seed=state.env_seed, options={"reset_to_env_states": {"env_states": state.env_state}})
    action = torch.cat([theirs["agent"]["qpos"][:, :7] + 0.05, torch.ones(1, 1)], dim=1)
    for _ in range(3):
        env.render()  # shows the goal, which must be hidden again
        ours = env.observe()
        assert ours.keys() == theirs.keys()
        assert torch.equal(ours["sensor_data"]["base_camera"]["rgb"], theirs["sensor_data"]["base_camera"]["rgb"])
        assert torch.equal(ours["agent"]["qpos"], theirs["agent"]["qpos"])
        assert torch.equal(ours["extra"]["goal_pos"], theirs["extra"]["goal_pos"])
        without_frame = env.observe(with_frame=False)
        assert torch.equal(without_frame["extra"]["goal_pos"], theirs["extra"]["goal_pos"])
        assert "sensor_data" not in without_frame
        env.step(action)
        theirs, *_ = plain.step(action)
    env.close()
    plain.close()


def test_a_rollout_does_not_depend_on_what_the_environment_did_before() -> None:
    spec = get_task("PushCube")
    states = load_states(protocol_file(spec), spec)
    env = TaskEnvironment(spec, "paper")

    def sweep(state: InitialState) -> tuple[np.ndarray, torch.Tensor, list[Any]]:
        env.reset([state])
        start = env.observe(with_frame=False)["agent"]["qpos"][:, :7]
        down_and_forward = torch.tensor([[0.0, 0.7, 0.0, 0.3, 0.0, 0.0, 0.0]])
        rewards = []
        for step in range(60):
            target = start + down_and_forward * min(1.0, step / 40)
            rewards.append(env.step(torch.cat([target, -torch.ones(1, 1)], dim=1)).reward)
        return env.render(), env.observe(with_frame=False)["agent"]["qpos"], rewards

    first = sweep(states[0])
    sweep(states[1])
    again = sweep(states[0])
    assert np.array_equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[2] == again[2]
    env.close()


def test_the_wrapper_gives_the_paper_tracks_observation_in_a_plain_loop() -> None:
    spec = get_task("PushCube")
    simulation = make_simulation(spec)
    policy = SimpleNamespace(needs_frame=True)
    env = RenderCameraObservation(simulation, policy)
    observation, _ = env.reset(seed=1)
    assert torch.equal(observation["sensor_data"]["render_camera"]["rgb"], simulation.render())
    assert observation["sensor_data"]["render_camera"]["rgb"].shape == (1, 512, 512, 3)
    action = torch.cat([observation["agent"]["qpos"][:, :7], torch.ones(1, 1)], dim=1)
    observation, *_ = env.step(action)
    assert torch.equal(observation["sensor_data"]["render_camera"]["rgb"], simulation.render())
    policy.needs_frame = False
    shown = observation["sensor_data"]["render_camera"]["rgb"]
    observation, *_ = env.step(action)
    assert observation["sensor_data"]["render_camera"]["rgb"] is shown
    assert observation["sensor_data"]["render_camera"]["age"].tolist() == [1]
    with pytest.raises(UserError, match="no render camera 'front'"):
        RenderCameraObservation(simulation, camera="front")
    env.close()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TaskSpec("PushCube-v1", "Push.", action_size=7), r"declares action size \(7,\), but PushCube-v1 has \(8,\)"),
        (TaskSpec("PushCube-v1", "Push.", camera="front"), "no render camera 'front'; it has: render_camera"),
        (TaskSpec("PushCube-v1", "Push.", image_size=(256, 256)), r"declares image size of render_camera \(256, 256\)"),
        (TaskSpec("PushCub-v1", "Push."), "'PushCub-v1' is not registered"),
        (TaskSpec("PushCube-v1", "Push.", control_mode="pd_joint"), "cannot be made as the task says"),
    ],
)
def test_an_environment_that_is_not_what_the_task_says_is_refused(spec: TaskSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TaskEnvironment(spec, "paper")
