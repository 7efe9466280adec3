"""Baselines as policies: each is saved and loaded whole, and acts as in training."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from par_agent.baselines import NAMES, find_policy
from par_agent.baselines.checkpoint import BaselineCheckpoint
from par_agent.baselines.config import BaselineConfig
from par_agent.baselines.objective import context_length
from par_agent.baselines.policy import BaselinePolicy
from par_agent.baselines.setup import prepare
from par_agent.baselines.training import predict, train
from par_agent.data.windows import WindowSampler
from par_agent.errors import UserError
from par_agent.tasks import TASKS
from small_baselines import SIZES, SMALL, run
from tiny import LENGTH, with_options

TASK = dataclasses.replace(TASKS["PushCube"], instruction="push cube 1")


def observation(batch: int = 1, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, 512, 512, 3), generator=generator, dtype=torch.uint8)
    qpos = torch.randn(batch, 9, generator=generator)
    return {"agent": {"qpos": qpos}, "sensor_data": {"render_camera": {"rgb": images}}}


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaselineConfig:
    """A finished run of every method."""
    config = run(tmp_path_factory.mktemp(request.param), request.param)
    train(config)
    return config


def act(policy: BaselinePolicy, steps: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Actions (steps, batch, 8) of the first steps of an episode."""
    policy.reset(seed=seed)
    return torch.stack([policy.act(observation(batch, seed=step)) for step in range(steps)])


def test_a_run_ends_in_a_checkpoint_that_is_loaded_as_it_was_saved(trained: BaselineConfig, tmp_path: Path) -> None:
    policy = BaselinePolicy(str(trained.out / "policy"), TASK)
    actions = act(policy, 2 * LENGTH + 1)
    assert actions.shape == (2 * LENGTH + 1, 1, 8) and actions.isfinite().all()
    loaded = BaselineCheckpoint.load(trained.out / "policy")
    loaded.save(tmp_path / "again")
    assert torch.equal(act(BaselinePolicy(str(tmp_path / "again"), TASK), 2 * LENGTH + 1), actions)
    assert loaded.trained["steps"] == 6 and loaded.trained["minutes"] > 0
    assert list((trained.out / "tensorboard").iterdir())


def test_the_benchmark_builds_it_by_name_and_refuses_a_track_that_it_cannot_see(trained: BaselineConfig) -> None:
    source = find_policy(trained.method, {"deterministic": True}, "cpu", trained.out / "policy")
    policy = source.build(TASK)
    assert isinstance(policy, BaselinePolicy) and policy.deterministic and source.label == trained.method
    with pytest.raises(UserError, match="sees through 'render_camera'; task PushCube shows base_camera"):
        source.build(TASK, "native")
    with pytest.raises(UserError, match="does not take these options"):
        dataclasses.replace(source, options={"denoising_steps": 3}).build(TASK)


def test_rows_of_a_batch_act_as_they_would_alone(trained: BaselineConfig) -> None:
    policy = BaselinePolicy(str(trained.out / "policy"), TASK)
    together = act(policy, LENGTH + 1, batch=3)
    policy.reset(seed=0)
    alone = []
    for step in range(LENGTH + 1):
        shown = observation(3, seed=step)
        shown["agent"]["qpos"] = shown["agent"]["qpos"][:1]
        shown["sensor_data"]["render_camera"]["rgb"] = shown["sensor_data"]["render_camera"]["rgb"][:1]
        alone.append(policy.act(shown))
    torch.testing.assert_close(torch.stack(alone)[:, 0], together[:, 0], rtol=1e-4, atol=1e-5)


