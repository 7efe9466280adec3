"""Training of baselines: each learns from its frames, resumes to the bit, and refuses what it cannot use."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from par_agent.baselines import NAMES
from par_agent.baselines.checkpoint import BaselineCheckpoint
from par_agent.baselines.objective import context_length
from par_agent.baselines.setup import prepare
from par_agent.baselines.training import predict, train
from par_agent.data.windows import Windows
from par_agent.errors import UserError
from par_agent.training.validation import action_metrics
from small_baselines import SMALL, run
from tiny import with_options


@pytest.mark.parametrize("method", NAMES)
def test_compiled_blocks_learn_what_they_would_otherwise(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def without_code_generation(function: Any, compiler: Any = torch.compile) -> Any:
        compiled.append(function)
        return compiler(function, backend="aot_eager")

    plain = run(tmp_path, method, episodes=5, out=tmp_path / "plain", steps=2)
    train(plain)
    assert not compiled
    monkeypatch.setattr(torch, "compile", without_code_generation)
    train(with_options(plain, out=tmp_path / "compiled", compile=True))
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
        "save_minutes": 60.0,
        "warmup": 10,
    }
    sizes = {
        "act": ("kl_weight=0.1",),
        "bc-t": ("dropout=0.0",),
        "dp": ("dropout=0.0", "noise_samples=8"),
        "rdt": ("hidden=0.0",),
    }
    config = run(tmp_path, method, **rate, **few)
    config = with_options(config, model=(*config.model, *sizes.get(method, ())))
    setup = prepare(config, torch.device("cpu"))
    sampler = setup.train.samplers[0]
    before = setup.policy
    before.model.eval()
    windows = sampler.sample(0, len(sampler), augment=False)
    counted = setup.policy.model.counted(context_length(windows))
    windows = dataclasses.replace(windows, action_weights=windows.action_weights * counted[..., None])
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
def test_a_run_that_goes_on_from_an_earlier_state_equals_one_that_was_not_stopped(method: str, tmp_path: Path) -> None:
    whole = run(tmp_path, method, episodes=9, out=tmp_path / "whole", validate_every=100, keep=10)
    train(whole)
    config = with_options(whole, out=tmp_path / "run")
    shutil.copytree(whole.out, config.out)
    shutil.rmtree(config.out / "policy")
    for state in sorted((config.out / "training_states").iterdir())[3:]:
        shutil.rmtree(state)
    train(config)
    weights = load_file(config.out / "policy" / "model.safetensors")
    for name, value in load_file(whole.out / "policy" / "model.safetensors").items():
        assert torch.equal(value, weights[name]), name


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
        train(with_options(run(tmp_path, "act"), **change))
    assert not (tmp_path / "run" / "training_states").exists()


def test_fewer_demonstrations_are_the_first_ones_and_decide_the_statistics(tmp_path: Path) -> None:
    config = run(tmp_path, "act")
    few = prepare(with_options(config, demos=5), torch.device("cpu"))
    more = prepare(with_options(config, demos=9), torch.device("cpu"))
    names: dict[int, set[str]] = {5: set(), 9: set()}
    for count, setup in ((5, few), (9, more)):
        sampler = setup.train.samplers[0]
        for number in range(len(sampler)):
            names[count] |= {part for text in sampler.sample(number, 1).episodes for part in text.split("+")}
    assert names[5] == {f"data/episode_{number:06d}.h5" for number in range(1, 6)} < names[9]
    assert len(names[9]) == 9
    assert few.policy.transforms.action_mean != more.policy.transforms.action_mean
    assert len(few.held_out[0]) == len(more.held_out[0]) == len(prepare(config, torch.device("cpu")).held_out[0])
