"""Training on data of every kind: other robots, frames without cache, damaged episodes, whole episodes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from par_agent import PARPolicy
from par_agent.data.episodes import read_episode, write_episode
from par_agent.errors import UserError
from par_agent.training.config import DatasetConfig, FinetuneConfig, OptimiserConfig
from par_agent.training.finetune import finetune
from tiny import tiny_checkpoint, tiny_dataset, with_options

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    """A run of two steps from a tiny checkpoint."""
    tiny_checkpoint().save(tmp_path / "init")
    return FinetuneConfig(
        out=tmp_path / "run",
        data=(tiny_dataset(tmp_path / "data"),),
        init=tmp_path / "init",
        steps=2,
        batch_size=4,
        window=2,
        dataset=DatasetConfig(variants=2, shift=1),
        optimiser=OptimiserConfig(warmup=1),
    )


def so100(folder: Path) -> Path:
    """The tiny dataset as of a robot with 6 joints that are all commanded."""
    for path in sorted((tiny_dataset(folder) / "episodes").iterdir()):
        episode = read_episode(path)
        assert episode.actions is not None
        arrays = {"proprioception": episode.proprioception[:, :6], "actions": episode.actions[:, :6]}
        write_episode(path, dataclasses.replace(episode, **arrays))
    return folder


def act(policy: PARPolicy, joints: int) -> torch.Tensor:
    image = torch.zeros(1, *(policy.transforms.image_size or (24, 32)), 3, dtype=torch.uint8)
    return policy.act({"agent": {"qpos": torch.zeros(1, joints)}, "sensor_data": {"render_camera": {"rgb": image}}})


def test_another_robot_is_refused_unless_asked_for_and_keeps_the_video_parts(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    config = with_options(config, data=(so100(tmp_path / "so100"),))
    with pytest.raises(UserError, match=r"so100 has 6 numbers per action, the checkpoint .* --new-robot"):
        finetune(config)
    finetune(with_options(config, new_robot=True, learning_rate=1e-12))
    policy = PARPolicy.from_pretrained(config.out / "policy", "push cube 1")
    assert policy.action_size == 6 and policy.transforms.relative == (True,) * 6
    assert act(policy, 6).shape == (1, 6)
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "init", config.out / "policy"))
    for name, value in after.items():
        if name.startswith("nova."):
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6, msg=name)


def test_new_robot_without_a_checkpoint_is_refused(config: FinetuneConfig) -> None:
    with pytest.raises(UserError, match="--new-robot keeps the video parts of a checkpoint: give it with --init"):
        with_options(config, init=None, new_robot=True)


@pytest.mark.parametrize("changes", [{"cache": False, "color_jitter": 0.3}, {"color_jitter": 0.3}, {"window": 9}])
def test_every_way_of_reading_frames_trains_to_the_end(config: FinetuneConfig, changes: dict) -> None:
    config = with_options(config, **changes)
    finetune(config)
    assert act(PARPolicy.from_pretrained(config.out / "policy", "push cube 0"), 9).isfinite().all()
    assert (config.data[0] / "latents").exists() == config.dataset.cache


def test_training_goes_on_without_a_damaged_episode_only_when_told(config: FinetuneConfig) -> None:
    path = config.data[0] / "episodes" / "episode_000003.h5"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"episode_000003\.h5 is damaged .* --skip-corrupt"):
        finetune(config)
    finetune(with_options(config, skip_corrupt=True))
    assert np.isfinite(load_file(config.out / "policy" / "model.safetensors")["nova.mask_embed.bos_token"]).all()


def test_fewer_demonstrations_are_trained_on(config: FinetuneConfig) -> None:
    trained = finetune(with_options(config, demos=3)).trained
    assert trained["demonstrations"] == {"data": 3} and trained["options"]["demos"] == 3
    with pytest.raises(UserError, match=r"has 5 episodes to train on, not 6"):
        finetune(with_options(config, demos=6, out=config.out.with_name("more")))
