"""PARPolicy: planning, state per row, determinism, loading and saving, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from par_agent import PARPolicy
from par_agent.errors import UserError
from par_agent.policy.interface import check_policy
from par_agent.tasks import TaskSpec
from tiny import JOINTS, LENGTH, SIZE, tiny_checkpoint


def observation(batch: int, step: int = 0, frame: bool = True, camera: str = "render_camera") -> dict[str, Any]:
    """A ManiSkill observation; what row ``r`` shows at ``step`` does not depend on the batch."""
    rows = [torch.Generator().manual_seed(100 * row + step) for row in range(batch)]
    obs: dict[str, Any] = {"agent": {"qpos": torch.stack([torch.rand(JOINTS, generator=g) for g in rows])}}
    if frame:
        images = [torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8, generator=g) for g in rows]
        obs["sensor_data"] = {camera: {"rgb": torch.stack(images)}}
    return obs


def policy(**inference: Any) -> PARPolicy:
    return PARPolicy(tiny_checkpoint(), "push the cube", **inference)


def roll(agent: PARPolicy, batch: int, steps: int, first: int = 0) -> torch.Tensor:
    return torch.stack([agent.act(observation(batch, first + step)) for step in range(steps)])


def test_actions_have_the_controllers_shape_and_chunks_are_executed() -> None:
    agent = policy(n_action_steps=3)
    needed = []
    for step in range(7):
        needed.append(agent.needs_frame)
        action = agent.act(observation(2, step, frame=agent.needs_frame))
        assert action.shape == (2, SIZE) and action.dtype == torch.float32 and action.isfinite().all()
    assert needed == [True, False, False, True, False, False, True]


def test_arm_moves_relative_to_the_measured_joints() -> None:
    agent = policy()
    obs = observation(1)
    moved = {**obs, "agent": {"qpos": obs["agent"]["qpos"] + 0.0}}
    action = agent.act(obs)
    transforms = agent.checkpoint.transforms
    chunk = agent._state.chunk
    expected = transforms.denormalise_actions(chunk, moved["agent"]["qpos"])[:, 0]
    torch.testing.assert_close(action, expected)
    back = transforms.normalise_actions(
        transforms.denormalise_actions(chunk, obs["agent"]["qpos"]), obs["agent"]["qpos"]
    )
    torch.testing.assert_close(back, chunk, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inference", [{}, {"context": 3, "past_actions": True}, {"random_start": True}])
def test_same_seed_same_rollout_and_rows_alone(inference: dict[str, Any]) -> None:
    agent = policy(**inference)
    agent.reset(seed=5)
    first = roll(agent, 2, 2 * LENGTH)
    agent.reset(seed=5)
    torch.testing.assert_close(roll(agent, 2, 2 * LENGTH), first, rtol=0, atol=0)
    agent.reset(seed=5)
    torch.testing.assert_close(roll(agent, 1, 2 * LENGTH)[:, 0], first[:, 0], rtol=0, atol=1e-4)
    agent.reset(seed=6)
    changed = not torch.allclose(roll(agent, 2, 2 * LENGTH), first)
    assert changed == bool(inference.get("random_start"))


def test_without_a_new_seed_random_episodes_differ() -> None:
    agent = policy(random_start=True)
    agent.reset(seed=5)
    first = roll(agent, 2, LENGTH)
    agent.reset()
    second = roll(agent, 2, LENGTH)
    assert not torch.allclose(first, second)
    agent.reset(seed=5)
    roll(agent, 2, LENGTH)
    agent.reset()
    assert torch.equal(roll(agent, 2, LENGTH), second), "the first seed decides them all"


def test_context_and_past_actions_matter() -> None:
    plain, remembering = policy(), policy(context=3, past_actions=True)
    a, b = roll(plain, 1, 2 * LENGTH), roll(remembering, 1, 2 * LENGTH)
    torch.testing.assert_close(a[:LENGTH], b[:LENGTH])
    assert not torch.allclose(a[LENGTH:], b[LENGTH:])


@pytest.mark.parametrize("mask", [False, True])
def test_rows_are_reset_alone(mask: bool) -> None:
    agent = policy(context=3, past_actions=True)
    roll(agent, 2, LENGTH + 2)
    agent.reset(env_idx=torch.tensor([False, True]) if mask else [1])
    assert agent.needs_frame
    mixed = roll(agent, 2, LENGTH, first=LENGTH + 2)
    agent.reset()
    whole = roll(agent, 2, 2 * LENGTH + 2)
    torch.testing.assert_close(mixed[:, 0], whole[LENGTH + 2 :, 0], rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"env_idx \[2\] names rows that do not exist; there are 2"):
        agent.reset(env_idx=2)
    with pytest.raises(
        UserError, match=r"env_idx is a mask of shape \(3,\); expected one bool per environment; there are 2"
    ):
        agent.reset(env_idx=[True, False, False])


def test_unbatched_numpy_observations() -> None:
    obs = observation(1)
    plain = {
        "agent": {"qpos": obs["agent"]["qpos"][0].numpy()},
        "sensor_data": {"render_camera": {"rgb": obs["sensor_data"]["render_camera"]["rgb"][0].numpy()}},
    }
    torch.testing.assert_close(policy().act(plain), policy().act(obs))


def test_saved_and_loaded_policies_act_alike(tmp_path: Path) -> None:
    agent = policy(n_action_steps=2)
    agent.save_pretrained(tmp_path / "saved")
    loaded = PARPolicy.from_pretrained(tmp_path / "saved", "push the cube")
    assert loaded.inference == agent.inference
    torch.testing.assert_close(roll(loaded, 2, LENGTH), roll(agent, 2, LENGTH), rtol=0, atol=0)
    half = tmp_path / "half"
    agent.save_pretrained(half, dtype=torch.float16)
    assert (half / "model.safetensors").stat().st_size < 0.6 * (tmp_path / "saved/model.safetensors").stat().st_size
    close = PARPolicy.from_pretrained(half, "push the cube")
    agent.reset()
    torch.testing.assert_close(roll(close, 1, 2), roll(agent, 1, 2), rtol=0.05, atol=0.05)


def damaged(folder: Path, what: str) -> None:
    content = json.loads((folder / "policy.json").read_text())
    if what == "truncated weights":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    elif what == "missing statistics":
        del content["transforms"]["action_mean"]
    elif what == "no transforms":
        del content["transforms"]
    elif what == "no policy.json":
        (folder / "policy.json").unlink()
        return
    elif what == "another chunk length":
        for name in ("action_mean", "action_std"):
            content["transforms"][name] = content["transforms"][name][:2]
    (folder / "policy.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated weights", "not a complete safetensors file"),
        ("missing statistics", "missing fields in Transforms: action_mean"),
        ("no transforms", "lacks 'transforms'"),
        ("no policy.json", "not a policy checkpoint"),
        ("another chunk length", "number of actions predicted is 4, its transforms' 2"),
    ],
)
def test_damaged_checkpoints_are_named(tmp_path: Path, what: str, message: str) -> None:
    policy().save_pretrained(tmp_path)
    damaged(tmp_path, what)
    with pytest.raises(UserError, match=message):
        PARPolicy.from_pretrained(tmp_path)


def bad(change: str) -> dict[str, Any]:
    obs = observation(2)
    image = obs["sensor_data"]["render_camera"]["rgb"]
    match change:
        case "no camera":
            obs["sensor_data"] = {"base_camera": {"rgb": image}}
        case "no agent":
            del obs["agent"]
        case "image size":
            obs["sensor_data"]["render_camera"]["rgb"] = image[:, :20]
        case "image dtype":
            obs["sensor_data"]["render_camera"]["rgb"] = image.float()
        case "joints":
            obs["agent"]["qpos"] = obs["agent"]["qpos"][:, :7]
        case "rows":
            obs["sensor_data"]["render_camera"]["rgb"] = image[:1]
        case "state vector":
            return torch.zeros(2, 31)  # type: ignore[return-value]
    return obs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no camera", r"has no \"render_camera\" \(it holds: base_camera\); make the environment with par_agent"),
        ("no agent", r'has no "agent" .* make the environment with obs_mode="rgb"'),
        ("image size", "images of 20x32 pixels; this checkpoint was trained with 24x32"),
        ("image dtype", r"torch.float32 of shape \(2, 24, 32, 3\); expected torch.uint8"),
        ("joints", r"shape \(2, 7\); expected \(num_envs, 9\)"),
        ("rows", r"expected torch.uint8 of shape \(2, height, width, 3\)"),
        ("state vector", "it holds: Tensor"),
    ],
)
def test_bad_observations_are_explained(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        policy().act(bad(change))


def test_number_of_environments_may_change_only_at_a_reset() -> None:
    agent = policy()
    agent.act(observation(2))
    with pytest.raises(UserError, match="has 3 environments, the last one had 2"):
        agent.act(observation(3))
    agent.reset()
    assert agent.act(observation(3)).shape == (3, SIZE)


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="does not know the option 'contxt'; it knows context"):
        policy(contxt=2)
    with pytest.raises(UserError, match="n_action_steps is 9; this checkpoint plans chunks of 4"):
        policy(n_action_steps=9)
    with pytest.raises(UserError, match="n_action_steps is 2 and past_actions is on"):
        policy(n_action_steps=2, past_actions=True)
    assert policy(n_action_steps=LENGTH, past_actions=True).n_action_steps == LENGTH
    with pytest.raises(UserError, match="past_actions is 'False'; expected true or false"):
        policy(past_actions="False")
    with pytest.raises(UserError, match="context is 'all'; expected a whole number"):
        policy(context="all")
    with pytest.raises(UserError, match="context is 0"):
        policy(context=0)
    with pytest.raises(UserError, match="context is 17; this checkpoint was trained on 16 physical tokens at most"):
        policy(context=17)
    with pytest.raises(UserError, match="no checkpoint 'par-giant'"):
        PARPolicy.from_pretrained("par-giant")
    with pytest.raises(UserError, match="holds no words"):
        PARPolicy(tiny_checkpoint(), "…")


def test_fits_its_task() -> None:
    check_policy(policy(), TaskSpec("PushCube-v1", "push", image_size=(24, 32)), "paper")
    with pytest.raises(UserError, match="trained on 24x32 images of render_camera; task PushCube has 512x512"):
        check_policy(policy(), TaskSpec("PushCube-v1", "push"), "paper")
    with pytest.raises(UserError, match="reads 9 joint positions"):
        check_policy(policy(), TaskSpec("PushCube-v1", "push", image_size=(24, 32), joint_count=7), "paper")
    other = PARPolicy(tiny_checkpoint("wrist_camera"), "push")
    with pytest.raises(
        UserError, match="sees through 'wrist_camera'; task PushCube shows render_camera on the paper track"
    ):
        check_policy(other, TaskSpec("PushCube-v1", "push"), "paper")


def test_acts_on_numpy_scalars_of_cpu_gym_wrapper() -> None:
    obs = observation(1, frame=False)
    obs["sensor_data"] = {"render_camera": {"rgb": np.zeros((24, 32, 3), np.uint8)}}
    obs["agent"]["qpos"] = obs["agent"]["qpos"][0].numpy().astype(np.float64)
    assert policy().act(obs).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_plans_and_imagines_nearly_the_same(tmp_path: Path, dtype: str) -> None:
    tiny_checkpoint().save(tmp_path)
    whole, half = (PARPolicy.from_pretrained(tmp_path, "push the cube", dtype=name) for name in ("float32", dtype))
    assert half.checkpoint.model.nova.dtype == getattr(torch, dtype)
    plans = [policy.plan(observation(2), frames=True) for policy in (whole, half)]
    spread = plans[0].actions.std()
    assert plans[1].actions.dtype == torch.float32 and (plans[1].actions - plans[0].actions).abs().max() < 0.1 * spread
    assert half.act(observation(2)).dtype == torch.float32 and half.imagine(2).frames.dtype == torch.uint8


def test_an_unknown_type_of_weights_is_refused(tmp_path: Path) -> None:
    tiny_checkpoint().save(tmp_path)
    with pytest.raises(UserError, match="dtype is 'int8'; allowed: float32, float16, bfloat16"):
        PARPolicy.from_pretrained(tmp_path, "push the cube", dtype="int8")
