"""A policy reads ManiSkill's observations in whatever wrappers they come, and loops over them as ManiSkill's do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from mani_skill.utils.wrappers import CPUGymWrapper, FlattenRGBDObservationWrapper
from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

import par_agent.envs
from par_agent import PARPolicy, make_env
from par_agent.errors import UserError
from par_agent.simulation.environment import make_simulation
from par_agent.tasks import TASKS
from test_make_env import NATIVE, tiny_policy
from tiny import task_checkpoint

SMALL = {"sensor_configs": {"shader_pack": "minimal", "width": 128, "height": 128}}


def test_flattened_observations_are_read_as_the_others() -> None:
    policy = PARPolicy.from_pretrained("par-mini-native")
    plain = make_simulation(TASKS["PickCube"], obs_mode="rgb+depth", **SMALL)
    try:
        obs, _ = plain.reset(seed=1)
        policy.check(plain)
        assert policy.instruction == TASKS["PickCube"].instruction
        expected = policy.get_action(obs)
        for separate in (True, False):
            env = FlattenRGBDObservationWrapper(plain, sep_depth=separate)
            flat, _ = env.reset(seed=1)
            assert set(flat) == ({"state", "rgb", "depth"} if separate else {"state", "rgbd"})
            policy.reset()
            policy.check(plain)
            with pytest.raises(
                UserError, match=r"observation is flattened .it has .state..: call policy.check.env. once"
            ):
                policy.act(flat)
            policy.check(env)
            torch.testing.assert_close(policy.get_action(flat), expected)
            unbatched, _ = CPUGymWrapper(env).reset(seed=1)
            policy.reset()
            torch.testing.assert_close(policy.get_action(unbatched), expected)
            plain.unwrapped.update_obs_space(plain.unwrapped.get_obs())
    finally:
        plain.close()


def test_of_several_cameras_a_policy_reads_its_own() -> None:
    policy = PARPolicy.from_pretrained("par-mini-native", n_action_steps=2, past_actions=False)
    plain = make_simulation(TASKS["StackCube"], obs_mode="rgb", **SMALL)
    try:
        obs, _ = plain.reset(seed=1)
        assert list(obs["sensor_data"]) == ["base_camera", "hand_camera"]
        policy.check(plain)
        expected = policy.get_action(obs)
        env = FlattenRGBDObservationWrapper(plain)
        policy.check(env)
        policy.reset()
        flat, _ = env.reset(seed=1)
        assert flat["rgb"].shape == (1, 128, 128, 6)
        torch.testing.assert_close(policy.get_action(flat), expected)
    finally:
        plain.close()


@pytest.mark.parametrize("track", ["paper", "native"])
def test_gymnasiums_vector_environments_are_acted_in(track: Any) -> None:
    policy = tiny_policy(**({} if track == "paper" else NATIVE))
    env = gym.vector.SyncVectorEnv([lambda: CPUGymWrapper(make_env("PushCube", policy, max_episode_steps=6))] * 2)
    try:
        policy.check(env)
        obs, _ = env.reset(seed=[3, 4])
        for _ in range(5):
            action = policy.act(obs)
            assert action.shape == (2, 8)
            obs, reward, terminated, truncated, _ = env.step(action)
        assert reward.shape == (2,) and not truncated.any() and not terminated.any()
    finally:
        env.close()


def test_every_row_of_a_vector_environment_follows_its_own_task() -> None:
    tasks = ("PushCube", "PickCube")
    agent = PARPolicy(task_checkpoint())
    env = gym.vector.SyncVectorEnv([lambda task=task: CPUGymWrapper(make_env(task, agent)) for task in tasks])
    try:
        agent.check(env)
        assert agent.instruction == tuple(TASKS[task].instruction for task in tasks)
        obs, _ = env.reset(seed=[3, 4])
        chunk = agent.get_action(obs)
        assert torch.equal(chunk, PARPolicy(task_checkpoint(), task=tasks).get_action(obs))
        env.step(chunk[:, 0])
    finally:
        env.close()


def test_maniskills_own_loop_over_flattened_observations_tells_its_measurements() -> None:
    policy = tiny_policy(**NATIVE)
    env = FlattenRGBDObservationWrapper(
        make_simulation(TASKS["PushCube"], obs_mode="rgb", reconfiguration_freq=1, max_episode_steps=4, **SMALL)
    )
    env = ManiSkillVectorEnv(env, ignore_terminations=True, record_metrics=True)
    try:
        policy.check(env)
        obs, _ = env.reset(seed=3)
        for action in policy.get_action(obs).unbind(1):
            obs, _, _, truncated, info = env.step(action)
        assert truncated.all() and {"success_once", "success_at_end", "return"} <= set(info["final_info"]["episode"])
    finally:
        env.close()


def test_environments_for_evaluation_follow_maniskills_conventions() -> None:
    policy = tiny_policy()
    env = make_env("PushCube", policy, evaluation=True, max_episode_steps=4)
    try:
        assert env.base_env.reconfiguration_freq == 1
        obs, _ = env.reset(seed=3)
        for action in policy.get_action(obs).unbind(1):
            obs, _, terminated, truncated, info = env.step(action)
            assert not terminated.any()
        assert truncated.all()
        episode = info["final_info"]["episode"]
        assert {"success_once", "success_at_end", "return"} <= set(episode) and episode["episode_len"].tolist() == [4]
        policy.reset(env_idx=truncated)
        assert policy.get_action(obs).shape == (1, 4, 8)
    finally:
        env.close()


@pytest.mark.parametrize("track", ["paper", "native"])
def test_a_track_is_enough_to_make_an_environment_for_a_bundled_policy(track: Any) -> None:
    policy = PARPolicy.from_pretrained(par_agent.tasks.BUNDLED[track], task="PickCube")
    env = gym.make("par_agent/PickCube-v1", track=track)
    try:
        policy.check(env)
        obs, _ = env.reset(seed=0)
        assert policy.act(obs).shape == (1, 8)
    finally:
        env.close()


def test_the_pages_environment_of_ones_own_runs_as_pasted() -> None:
    from test_docs import ROOT

    text = (ROOT / "docs" / "how-to" / "act.md").read_text().split("## In an environment of your own\n")[1]
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["chunk"].shape == (1, 8, 8)
    names["env"].close()
