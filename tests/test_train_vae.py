"""`par-agent train-vae` on made-up pictures: what it writes, resuming bit for bit, and data that does not fit."""

from __future__ import annotations

import errno
import json
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import pytest
import torch
from safetensors.torch import load_file

from par_agent.cli import main
from par_agent.data.episodes import RenderedDataset
from par_agent.data.patches import FrameSampler, split_paths
from par_agent.errors import UserError
from par_agent.modeling.vae.frame_vae import FrameVAE, FrameVAEConfig
from par_agent.modeling.weights import load_module
from par_agent.training import vae
from par_agent.training.vae import train_vae
from par_agent.training.vae_config import VAETraining
from par_agent.utils.interrupts import Interrupted
from rendered import write_dataset
from tiny import tiny_dataset

STEPS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, episodes=4)
    return folder


def options(data: Path, out: Path, **fields) -> VAETraining:
    sizes = {"steps": STEPS, "batch_size": 4, "patch": 12, "warmup": 2, "model": FrameVAEConfig(4, (8, 8))}
    return VAETraining(data=(data,), out=out, **{**sizes, **fields})


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train_vae(options(data, out))
    return out


def test_the_command_trains_saves_and_prints_its_error(data, trained, tmp_path, capsys):
    arguments = ["--data", str(data), "--out", str(tmp_path), "--steps", str(STEPS), "--batch-size", "4"]
    sizes = ["--patch", "12", "--warmup", "2", "--channels", "4", "--widths", "8", "8"]
    assert main(["train-vae", *arguments, *sizes]) == 0
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert config["channels"] == 4 and config["widths"] == [8, 8]
    assert f"{config['metrics']['psnr_db']:.2f} dB" in capsys.readouterr().out
    weights = "vae/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (trained / weights).read_bytes(), "equal commands, unequal weights"
    assert imageio.imread(tmp_path / "reconstructions.png").shape == (2 * 16, 4 * 24, 3)


def error(data: Path, out: Path) -> float:
    """Mean absolute reconstruction error of a run's VAE on its training frames, in grey levels."""
    encoder = FrameVAE(FrameVAEConfig(4, (8, 8)))
    load_module(encoder, out / "vae")
    frames = FrameSampler(split_paths([RenderedDataset(data)])[0], "render_camera", 0).patches(0, 50, None)
    return float((encoder.decode(encoder.encode(frames)).float() - frames).abs().mean())


def test_training_lowers_the_error(data, trained, tmp_path):
    train_vae(options(data, tmp_path, steps=10 * STEPS))
    assert error(data, tmp_path) < 0.75 * error(data, trained)


def test_latents_of_the_saved_vae_are_standardised(data, trained):
    encoder = FrameVAE(FrameVAEConfig(4, (8, 8)))
    load_module(encoder, trained / "vae")
    train, _ = split_paths([RenderedDataset(data)])
    frames = FrameSampler(train, "render_camera", 5).patches(0, 200, None)
    latents = encoder.encode(frames)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=0.2, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=0.2, rtol=0)


