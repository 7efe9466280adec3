"""Policies that read entries of ManiSkill's obs["extra"] beside the joint positions, in tasks with and without them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from par_agent.data.episodes import RenderedDataset, read_episode, write_episode
from par_agent.errors import UserError
from par_agent.policy.observations import proprioception
from par_agent.policy.par_policy import PARPolicy
from par_agent.training.config import FinetuneConfig
from par_agent.training.finetune import finetune
from par_agent.training.start import with_proprioception
from par_agent.utils.files import read_json, write_json
from tiny import JOINTS, tiny_checkpoint, tiny_dataset, tiny_features, tiny_inputs, tiny_model, tiny_run, with_options

pytestmark = pytest.mark.usefixtures("without_pictures")


def tell_goal(folder: Path, *, held: bool = True) -> Path:
    """Makes a dataset one that was rendered with --extra goal_pos, of a task that has a goal or not."""
    spec, summary = read_json(folder / "spec.json"), read_json(folder / "dataset.json")
    write_json(folder / "spec.json", {**spec, "extra": ["goal_pos"]})
    if not held:
        return folder
    write_json(folder / "dataset.json", {**summary, "extra": {"goal_pos": 3}})
    for number, path in enumerate(sorted((folder / "episodes").iterdir())):
        episode = read_episode(path)
        goal = np.full((len(episode.proprioception), 3), 0.1 * number, np.float32)
        write_episode(path, dataclasses.replace(episode, extra={"goal_pos": goal}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> FinetuneConfig:
    """From a policy without extra observations, on two tasks of which one has a goal."""
    config = tiny_run(tmp_path, episodes=8, new_camera=True, batch_size=4)
    other = tell_goal(tiny_dataset(tmp_path / "other"), held=False)
    return with_options(config, data=(tell_goal(config.data[0]), other), steps=2)


def observation(batch: int = 2, **extra: Any) -> dict[str, Any]:
    frames = torch.zeros(batch, 512, 512, 3, dtype=torch.uint8)  # what the data's task shows
    return {
        "agent": {"qpos": torch.zeros(batch, JOINTS)},
        "sensor_data": {"render_camera": {"rgb": frames}},
        "extra": extra,
    }


def test_a_policy_goes_on_with_a_goal_that_one_of_its_tasks_has(run: FinetuneConfig) -> None:
    finetune(run)
    policy = PARPolicy.from_pretrained(run.out / "policy", "push cube 0", context=1)
    assert policy.transforms.extra == (("goal_pos", 3),)
    assert (policy.transforms.proprioception_size, policy.transforms.joint_count) == (JOINTS + 3, JOINTS)
    start = tiny_checkpoint().transforms
    assert start is not None
    assert policy.transforms.proprioception_mean[:JOINTS] == start.proprioception_mean
    assert policy.transforms.action_std == start.action_std

    without = policy.act(observation())
    policy.reset()
    at_zero = policy.act(observation(goal_pos=torch.zeros(2, 3)))
    policy.reset()
    elsewhere = policy.act(observation(goal_pos=torch.ones(2, 3)))
    assert torch.equal(without, at_zero) and not torch.equal(at_zero, elsewhere)


def test_more_proprioception_counts_nothing_at_first() -> None:
    model, inputs, features = tiny_model(), tiny_inputs(2, 1), tiny_features(2)
    wider = with_proprioception(model, JOINTS + 3)
    assert wider.config.action.proprioception_size == JOINTS + 3
    more = dataclasses.replace(inputs, proprioception=torch.cat([inputs.proprioception, torch.ones(2, 1, 3)], -1))
    rows = torch.arange(2)
    with torch.inference_mode():
        before = model.step(model.start(features, 1), inputs, rows)
        after = wider.step(wider.start(features, 1), more, rows)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(old, new)
    with pytest.raises(UserError, match=r"reads 12 numbers of proprioception; that cannot become 9"):
        with_proprioception(wider, JOINTS)


def test_extra_observations_follow_the_joints_whatever_their_shape() -> None:
    transforms = tiny_checkpoint().transforms
    assert transforms is not None
    wider = dataclasses.replace(
        transforms,
        extra=(("goal_pos", 3), ("is_grasped", 1)),
        proprioception_mean=(0.0,) * (JOINTS + 4),
        proprioception_std=(1.0,) * (JOINTS + 4),
    )
    obs = observation(goal_pos=torch.ones(2, 3), is_grasped=torch.tensor([True, False]))
    found = proprioception(obs, wider)
    assert found.dtype == torch.float32 and found[:, JOINTS:].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    single = {"agent": {"qpos": np.zeros(JOINTS, np.float32)}, "extra": {"goal_pos": np.ones(3, np.float32)}}
    assert proprioception(single, wider)[0, JOINTS:].tolist() == [1, 1, 1, 0]
    with pytest.raises(
        UserError, match=r"\['goal_pos'\] is torch.float32 of shape \(2, 7\); expected real .* \(2, 3\)"
    ):
        proprioception(observation(goal_pos=torch.ones(2, 7)), wider)
    for wrong in (float("nan"), 1e9):
        obs["extra"]["goal_pos"][0, 2] = wrong
        with pytest.raises(UserError, match=r"\['goal_pos'\] of environments \[0\] holds NaN, infinity or numbers"):
            proprioception(obs, wider)
    with pytest.raises(UserError, match='has no "extra"'):
        proprioception({"agent": obs["agent"]}, wider)


def test_data_without_what_the_policy_reads_is_refused(run: FinetuneConfig, tmp_path: Path) -> None:
    finetune(with_options(run, steps=1))
    plain = tiny_dataset(tmp_path / "plain")
    again = {"init": run.out / "policy", "out": tmp_path / "again", "new_camera": False}
    with pytest.raises(UserError, match=r"rendered without goal_pos.*render it again with --extra goal_pos"):
        finetune(with_options(run, data=(plain,), **again))
    with pytest.raises(UserError, match=r"differ in extra observations .*plain: none"):
        finetune(with_options(run, data=(run.data[0], plain), out=tmp_path / "mixed"))


def test_another_camera_is_taken_only_when_told(run: FinetuneConfig, tmp_path: Path) -> None:
    tiny_checkpoint("base_camera").save(tmp_path / "other-camera")
    config = with_options(run, init=tmp_path / "other-camera")
    with pytest.raises(UserError, match=r"sees through base_camera; give --new-camera"):
        finetune(with_options(config, new_camera=False))
    finetune(config)
    transforms = PARPolicy.from_pretrained(run.out / "policy", "push cube 0").transforms
    assert transforms.camera == "render_camera"


def test_rows_of_another_length_are_damage(tmp_path: Path) -> None:
    path = RenderedDataset(tell_goal(tiny_dataset(tmp_path / "data"))).paths[0]
    episode = read_episode(path)
    write_episode(path, dataclasses.replace(episode, extra={"goal_pos": episode.extra["goal_pos"][1:]}))
    with pytest.raises(UserError, match=r"5 rows of goal_pos and 6 joint positions"):
        read_episode(path)
