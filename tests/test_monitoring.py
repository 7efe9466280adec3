"""What a run measures, shows and keeps on the way."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.errors import UserError
from par_agent.modeling.par import PARModel
from par_agent.policy.checkpoint import Checkpoint
from par_agent.training import par_training
from par_agent.training.config import FinetuneConfig, LoggingConfig
from par_agent.training.finetune import finetune
from par_agent.training.monitor import start_wandb
from par_agent.training.setup import Setup, prepare
from par_agent.training.validation import predict_episode, validate
from par_agent.utils.checked import option_hints
from par_agent.utils.files import read_json
from tiny import LENGTH, SIZE, tiny_run

CPU = torch.device("cpu")


def policy_of(setup: Setup) -> Checkpoint:
    return dataclasses.replace(setup.policy, model=setup.policy.model.eval())


def test_a_policy_that_predicts_the_truth_measures_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditions and samplers are replaced by the truth, so that only the measuring is left."""
    setup = prepare(tiny_run(tmp_path), CPU)
    policy, sampler = policy_of(setup), setup.held_out[0]
    measured = validate(policy, [sampler], CPU)
    assert measured["action_error"] > 0.1 and 0 < measured["gripper_accuracy"] < 1
    assert 0 < measured["frame_psnr"] < 40 and measured["shuffled_error"] == measured["shuffled_error/data"]
    windows = [sampler.sample(number, 1, augment=False) for number in range(len(sampler))]
    transforms = setup.policy.transforms
    assert transforms is not None
    true = torch.cat([transforms.normalise_actions(w.target_actions, w.proprioception).flatten(0, 1) for w in windows])
    last = [int((w.action_weights[0, :, 0] > 0).sum()) - 1 for w in windows]
    latents = torch.cat([w.next_latents[:, n] for w, n in zip(windows, last, strict=True)])
    monkeypatch.setattr(PARModel, "sample_actions", lambda *_, **__: true)
    monkeypatch.setattr(PARModel, "sample_frame", lambda *_: latents[:8])
    perfect = validate(policy, [sampler], CPU)
    assert perfect["action_error"] < 1e-5 and perfect["gripper_accuracy"] == 1 and perfect["frame_psnr"] > 58
    assert perfect["still_psnr"] == measured["still_psnr"] < 40


def test_an_episode_is_predicted_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    setup = prepare(config, CPU)
    shown = predict_episode(policy_of(setup), setup.held_out[0], CPU)
    episode = read_episode(RenderedDataset(config.data[0]).paths[0])
    assert episode.actions is not None and shown.actions is not None
    np.testing.assert_array_equal(shown.true_actions, episode.actions)
    assert shown.actions.shape == episode.actions.shape == (5, SIZE)
    assert shown.name == "data/episode_000000.h5"
    assert shown.frames is not None and shown.frames.shape == (-(-5 // LENGTH), 16, 16, 3)
    assert shown.true_frames is not None and shown.true_frames.dtype == np.uint8


def test_the_best_policy_is_kept_with_its_measurements_and_pictures_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = iter([0.3, 0.1, 0.2])

    def measure(*args: Any, **options: Any) -> dict[str, float]:
        return {**validate(*args, **options), "action_error": next(errors)}

    monkeypatch.setattr(par_training, "validate", measure)
    config = tiny_run(tmp_path, validate_every=2, picture_minutes=0.0, keep=4)
    finetune(config)
    best, newest = (Checkpoint.load(config.out / name) for name in ("policy-best", "policy"))
    assert (best.trained["steps"], newest.trained["steps"]) == (4, 6)
    assert best.trained["held_out"]["action_error"] == 0.1 and "frame_psnr" in best.trained["held_out"]
    assert len(list((config.out / "training_states").iterdir())) == 4
    pictures = sorted((config.out / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"step_{step:08d}.png" for step in (2, 4, 6)]
    image = iio.imread(pictures[0])
    assert image.shape[1] == 1200 and image.std() > 10


def test_what_a_run_logs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_run(tmp_path, steps=12, validate_every=12, rollout_every=5)
    seen: list[Path] = []

    def rollouts(policy: Path) -> dict[str, float]:
        seen.append(policy)
        if len(seen) == 2:
            raise UserError("the renderer is gone")
        return {"PushCube": 0.5}

    finetune(config, rollouts)
    assert seen == [config.out / "policy"] * 3
    log = EventAccumulator(str(config.out / "tensorboard")).Reload()
    scalars = set(log.Tags()["scalars"])
    wanted = {"train/action", "train/frame", "train/samples_per_second", "validation/frame_psnr", "rollout/PushCube"}
    assert wanted <= scalars and "validation/gripper_accuracy" in scalars and log.Tags()["images"] == ["held_out"]
    assert [(event.step, event.value) for event in log.Scalars("rollout/PushCube")] == [(5, 0.5), (12, 0.5)]
    with pytest.raises(UserError, match=r"also give finetune\(\) its rollouts"):
        finetune(config)


def test_options_are_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_run(tmp_path, steps=1)
    finetune(config)
    printed = capsys.readouterr().out
    assert "run/finetune.json" in printed and "batch_size=4, accumulation=1" in " ".join(printed.split())
    saved = read_json(config.out / "finetune.json")
    assert saved == config.to_json() and set(saved) == set(option_hints(FinetuneConfig))


def test_weights_and_biases_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FinetuneConfig(out=tmp_path / "run", logging=LoggingConfig(wandb="par"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--wandb needs wandb .*'par-agent\[wandb\]'"):
        start_wandb(config, "par")


def test_a_run_logs_to_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_run(tmp_path, steps=2, wandb="par")
    finetune(config)
    (record,) = (config.out / "wandb").glob("offline-run-*/*.wandb")
    content = record.read_bytes()
    assert b"validation/action_error" in content and b"train/action" in content