@pytest.mark.parametrize("stop", [1, 5, STEPS - 1])
def test_interrupted_and_resumed_gives_the_same_bytes_as_one_run(data, trained, tmp_path, monkeypatch, stop):
    steps = iter(range(STEPS))
    real = vae.vae_loss

    def interrupted(*arguments):
        if next(steps) == stop:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(vae, "vae_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_vae(options(data, tmp_path, save_minutes=0))
    assert [path.name for path in (tmp_path / "training_states").iterdir()] == [f"step_{stop:08d}"]
    monkeypatch.setattr(vae, "vae_loss", real)
    train_vae(options(data, tmp_path))
    for name in ("vae/model.safetensors", "vae/config.json", "reconstructions.png"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


def test_an_interruption_saves_the_step_in_hand(data, trained, tmp_path, monkeypatch):
    steps, real = iter(range(STEPS)), vae.vae_loss

    def told(*arguments):
        if next(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as interruption:
        patch.setattr(vae, "vae_loss", told)
        train_vae(options(data, tmp_path))
    assert interruption.value.kept == "the first 4 steps are saved, and the same command goes on from there"
    train_vae(options(data, tmp_path))
    weights = "vae/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (trained / weights).read_bytes()


def test_a_training_that_fails_leaves_no_thread_that_reads(data, tmp_path, monkeypatch):
    def fail(*_):
        raise ArithmeticError

    monkeypatch.setattr(vae, "vae_loss", fail)
    with pytest.raises(ArithmeticError) as failure:
        train_vae(options(data, tmp_path))
    assert failure.value.__traceback__ is not None  # which keeps what the loop had open
    assert [thread for thread in threading.enumerate() if thread.name == "prefetch"] == []


def test_the_same_command_after_the_end_changes_nothing(data, trained):
    before = (trained / "vae" / "model.safetensors").read_bytes()
    train_vae(options(data, trained))
    assert (trained / "vae" / "model.safetensors").read_bytes() == before


def test_other_settings_in_the_same_folder_are_refused(data, trained):
    with pytest.raises(UserError, match=r"begun with other settings \(kl_weight: 0\.0001 there, 0\.5 asked for"):
        train_vae(options(data, trained, kl_weight=0.5))


def test_settings_may_change_before_the_first_checkpoint(data, tmp_path, monkeypatch):
    monkeypatch.setattr(vae, "vae_loss", lambda *_: sys.exit(1))
    with pytest.raises(SystemExit):
        train_vae(options(data, tmp_path))
    monkeypatch.undo()
    assert train_vae(options(data, tmp_path, steps=1, kl_weight=0.5))["steps"] == 1


def test_a_full_disk_is_reported_and_leaves_the_checkpoint(data, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("par_agent.modeling.weights.write_tensors", full)
    sizes = ["--steps", "1", "--batch-size", "1", "--patch", "8", "--channels", "4", "--widths", "8"]
    assert main(["train-vae", "--data", str(data), "--out", str(tmp_path), *sizes]) == 2
    assert "No space left on device. What is finished is kept" in capsys.readouterr().err
    assert not (tmp_path / "vae" / "model.safetensors").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.undo()
    assert main(["train-vae", "--data", str(data), "--out", str(tmp_path), *sizes]) == 0
    assert "resumed from" in capsys.readouterr().out
    assert load_file(tmp_path / "vae" / "model.safetensors")


def test_patches_are_cut_out_of_frames_and_fixed_by_seed_and_step(data):
    paths = RenderedDataset(data).paths
    sampler = FrameSampler(paths, "render_camera", 7)
    patches = sampler.patches(3, 5, 8)
    assert patches.shape == (5, 8, 8, 3) and patches.dtype == torch.uint8
    assert torch.equal(patches, FrameSampler(paths, "render_camera", 7).patches(3, 5, 8))
    assert not torch.equal(patches, sampler.patches(4, 5, 8))
    assert sampler.patches(3, 5, None).shape == (5, 16, 24, 3)


def test_patches_are_drawn_from_all_cameras(tmp_path):
    paths = split_paths([RenderedDataset(tiny_dataset(tmp_path, cameras=("left", "right")))])[0]
    cameras = ("left", "right"), "left", "right"
    both, left, right = (FrameSampler(paths, camera, 7).patches(0, 40, None) for camera in cameras)
    assert not torch.equal(both, left)
    frames = {frame.numpy().tobytes() for frame in both}
    for one in (left, right):
        assert frames & {frame.numpy().tobytes() for frame in one}


def test_one_episode_in_twenty_of_every_dataset_is_held_out(tmp_path):
    for name, episodes in (("a", 41), ("b", 2)):
        write_dataset(tmp_path / name, episodes=episodes, size=(8, 8))
    train, held = split_paths([RenderedDataset(tmp_path / name) for name in ("a", "b")])
    assert [f"{path.parts[-3]}{path.stem[-2:]}" for path in held] == ["a00", "a20", "a40", "b00"]
    assert len(train) == 39 and not set(train) & set(held)


def test_a_single_episode_serves_both_sides(tmp_path):
    write_dataset(tmp_path, episodes=1)
    train, held = split_paths([RenderedDataset(tmp_path)])
    assert train == held and len(held) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"camera": "hand_camera"}, "no camera 'hand_camera'; it has render_camera"),
        ({"patch": 20}, "patch is 20; patches do not fit frames of 16x24"),
        ({"model": FrameVAEConfig(4, (8,) * 5), "patch": 32}, "16x24 pixels do not divide by the VAE's stride, 32"),
        ({"data": ()}, "data is empty"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_training(data, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        train_vae(replace(options(data, tmp_path), **fields))
    assert list(tmp_path.iterdir()) == []


def test_frames_of_unequal_sizes_are_refused(data, tmp_path):
    write_dataset(tmp_path / "other", size=(16, 16))
    with pytest.raises(UserError, match=r"differ in size \(16x24 in .*, 16x16 in .*other"):
        train_vae(replace(options(data, tmp_path / "out"), data=(data, tmp_path / "other")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"patch": 10}, "patch is 10; it must be a multiple of the VAE's stride, 4"),
    ],
)
def test_bad_options_are_refused(data, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        options(data, tmp_path, **fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(data, tmp_path):
    with pytest.raises(UserError, match="device 'cuda' cannot be used"):
        options(data, tmp_path, device="cuda")


def test_a_damaged_episode_is_named(tmp_path):
    write_dataset(tmp_path / "data", episodes=3)
    damaged = RenderedDataset(tmp_path / "data").paths[2]
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(UserError, match=rf"{damaged.name} is damaged"):
        train_vae(options(tmp_path / "data", tmp_path / "out"))