def test_a_row_that_is_reset_starts_anew_and_the_others_go_on(trained: BaselineConfig) -> None:
    policy = BaselinePolicy(str(trained.out / "policy"), TASK, deterministic=True)
    later = [observation(2, seed=LENGTH - 1 + step) for step in range(LENGTH + 1)]
    anew = torch.stack([policy.act(seen) for seen in later])
    undisturbed = act(policy, 2 * LENGTH, batch=2)[LENGTH - 1 :]
    act(policy, LENGTH - 1, batch=2)
    assert not policy.needs_frame
    policy.reset(env_idx=[1])
    assert policy.needs_frame
    again = torch.stack([policy.act(seen) for seen in later])
    torch.testing.assert_close(again[:, 0], undisturbed[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again[:, 1], anew[:, 1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"env_idx \[2\] names rows that do not exist"):
        policy.reset(env_idx=2)


def test_frames_are_asked_for_once_a_chunk(trained: BaselineConfig) -> None:
    policy = BaselinePolicy(str(trained.out / "policy"), TASK)
    asked = []
    for step in range(2 * LENGTH):
        asked.append(policy.needs_frame)
        shown = observation(seed=step)
        if not asked[-1]:
            del shown["sensor_data"]
        policy.act(shown)
    assert asked == [step % LENGTH == 0 for step in range(2 * LENGTH)]


def test_what_it_does_follows_from_the_seed(trained: BaselineConfig) -> None:
    policy = BaselinePolicy(str(trained.out / "policy"), TASK)
    drawn = act(policy, 2, seed=3)
    assert torch.equal(act(policy, 2, seed=3), drawn)
    by_chance = trained.method in ("bc-t", "dp", "rdt")
    assert all(torch.equal(act(policy, 2, seed=seed), drawn) for seed in range(4, 12)) != by_chance
    likeliest = BaselinePolicy(str(trained.out / "policy"), TASK, deterministic=True)
    assert torch.equal(act(likeliest, 2, seed=3), act(likeliest, 2, seed=4))


def test_an_episode_that_is_acted_in_is_read_as_in_training(trained: BaselineConfig) -> None:
    setup = prepare(trained, torch.device("cpu"))
    loaded = BaselineCheckpoint.load(trained.out / "policy")
    index, latents = setup.train.samplers[0].index, setup.train.samplers[0].latents
    episodes = [12]
    if setup.policy.prompts:  # a window of training begins with an episode of the same instruction, here the prompt's
        same = [number for number in index.split(None)[0] if index.instructions[number] == index.instructions[12]]
        episodes.insert(0, min(same[:10], key=lambda number: index.boundaries[number]))
    windows = WindowSampler(index, latents, episodes, loaded.model.sequence or 3, 0).sample(0, 1, augment=False)
    seen = context_length(windows)[0]
    first = int((seen == 1).nonzero()[-1])
    assert (first > 0) == bool(setup.policy.prompts)
    wanted = predict(loaded, windows, torch.device("cpu"))[0]
    past = loaded.transforms.normalise_actions(windows.past_actions, windows.past_proprioception)[0]
    task = dataclasses.replace(TASK, instruction=windows.instructions[0])
    policy = BaselinePolicy(str(trained.out / "policy"), task, deterministic=True)
    steps = min(int(seen.max()), 3)
    for step in range(first, first + steps):
        shown = observation()
        shown["agent"]["qpos"] = windows.proprioception[:, step]
        policy.encoder = SimpleNamespace(encode=lambda _, now=step: windows.latents[:, now])
        if step > first:
            policy._state.chunk = past[step : step + 1]  # as if the demonstrated chunk had been planned
        acted = torch.cat([policy.act(shown) for _ in range(LENGTH)])
        torch.testing.assert_close(acted, wanted[step], rtol=1e-4, atol=1e-4)
    assert steps == 3


@pytest.mark.parametrize("trained", ["icrt"], indirect=True)
def test_another_demonstration_as_prompt_gives_other_actions(trained: BaselineConfig, tmp_path: Path) -> None:
    loaded = BaselineCheckpoint.load(trained.out / "policy")
    prompt = loaded.prompts[TASK.instruction]
    for name in ("latents", "past_actions"):
        other = dataclasses.replace(prompt, **{name: -getattr(prompt, name)})
        dataclasses.replace(loaded, prompts={TASK.instruction: other}).save(tmp_path / name)
        changed, usual = (
            act(BaselinePolicy(str(folder), TASK), 1) for folder in (tmp_path / name, trained.out / "policy")
        )
        assert (changed - usual).abs().max() > 1e-4, name


def test_acting_step_by_step_is_what_training_sees_at_once(trained: BaselineConfig) -> None:
    setup = prepare(trained, torch.device("cpu"))
    loaded = BaselineCheckpoint.load(trained.out / "policy")
    model, context = loaded.model, loaded.model.context
    generator = torch.Generator().manual_seed(0)
    steps, width = min(3, context), model.config.width
    tokens = torch.randn(1, steps, model.config.frame_tokens, width, generator=generator)
    past = torch.randn(1, steps, LENGTH, 8, generator=generator)
    policy = BaselinePolicy(str(trained.out / "policy"), TASK)
    state = policy._begin(1)
    state.tokens[:, -steps:], state.past_actions[:, -steps:], state.seen[:] = tokens, past, steps
    with torch.inference_mode():
        one = model.conditions(policy._history(state, torch.tensor([0])))[:, -1]
        whole = policy._history(state, torch.tensor([0]))
        assert int((whole.context_length > 0).sum()) == steps + (
            len(setup.policy.prompts["push cube 1"].past_actions) if setup.policy.prompts else 0
        )
        present = whole.context_length[0] > 0
        short = dataclasses.replace(
            whole,
            **{
                name: getattr(whole, name)[:, present]
                for name in ("tokens", "past_actions", "past_actions_known", "context_length")
            },
        )
        torch.testing.assert_close(model.conditions(short)[:, -1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", ["act"], indirect=True)
def test_temporal_ensembling_averages_what_was_predicted_of_a_moment(trained: BaselineConfig) -> None:
    config = trained
    policy = BaselinePolicy(str(config.out / "policy"), TASK, ensemble=0.5)
    plans = torch.zeros(1, 2, 8, 8)
    plans[0, 0], plans[0, 1, LENGTH:] = 1.0, 3.0
    old = torch.tensor(0.5).exp()
    expected = (1 + 3 * old) / (1 + old)
    torch.testing.assert_close(policy._ensembled(plans, torch.tensor([2])), expected.expand(1, LENGTH, 8))
    torch.testing.assert_close(policy._ensembled(plans, torch.tensor([1])), torch.ones(1, LENGTH, 8))
    newest = act(BaselinePolicy(str(config.out / "policy"), TASK), 2 * LENGTH)
    averaged = act(policy, 2 * LENGTH)
    assert torch.equal(averaged[:LENGTH], newest[:LENGTH]) and not torch.equal(averaged[LENGTH:], newest[LENGTH:])


@pytest.mark.parametrize("trained", ["act"], indirect=True)
def test_another_method_in_the_same_folder_and_a_broken_checkpoint_are_refused(
    trained: BaselineConfig, tmp_path: Path
) -> None:
    config = trained
    with pytest.raises(UserError, match=r"begun with other settings \(method: act there, dp asked for"):
        train(with_options(config, method="dp", model=SMALL + SIZES["dp"]))
    policy = tmp_path / "policy"
    shutil.copytree(config.out / "policy", policy)
    (policy / "model.safetensors").write_bytes((policy / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match=r"not a complete safetensors file"):
        BaselineCheckpoint.load(policy)
    with pytest.raises(UserError, match=r"holds no baseline \(no baseline.json\)"):
        BaselineCheckpoint.load(config.vae)  # type: ignore[arg-type]
    for option, message in (({"n_action_steps": 9}, "predicts 8 actions"), ({"context": 0}, "must be at least 1")):
        with pytest.raises(UserError, match=message):
            BaselinePolicy(str(config.out / "policy-best"), TASK, **option)


@pytest.mark.parametrize(
    ("trained", "option", "message"),
    [
        ("bc-t", {"ensemble": 0.01}, "all 4 actions that this checkpoint predicts are executed"),
        ("bc-t", {"context": 5}, "bc-t reads 4 steps at most, its prompt's 0 included: give a context of 4 or less"),
        ("icrt", {"context": 7}, "icrt reads 8 steps at most, its prompt's 2 included: give a context of 6 or less"),
        ("icrt", {"ensemble": 0.01}, "icrt reads the chunks that it executed"),
        ("icrt", {"n_action_steps": 2}, "icrt reads the chunks that it executed"),
    ],
    indirect=["trained"],
)
def test_a_policy_refuses_what_its_method_cannot_read(
    trained: BaselineConfig, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        BaselinePolicy(str(trained.out / "policy"), TASK, **option)
