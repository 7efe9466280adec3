"""`par-agent generate` turns a NOVA folder and a prompt into a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from nova_fixtures import write_released_folder
from par_agent.cli import main
from par_agent.modeling.text_encoder import PhiTextEncoder

WIDTH = 16
FAST = ["--mask-steps", "2", "--diffusion-steps", "2"]


@pytest.fixture(scope="module")
def nova_folder(tmp_path_factory) -> Path:
    return write_released_folder(tmp_path_factory.mktemp("released"), WIDTH)


def generate(folder: Path, out: Path, *options: str, prompt: str = "push the red cube") -> int:
    return main(["generate", "--model", str(folder), "--prompt", prompt, "--out", str(out), *FAST, *options])


def test_a_prompt_becomes_a_clip_of_as_many_frames_as_asked_for(nova_folder, tmp_path):
    assert generate(nova_folder, tmp_path / "clip.mp4", "--frames", "9") == 0
    assert imageio.imread(tmp_path / "clip.mp4").shape == (9, 64, 32, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_same_seed_gives_the_same_picture_and_another_prompt_another(nova_folder, tmp_path):
    pictures = []
    for name, prompt in (("a", "push"), ("b", "push"), ("c", "cube")):
        assert generate(nova_folder, tmp_path / f"{name}.png", "--frames", "1", prompt=prompt) == 0
        pictures.append(imageio.imread(tmp_path / f"{name}.png"))
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_a_clip_can_start_from_a_picture_of_any_size_and_run_in_bfloat16(nova_folder, tmp_path):
    imageio.imwrite(tmp_path / "start.png", np.full((50, 70, 3), 128, np.uint8))
    options = ["--frames", "5", "--image", str(tmp_path / "start.png"), "--dtype", "bfloat16", "--guidance", "1"]
    assert generate(nova_folder, tmp_path / "clip.gif", *options) == 0
    assert imageio.imread(tmp_path / "clip.gif").shape == (5, 64, 32, 3)


def test_cached_prompts_need_no_text_encoder(nova_folder, tmp_path):
    cache = tmp_path / "cache"
    PhiTextEncoder(nova_folder, cache=cache, dim=WIDTH, length=4).encode("push")
    bare = tmp_path / "bare"
    shutil.copytree(nova_folder, bare, ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    assert generate(bare, tmp_path / "a.png", "--frames", "1", "--text-cache", str(cache), prompt="push") == 0
    assert generate(bare, tmp_path / "b.png", "--frames", "1", "--text-cache", str(cache), prompt="cube") == 2


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("clip.mp4", ["--frames", "8"], "--frames is 8; allowed: 1, 5, 9"),
        ("clip.avi", [], "allowed: .mp4, .gif, .png"),
        ("clip.png", ["--frames", "9"], "holds one frame"),
        ("clip.mp4", ["--mask-steps", "0"], "mask_steps is 0"),
        ("clip.mp4", ["--image", "nowhere.png"], "cannot be read as a picture"),
        ("clip.mp4", ["--device", "abacus"], "device 'abacus' cannot be used"),
        ("clip.mp4", ["--fps", "0"], "fps is 0.0; it must be above 0"),
        ("clip.mp4", ["--guidance", "nan"], "guidance is nan"),
    ],
)
def test_bad_options_are_named_and_leave_no_file(nova_folder, tmp_path, capsys, out, options, message):
    assert generate(nova_folder, tmp_path / out, *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_named_before_any_work(nova_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert generate(nova_folder, tmp_path / "file" / "clip.mp4") == 2
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler", "text_encoder", "tokenizer"])
def test_a_folder_that_misses_a_part_is_refused_by_name(nova_folder, tmp_path, capsys, part):
    bare = tmp_path / "bare"
    shutil.copytree(nova_folder, bare, ignore=shutil.ignore_patterns(part))
    assert generate(bare, tmp_path / "clip.mp4") == 2
    assert f"bare lacks {part}; expected a released NOVA folder with transformer, vae" in capsys.readouterr().err
    assert not (tmp_path / "clip.mp4").exists()


def test_pixels_outside_the_range_are_clipped_not_wrapped():
    from par_agent.modeling.vae.frame_vae import to_frames

    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    assert to_frames(pixels)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
