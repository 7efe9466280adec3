"""Baselines: each learns, is saved and loaded whole, resumes to the bit, and acts as in training."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from baselines import NAMES, find_policy
from baselines.checkpoint import BaselineCheckpoint
from baselines.policy import BaselinePolicy
from baselines.training import BaselineConfig, predict, prepare, there, train
from par_agent.data.windows import Windows, WindowSampler
from par_agent.errors import UserError
from par_agent.modeling.frame_encoder import save_frame_encoder
from par_agent.tasks import TASKS
from par_agent.training.checkpoint import latest_checkpoint
from par_agent.training.validation import action_metrics
from tiny import LENGTH, option_words, tiny_checkpoint, tiny_dataset

ROOT = Path(__file__).parents[1]
SMALL = ("width=32", "heads=2", "patch=4", "stem_widths=[8,16]", f"chunk_length={LENGTH}")
SIZES = {
    "act": ("horizon=8", "style_layers=1", "encoder_layers=1", "decoder_layers=1", "style_size=4", "dropout=0.0"),
    "bc-t": ("horizon=4", "layers=1", "patch_width=8", "components=2"),
    "dp": ("horizon=8", "layers=2", "train_steps=20", "sampling_steps=5"),
    "icrt": ("horizon=8", "layers=1", "steps=8"),
    "rdt": ("horizon=8", "layers=2", "train_steps=50"),
}
TASK = dataclasses.replace(TASKS["PushCube"], instruction="push cube 1")


def run(folder: Path, method: str, episodes: int = 21, alike: bool = False, **options: Any) -> BaselineConfig:
    """A training run of a few steps on random episodes, in ``folder / "run"``."""
    save_frame_encoder(tiny_checkpoint().encoder, folder / "vae")
    data = tiny_dataset(folder / "data", episodes=episodes, alike=alike)
    defaults = {
        "out": folder / "run",
        "data": (data,),
        "vae": folder / "vae",
        "method": method,
        "model": SMALL + SIZES[method],
        "steps": 6,
        "batch_size": 8,
        "window": 2,
        "warmup": 2,
        "variants": 2,
        "shift": 1,
        "validate_every": 3,
        "checkpoint_minutes": 0.0,
    }
    return BaselineConfig(**{**defaults, **options})


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
    if setup.prompts:  # a window of training begins with one episode of the same instruction, here with the prompt's
        same = [number for number in index.split(None)[0] if index.instructions[number] == index.instructions[12]]
        episodes.insert(0, min(same[:10], key=lambda number: index.boundaries[number]))
    windows = WindowSampler(index, latents, episodes, loaded.model.sequence or 3, 0).sample(0, 1, augment=False)
    seen = there(windows)[0]
    first = int((seen == 1).nonzero()[-1])
    assert (first > 0) == bool(setup.prompts)
    wanted = predict(loaded, windows, torch.device("cpu"))[0]
    past = loaded.transforms.normalise_actions(windows.before, windows.before_positions)[0]
    task = dataclasses.replace(TASK, instruction=windows.instructions[0])
    policy = BaselinePolicy(str(trained.out / "policy"), task, deterministic=True)
    steps = min(int(seen.max()), 3)
    for step in range(first, first + steps):
        shown = observation()
        shown["agent"]["qpos"] = windows.positions[:, step]
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
    for name in ("latents", "past"):
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
    state.tokens[:, -steps:], state.past[:, -steps:], state.seen[:] = tokens, past, steps
    with torch.inference_mode():
        one = model.conditions(policy._history(state, torch.tensor([0])))[:, -1]
        whole = policy._history(state, torch.tensor([0]))
        assert int((whole.visible > 0).sum()) == steps + (
            len(setup.prompts["push cube 1"].past) if setup.prompts else 0
        )
        there = whole.visible[0] > 0
        short = dataclasses.replace(
            whole,
            **{name: getattr(whole, name)[:, there] for name in ("tokens", "past", "past_known", "visible")},
        )
        torch.testing.assert_close(model.conditions(short)[:, -1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", NAMES)
def test_compiled_blocks_learn_what_they_would_otherwise(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def without_code_generation(function: Any, compiler: Any = torch.compile) -> Any:
        compiled.append(function)
        return compiler(function, backend="aot_eager")

    plain = run(tmp_path, method, out=tmp_path / "plain", steps=2)
    train(plain)
    assert not compiled
    monkeypatch.setattr(torch, "compile", without_code_generation)
    train(dataclasses.replace(plain, out=tmp_path / "compiled", compile=True))
    assert compiled
    weights = load_file(tmp_path / "compiled" / "policy" / "model.safetensors")
    for name, value in load_file(plain.out / "policy" / "model.safetensors").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


def test_windows_that_a_method_cannot_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--window is 5; bc-t reads 4 steps at most"):
        train(run(tmp_path / "a", "bc-t", window=5))
    with pytest.raises(
        UserError, match="--batch-size 2 of --window 3 are fewer steps than one sequence of the model, 8"
    ):
        train(run(tmp_path / "b", "icrt", window=3, batch_size=2))


@pytest.mark.parametrize("method", NAMES)
def test_a_handful_of_episodes_is_learnt_by_heart_from_their_frames_and_saved(method: str, tmp_path: Path) -> None:
    rate = {"learning_rate": 4e-3, "recovery_noise": 0.0, "variants": 1, "weight_decay": 0.0, "ema": 0.9}
    few = {
        "episodes": 6 if method == "icrt" else 3,  # of a window's other episodes the prompt tells too much
        "alike": True,
        "steps": 600 if method == "dp" else 200,
        "validate_every": 1000,
        "checkpoint_minutes": 60.0,
        "warmup": 10,
    }
    sizes = {
        "act": ("kl_weight=0.1",),
        "bc-t": ("dropout=0.0",),
        "dp": ("dropout=0.0", "noise_samples=8"),
        "rdt": ("hidden=0.0",),
    }
    config = run(tmp_path, method, **rate, **few)
    config = dataclasses.replace(config, model=(*config.model, *sizes.get(method, ())))
    setup = prepare(config, torch.device("cpu"))
    sampler = setup.train.samplers[0]
    before = BaselineCheckpoint(method, setup.model.eval(), setup.encoder, setup.transforms, setup.prompts)
    windows = sampler.sample(0, len(sampler), augment=False)
    counted = setup.model.counted(there(windows))
    windows = dataclasses.replace(windows, weights=windows.weights * counted[..., None])
    latents = windows.latents
    others = dataclasses.replace(windows, latents=latents.flatten(0, 1).roll(1, 0).view_as(latents))

    def error(policy: BaselineCheckpoint, shown: Windows) -> float:
        chunks = predict(policy, shown, torch.device("cpu"))
        return action_metrics(chunks, chunks, windows, policy.transforms)["action_error"]

    policy = train(config)
    assert error(policy, windows) < 0.3 * error(before, windows)
    assert error(policy, others) > 2 * error(policy, windows)
    saved = BaselineCheckpoint.load(config.out / "policy")
    weights = policy.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in saved.model.state_dict().items())
    loaded, trained = (predict(found, windows, torch.device("cpu")) for found in (saved, policy))
    torch.testing.assert_close(loaded, trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["act", "icrt"])
def test_a_killed_run_that_goes_on_equals_one_that_was_not_killed(method: str, tmp_path: Path) -> None:
    config = run(tmp_path, method, steps=40, validate_every=100)
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    train(whole)
    process = subprocess.Popen(command(config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while (latest_checkpoint(config.out / "checkpoints") or Path()) < config.out / "checkpoints" / "step_00000003":
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert latest_checkpoint(config.out / "checkpoints").name < "step_00000040"  # type: ignore[union-attr]
    subprocess.run(command(config), check=True, capture_output=True)
    weights = load_file(config.out / "policy" / "model.safetensors")
    for name, value in load_file(whole.out / "policy" / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name


def command(config: BaselineConfig) -> list[str]:
    """The command line of a run."""
    return [sys.executable, str(ROOT / "benchmarks" / "train_baseline.py"), *option_words(config)]


def test_temporal_ensembling_averages_what_was_predicted_of_a_moment(tmp_path: Path) -> None:
    config = run(tmp_path, "act")
    train(config)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae": None}, "a baseline needs --vae FOLDER"),
        ({"data": ()}, "nothing to train on"),
        ({"data": (Path("nowhere"),)}, "nowhere is not a rendered dataset"),
        ({"demos": 21}, r"has 19 episodes to train on, not 21 \(21 with the held-out ones\)"),
        ({"demos": 0}, "demos is 0; it must be at least 1"),
        ({"method": "pi0"}, "method is 'pi0'; it must be one of act, bc-t, dp, icrt, rdt"),
        ({"model": ("wide=3",)}, "unknown fields in ACTConfig: wide"),
        ({"model": (*SMALL, "horizon=2")}, "a chunk of 4 actions is executed"),
        ({"model": ("width=32", "heads=3")}, "must divide the width 32"),
        ({"model": ("dropout=2",)}, "dropout is 2; it must be at least 0 and below 1"),
        ({"model": ("action_size=7",)}, "--model action_size=... is not to be given: it follows from the data"),
    ],
)
def test_bad_options_are_explained(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(run(tmp_path, "act"), **change))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_fewer_demonstrations_are_the_first_ones_and_decide_the_statistics(tmp_path: Path) -> None:
    config = run(tmp_path, "act")
    few = prepare(dataclasses.replace(config, demos=5), torch.device("cpu"))
    more = prepare(dataclasses.replace(config, demos=9), torch.device("cpu"))
    names: dict[int, set[str]] = {5: set(), 9: set()}
    for count, setup in ((5, few), (9, more)):
        sampler = setup.train.samplers[0]
        for number in range(len(sampler)):
            names[count] |= {part for text in sampler.sample(number, 1).episodes for part in text.split("+")}
    assert names[5] == {f"data/episode_{number:06d}.h5" for number in range(1, 6)} < names[9]
    assert len(names[9]) == 9
    assert few.transforms.action_mean != more.transforms.action_mean
    assert len(few.held_out[0]) == len(more.held_out[0]) == len(prepare(config, torch.device("cpu")).held_out[0])


def test_another_method_in_the_same_folder_and_a_broken_checkpoint_are_refused(tmp_path: Path) -> None:
    config = run(tmp_path, "act")
    train(config)
    with pytest.raises(UserError, match=r"begun with other settings \(method: act there, dp asked for"):
        train(run(tmp_path, "dp"))
    policy = config.out / "policy"
    (policy / "model.safetensors").write_bytes((policy / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match=r"not a complete safetensors file"):
        BaselineCheckpoint.load(policy)
    with pytest.raises(UserError, match=r"holds no baseline \(no baseline.json\)"):
        BaselineCheckpoint.load(tmp_path / "vae")
    for option, message in (({"execute": 9}, "predicts 8 actions"), ({"context": 0}, "must be at least 1")):
        with pytest.raises(UserError, match=message):
            BaselinePolicy(str(config.out / "policy-best"), TASK, **option)


@pytest.mark.parametrize(
    ("trained", "option", "message"),
    [
        ("bc-t", {"ensemble": 0.01}, "all 4 actions that this checkpoint predicts are executed"),
        ("bc-t", {"context": 5}, "bc-t reads 4 steps at most, its prompt's 0 included: give a context of 4 or less"),
        ("icrt", {"context": 7}, "icrt reads 8 steps at most, its prompt's 2 included: give a context of 6 or less"),
        ("icrt", {"ensemble": 0.01}, "icrt reads the chunks that it executed"),
        ("icrt", {"execute": 2}, "icrt reads the chunks that it executed"),
    ],
    indirect=["trained"],
)
def test_a_policy_refuses_what_its_method_cannot_read(
    trained: BaselineConfig, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        BaselinePolicy(str(trained.out / "policy"), TASK, **option)
