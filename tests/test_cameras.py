"""Policies that read several cameras at once: their frames stand side by side, from the data to the imagined ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import par_agent
from par_agent import PARPolicy
from par_agent.baselines.config import BaselineConfig
from par_agent.baselines.setup import prepare
from par_agent.cli.options import parse
from par_agent.data.augmentation import Augmentation, Change
from par_agent.data.episodes import RenderedDataset
from par_agent.data.latents import LatentSpec
from par_agent.data.render_spec import read_by
from par_agent.errors import UserError
from par_agent.modeling.config import PARConfig
from par_agent.modeling.par import PARModel, PhysicalTokens
from par_agent.modeling.vae.frame_encoder import for_cameras
from par_agent.policy.checkpoint import Checkpoint
from par_agent.policy.par_policy import EpisodeState
from par_agent.training.config import DatasetConfig
from par_agent.training.finetune import FinetuneConfig, finetune
from par_agent.training.start import with_cameras
from tiny import (
    checkpoint_of_cameras,
    task_checkpoint,
    tiny_checkpoint,
    tiny_config,
    tiny_dataset,
    tiny_features,
    tiny_inputs,
    tiny_model,
    tiny_run,
    with_options,
)

BOTH = ("base_camera", "hand_camera")
LAYOUTS = pytest.mark.parametrize("nova_layout", [False, True], ids=["mini", "nova"])


def for_as_many(model: PARModel, cameras: int) -> PARModel:
    """The model for so many cameras, with the same weights."""
    return PARModel.from_weights(model.config.with_cameras(cameras), model.state_dict()).eval()


def two_cameras(nova_layout: bool = False, embedding: float = 0.3) -> PARModel:
    """A tiny model with random weights that reads two cameras."""
    model = for_as_many(tiny_model(nova_layout), 2)
    assert model.nova.camera_embed is not None and not model.nova.camera_embed.any()
    with torch.no_grad():
        model.nova.camera_embed.normal_(std=embedding) if embedding else None
    return model


def wide_inputs(batch: int, steps: int) -> PhysicalTokens:
    """Random physical tokens with the frames of two cameras."""
    first, second = tiny_inputs(batch, steps), tiny_inputs(batch, steps, seed=5)
    return dataclasses.replace(first, latents=torch.cat([first.latents, second.latents], -1))


def observation(*cameras: str) -> dict[str, Any]:
    """Random images of these cameras, and joints at zero."""
    generator = np.random.default_rng(3)
    images = {name: {"rgb": generator.integers(0, 256, (1, 24, 32, 3), dtype=np.uint8)} for name in cameras}
    return {"agent": {"qpos": np.zeros((1, 9), np.float32)}, "sensor_data": images}


@LAYOUTS
def test_one_camera_is_the_model_without_cameras(nova_layout: bool) -> None:
    config, weights = tiny_config(nova_layout), tiny_model(nova_layout).state_dict()
    content = json.loads(json.dumps(config.to_json()))
    assert content["nova"].pop("cameras") == 1
    assert PARConfig.from_json(content) == config == config.with_cameras(3).with_cameras(1)
    assert not [name for name in weights if "camera" in name]
    back = for_as_many(two_cameras(nova_layout), 1).state_dict()
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in weights)


@LAYOUTS
def test_each_cameras_patches_are_embedded_as_if_it_were_alone(nova_layout: bool) -> None:
    wide, model, alone = wide_inputs(2, 3), two_cameras(nova_layout, 0), tiny_model(nova_layout)
    tokens = model.nova.embed_frames(wide.latents).unflatten(2, (2, 2, 2))  # rows, cameras, columns
    for camera, latents in enumerate(wide.latents.chunk(2, -1)):
        expected = alone.nova.embed_frames(latents)
        torch.testing.assert_close(tokens[:, :, :, camera].flatten(2, 3), expected)
    with torch.no_grad():
        assert model.nova.camera_embed is not None
        model.nova.camera_embed[1] = 1
    moved = model.nova.embed_frames(wide.latents).unflatten(2, (2, 2, 2)) - tokens
    torch.testing.assert_close(moved[:, :, :, 0], torch.zeros_like(moved[:, :, :, 0]))
    torch.testing.assert_close(moved[:, :, :, 1], torch.ones_like(moved[:, :, :, 1]))


@LAYOUTS
def test_cached_steps_of_two_cameras_equal_the_whole_sequence(nova_layout: bool) -> None:
    model, inputs, features = two_cameras(nova_layout), wide_inputs(2, 4), tiny_features(2)
    with torch.no_grad():
        z_frame, z_action = model(features, inputs, torch.arange(4).expand(2, 4))
        assert z_frame.shape[2] == model.frame_tokens == 2 * 4 + 1
        stream = model.start(features, 4)
        for step in range(4):
            part = PhysicalTokens(*(value[:, step : step + 1] for value in vars(inputs).values()))
            frame, action = model.step(stream, part)
            torch.testing.assert_close(frame, z_frame[:, step], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(action, z_action[:, step], atol=1e-5, rtol=1e-5)


def test_the_shared_encoder_sees_each_camera_alone() -> None:
    one = tiny_checkpoint().encoder
    frames = torch.randint(0, 256, (3, 16, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    both = for_cameras(one, 2)
    left, right = frames.chunk(2, 2)
    latents = both.encode(frames)
    torch.testing.assert_close(latents, torch.cat([one.encode(left), one.encode(right)], -1))
    decoded = torch.cat([one.decode(part.contiguous()) for part in latents.chunk(2, -1)], 2)
    assert (both.decode(latents).int() - decoded.int()).abs().max() <= 1
    assert for_cameras(both, 1) is one


def test_unchanged_patches_of_the_imagined_frame_are_those_of_each_camera() -> None:
    config = tiny_config()
    config = dataclasses.replace(config, nova=dataclasses.replace(config.nova, reads_last_frame=True)).with_cameras(2)
    torch.manual_seed(0)
    model, encoder = PARModel(config).eval(), for_cameras(tiny_checkpoint().encoder, 2)
    assert model.nova.image_encoder.change_head is not None
    with torch.no_grad():
        model.nova.image_encoder.change_head.weight.zero_()
        model.nova.image_encoder.change_head.bias.fill_(-100)
    policy = PARPolicy(dataclasses.replace(checkpoint_of_cameras(BOTH), model=model, encoder=encoder), "push")
    policy.act(observation(*BOTH))
    assert isinstance(policy._state, EpisodeState)
    predicted = policy.imagine(1).frames[:, 0]
    assert predicted.shape == (1, 16, 32, 3) and torch.equal(predicted, policy._state.pixels)


def test_training_on_two_cameras_ends_in_a_policy_that_acts_and_imagines(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, episodes=8, camera=BOTH, new_camera=True)
    tiny_dataset(tmp_path / "data", 8, cameras=BOTH)
    finetune(config)
    assert [path.stem.split("-")[0] for path in (tmp_path / "data" / "latents").glob("*.npy")] == ["+".join(BOTH)]
    folder = config.out / "policy"
    assert json.loads((folder / "policy.json").read_text())["transforms"]["camera"] == list(BOTH)
    policy = PARPolicy.from_pretrained(folder, "push cube 1")
    assert policy.transforms.cameras == BOTH and policy.config.nova.cameras == 2
    embedding = policy.model.nova.camera_embed
    assert embedding is not None and bool(embedding.any())
    assert policy.act(observation(*BOTH)).shape == (1, 8)
    imagined = policy.imagine(2).frames
    assert imagined.shape == (1, 2, 16, 32, 3)
    assert policy.attention(observation(*BOTH)).patches == (2, 4)
    assert "sees base_camera, hand_camera" in repr(policy)
    swapped = observation(*BOTH)
    swapped["sensor_data"] = dict(zip(BOTH, reversed(swapped["sensor_data"].values()), strict=True))
    assert not torch.equal(policy.plan(swapped).actions, policy.plan(observation(*BOTH)).actions)
    assert read_by(str(folder))["cameras"] == BOTH

    again = with_options(config, init=folder, new_camera=False, camera=None, out=tmp_path / "again", steps=2)
    assert again.camera == BOTH
    uncached = finetune(with_options(again, cache=False))
    assert uncached.transforms == policy.transforms
    with pytest.raises(UserError, match=r"--camera hand_camera: .* sees through base_camera hand_camera; give"):
        finetune(with_options(again, camera="hand_camera", out=tmp_path / "other"))
    one = finetune(with_options(again, camera="hand_camera", new_camera=True, out=tmp_path / "one"))
    assert one.model.config.nova.cameras == 1 and one.transforms is not None
    assert one.transforms.camera == "hand_camera"


def test_a_further_camera_leaves_the_others_what_tells_them_apart(tmp_path: Path) -> None:
    start = checkpoint_of_cameras(BOTH)
    assert start.model.nova.camera_embed is not None
    torch.nn.init.normal_(start.model.nova.camera_embed)
    config = tiny_run(tmp_path, camera=(*BOTH, "third"), new_camera=True)
    wider = with_cameras(start, config).model.nova.camera_embed
    known = start.model.nova.camera_embed
    assert known is not None and wider is not None and torch.equal(wider[:2], known) and not wider[2].any()


def test_what_several_cameras_cannot_do_is_refused(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, episodes=8, camera=BOTH, new_camera=True)
    with pytest.raises(UserError, match="holds no camera 'base_camera'; it has render_camera"):
        finetune(config)
    tiny_dataset(tmp_path / "data", 8, cameras=BOTH)
    with pytest.raises(UserError, match="--train action keeps what tells cameras apart"):
        finetune(with_options(config, train="action"))
    with pytest.raises(UserError, match="--camera wrist wrist: name each camera once"):
        with_options(config, camera=("wrist", "wrist"))
    encoder, dataset = tmp_path / "init" / "frame_encoder", DatasetConfig(camera=BOTH)
    baseline = BaselineConfig(method="dp", out=tmp_path / "dp", data=config.data, vae=encoder, dataset=dataset)
    with pytest.raises(UserError, match="--camera base_camera hand_camera: a baseline reads one camera"):
        prepare(baseline, torch.device("cpu"))
    spec = LatentSpec(BOTH, "abc", (2, 8, 16), augmentation=Augmentation(1))
    frames = {"base_camera": np.zeros((1, 8, 8, 3), np.uint8), "hand_camera": np.zeros((1, 8, 9, 3), np.uint8)}
    with pytest.raises(UserError, match=r"need one size \(base_camera: 8x8, hand_camera: 8x9\)"):
        spec.frames(frames, Change())
    assert RenderedDataset(tmp_path / "data").cameras == BOTH


def test_a_missing_camera_is_named_with_those_that_are_needed() -> None:
    policy = PARPolicy(checkpoint_of_cameras(BOTH), "push")
    needed = r"\"hand_camera\" \(it holds: base_camera\); .*the sensor cameras 'base_camera', 'hand_camera'"
    with pytest.raises(UserError, match=needed):
        policy.act(observation("base_camera"))
    wide = r"through 'base_camera', 'hand_camera'; task PushCube shows base_camera on the native track"
    with pytest.raises(UserError, match=wide):
        policy.check(par_agent.tasks.get_task("PushCube"), "native")
    policy.check(par_agent.tasks.get_task("StackCube"), "native")


def test_files_of_another_number_of_cameras_do_not_belong_together(tmp_path: Path) -> None:
    checkpoint_of_cameras(BOTH).save(tmp_path)
    assert isinstance(Checkpoint.load(tmp_path), Checkpoint)
    path = tmp_path / "policy.json"
    content = json.loads(path.read_text())
    content["transforms"]["camera"] = "base_camera"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the model's number of cameras is 2, its transforms' 1"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("words", [["base_camera"], list(BOTH)])
def test_the_command_line_and_files_of_options_take_one_camera_or_several(words: list[str], tmp_path: Path) -> None:
    config = parse(FinetuneConfig, ["--out", str(tmp_path), "--camera", *words], "finetune", "")
    assert config.camera == (words[0] if len(words) == 1 else BOTH)
    file = tmp_path / "finetune.json"
    file.write_text(json.dumps(config.to_json()))
    assert parse(FinetuneConfig, ["--config", str(file)], "finetune", "") == config


def test_an_environment_shows_every_camera_that_the_policy_reads() -> None:
    base, both = task_checkpoint(), checkpoint_of_cameras(BOTH)
    assert base.transforms is not None
    transforms = dataclasses.replace(base.transforms, camera=BOTH, image_size=(64, 64))
    policy = PARPolicy(dataclasses.replace(both, transforms=transforms), "stack")
    with pytest.raises(UserError, match="through 'base_camera', 'hand_camera'; PushCube-v1 has the cameras"):
        par_agent.make_env("PushCube", policy)
    env = par_agent.make_env("StackCube", policy)
    try:
        shown, _ = env.reset(seed=0)
        assert {name: tuple(data["rgb"].shape) for name, data in shown["sensor_data"].items()} == dict.fromkeys(
            BOTH, (1, 64, 64, 3)
        )
        assert policy.act(shown).shape == (1, 8)
    finally:
        env.close()
