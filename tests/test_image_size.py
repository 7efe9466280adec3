"""The size of the camera's whole image goes with data and checkpoints: a crop means nothing without it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from par_agent import PARPolicy
from par_agent.data.conventions import check_frames, fit_transforms, image_size
from par_agent.data.episodes import RenderedDataset, read_episode, summarise, write_episode
from par_agent.data.index import EpisodeIndex
from par_agent.errors import UserError
from par_agent.policy.checkpoint import Checkpoint
from par_agent.training.finetune import finetune
from rendered import write_dataset
from tiny import LENGTH, tiny_checkpoint, tiny_run

CROP = {"size": (16, 16), "crop": (4, 8, 16, 16)}


def written(folder: Path, size: tuple[int, int] | None, camera: str = "base_camera") -> EpisodeIndex:
    write_dataset(folder, image_size=size, cameras=(camera,), **CROP)
    return EpisodeIndex(RenderedDataset(folder), LENGTH)


def test_transforms_know_the_size_of_the_images_that_the_frames_are_cut_of(tmp_path: Path) -> None:
    index = written(tmp_path / "data", (24, 32))
    assert index.dataset.image_size("base_camera") == (24, 32)
    size = image_size([index.dataset], "base_camera")
    assert fit_transforms([index], "base_camera", size).image_size == (24, 32)


def test_datasets_that_do_not_say_are_rendered_as_their_task_says(tmp_path: Path) -> None:
    index = written(tmp_path / "data", None, "render_camera")
    assert index.dataset.image_size("render_camera") is None
    assert image_size([index.dataset], "render_camera") == (512, 512)
    assert image_size([index.dataset], "base_camera") is None


def test_data_of_images_of_different_sizes_are_not_mixed(tmp_path: Path) -> None:
    small, large = written(tmp_path / "small", (24, 32)), written(tmp_path / "large", (48, 64))
    with pytest.raises(UserError, match=r"images of base_camera differ in size \(.*small: 24x32; .*large: 48x64\)"):
        image_size([small.dataset, large.dataset], "base_camera")
    path = small.dataset.paths[1]
    episode = read_episode(path)
    write_episode(path, dataclasses.replace(episode, attributes=episode.attributes | {"image_size.base_camera": "9x9"}))
    with pytest.raises(UserError, match=r"images of base_camera were 9x9, those of earlier episodes 24x32"):
        summarise(small.dataset.folder)
    with pytest.raises(UserError, match=r"its images of base_camera were \(9, 9\); the dataset's \(24, 32\)"):
        EpisodeIndex(RenderedDataset(small.dataset.folder), LENGTH)
    write_episode(path, dataclasses.replace(episode, attributes=episode.attributes | {"image_size.base_camera": "24"}))
    with pytest.raises(UserError, match=r"attribute image_size.base_camera is '24'; expected a size such as '512x512'"):
        read_episode(path)


def test_a_checkpoint_refuses_data_of_images_of_another_size(tmp_path: Path) -> None:
    transforms = tiny_checkpoint("base_camera").transforms
    assert transforms is not None and transforms.image_size == (24, 32)
    check_frames([written(tmp_path / "same", (24, 32))], transforms, "par-tiny")
    check_frames([written(tmp_path / "old", None)], transforms, "par-tiny")
    with pytest.raises(UserError, match=r"cut from 48x64 images of base_camera; par-tiny was trained on 24x32 images"):
        check_frames([written(tmp_path / "large", (48, 64))], transforms, "par-tiny")


def test_a_checkpoint_that_did_not_know_its_image_size_learns_it_from_its_data(tmp_path: Path) -> None:
    data = tmp_path / "mine"
    write_dataset(data, image_size=(48, 64), **CROP)
    config = tiny_run(tmp_path, data=(data,), steps=2, batch_size=2)
    content = json.loads((tmp_path / "init" / "policy.json").read_text())
    content["transforms"]["image_size"] = None
    (tmp_path / "init" / "policy.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="write their height and width into policy.json"):
        PARPolicy.from_pretrained(tmp_path / "init", "push")
    finetune(config)
    transforms = Checkpoint.load(config.out / "policy").transforms
    assert transforms is not None and transforms.image_size == (48, 64)
