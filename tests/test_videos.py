"""Training the frame path on videos without actions, and a policy on top of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from par_agent import PARPolicy
from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.index import VideoIndex
from par_agent.errors import UserError
from par_agent.modeling.presets import PRESETS, Preset
from par_agent.modeling.vae.frame_encoder import save_frame_encoder
from par_agent.policy.checkpoint import Checkpoint
from par_agent.training.finetune import finetune
from par_agent.training.trainable import ACTION_PARTS
from par_agent.utils.files import read_json
from tiny import JOINTS, LENGTH, SIZE, tiny_checkpoint, tiny_config, tiny_dataset, tiny_run, with_options


def test_frames_follow_each_other_and_nothing_else_is_read(tmp_path: Path) -> None:
    dataset = RenderedDataset(tiny_dataset(tmp_path, episodes=4, stride=3, actions=False))
    index = VideoIndex(dataset, JOINTS, SIZE, LENGTH, LENGTH)
    frames = [len(read_episode(path, frames=False).frame_steps) for path in dataset.paths]
    assert index.boundaries == [count - 1 for count in frames]
    starts = np.concatenate([[0], np.cumsum(frames)[:-1]])
    expected = np.concatenate(
        [np.arange(start, start + count - 1) for start, count in zip(starts, frames, strict=True)]
    )
    np.testing.assert_array_equal(index.columns["row"], expected)
    np.testing.assert_array_equal(index.columns["next_row"], expected + 1)
    assert not index.columns["proprioception"].any() and not index.columns["past_actions_known"].any()


def test_a_policy_grows_out_of_a_model_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", Preset(tiny_config()))
    save_frame_encoder(tiny_checkpoint().encoder, tmp_path / "vae")
    videos = tiny_dataset(tmp_path / "videos", episodes=21, stride=3, actions=False)
    config = tiny_run(
        tmp_path,
        data=(videos,),
        init=None,
        vae=tmp_path / "vae",
        preset="tiny",
        modality="video",
        out=tmp_path / "video",
    )
    policy = finetune(config)
    assert policy.transforms is None
    weights = load_file(config.out / "policy" / "model.safetensors")
    finetune(with_options(config, out=tmp_path / "short", steps=1))
    start = load_file(tmp_path / "short" / "policy" / "model.safetensors")
    changed = {name for name, value in weights.items() if not value.equal(start[name])}
    assert any(name.startswith("nova.video_encoder") for name in changed)
    assert any(name.startswith("nova.image_decoder") for name in changed)
    assert not any(name.startswith(ACTION_PARTS) for name in changed)
    held_out = read_json(config.out / "policy-best" / "policy.json")["trained"]["held_out"]
    assert set(held_out) == {"frame_psnr", "still_psnr"} and list((config.out / "pictures").iterdir())
    with pytest.raises(UserError, match="cannot act yet"):
        PARPolicy.from_pretrained(config.out / "policy")

    trained = finetune(tiny_run(tmp_path, init=config.out / "policy", out=tmp_path / "policy"))
    assert trained.transforms is not None and trained.transforms.action_size == SIZE
    assert trained.inference.context == trained.model.config.max_context == 2
    assert PARPolicy.from_pretrained(tmp_path / "policy" / "policy").checkpoint.trained["steps"] == 6


def test_a_model_without_frame_path_is_refused(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, modality="video")
    loaded = tiny_checkpoint()
    model = type(loaded.model)(dataclasses.replace(loaded.model.config, imagination=False))
    dataclasses.replace(loaded, model=model).save(config.init)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="tiny has no frame path"):
        finetune(config)


def test_videos_and_actions_do_not_mix(tmp_path: Path) -> None:
    videos = tiny_dataset(tmp_path / "videos", actions=False)
    with pytest.raises(UserError, match="holds no actions"):
        finetune(tiny_run(tmp_path, data=(videos,)))
    for options in ({"train": "action"}, {"frame_fraction": 0.0}):
        with pytest.raises(UserError, match="--modality video trains the frame path alone"):
            tiny_run(tmp_path, modality="video", **options)
    assert isinstance(Checkpoint.load(tmp_path / "init"), Checkpoint)
