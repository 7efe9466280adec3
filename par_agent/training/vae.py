"""Trains the small frame VAE on rendered frames (with or without actions)."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from par_agent.data.episodes import ADVICE, IMAGES, RenderedDataset, damaged_episode, open_datasets
from par_agent.data.prefetch import prefetch
from par_agent.errors import UserError
from par_agent.modeling.random_numbers import seeded_generator
from par_agent.modeling.vae.frame_encoder import save_frame_encoder
from par_agent.modeling.vae.frame_vae import FrameVAE, FrameVAEConfig, to_pixels, vae_loss
from par_agent.training.optimisation import clip_and_step, learning_rate, make_optimizer, set_learning_rate
from par_agent.training.state import latest_training_state, load_training_state, save_training_state, saved_steps
from par_agent.utils.checked import Checked, Count, Minutes, NonNegative, Pixels, Range, Seed, Size, Strength
from par_agent.utils.device import moved, usable_device
from par_agent.utils.files import atomic_path, claimed_folder, only_process
from par_agent.utils.hdf5 import HDF5Reader
from par_agent.utils.image_quality import psnr, psnr_of_error
from par_agent.utils.interrupts import Interrupted, deferred_interrupts

HELD_OUT = 20
"""One episode in this many is kept for validation."""


@dataclass(frozen=True)
class VAETraining(Checked):
    """Trains a frame VAE on rendered datasets; run the same command again to resume."""

    data: tuple[Path, ...]
    """Rendered datasets, with or without actions."""
    out: Path
    """Folder of the run; the trained VAE is written to its `vae` folder."""
    camera: str = "render_camera"
    """Camera whose frames to train on."""
    steps: Count = 1500
    """Optimiser steps."""
    batch_size: Size = 32
    """Patches per step."""
    patch: Pixels = 160
    """Side of the square patches in pixels."""
    learning_rate: Annotated[float, Range(0, 100, above=True)] = 2e-3
    """Peak learning rate of AdamW."""
    warmup: NonNegative = 50
    """Steps of linear warm-up."""
    kl_weight: Strength = 1e-4
    """Weight of the KL divergence."""
    seed: Seed = 0
    """Random seed of initial weights, data order and noise."""
    save_minutes: Minutes = 2.0
    """Minutes between saved training states."""
    device: str = "cpu"
    """cpu or cuda."""
    model: FrameVAEConfig = field(default_factory=FrameVAEConfig)
    """Sizes of the VAE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch % self.model.stride:
            raise UserError(f"patch is {self.patch}; it must be a multiple of the VAE's stride, {self.model.stride}")
        usable_device(self.device)


class FrameSampler:
    """Random square patches of random frames, fixed by seed and step."""

    def __init__(self, paths: list[Path], camera: str, seed: int) -> None:
        self.paths, self.camera, self.seed = paths, camera, seed

    def patches(self, step: int, count: int, size: int | None) -> Tensor:
        """(count, size, size, 3) uint8 patches; whole frames if ``size`` is None."""
        generator = np.random.default_rng([self.seed, step])
        images: list[np.ndarray] = []
        for index in generator.integers(len(self.paths), size=count):
            name = f"frames/{self.camera}"
            with HDF5Reader(self.paths[index], ADVICE) as file:
                frames, *extents, _ = file.check(name, np.uint8, IMAGES)
                if not frames or min(extents) < (size or 1):
                    raise file.damaged(f"{name} has {frames} frames of {extents[0]}x{extents[1]} pixels")
                row = np.array([generator.integers(frames)])
                image = file.array(name, np.uint8, IMAGES, rows=row)[0]
            if size is not None:
                top, left = (int(generator.integers(extent - size + 1)) for extent in image.shape[:2])
                image = image[top : top + size, left : left + size]
            elif images and image.shape != images[0].shape:
                raise damaged_episode(self.paths[index], "its frames have another size than those of others")
            images.append(image)
        return torch.from_numpy(np.stack(images))


def check_frames(datasets: list[RenderedDataset], options: VAETraining) -> None:
    """Looks at one episode of each dataset before hours of training.

    Raises:
        UserError: there are no datasets, or their frames do not fit the options or one another.
    """
    if not datasets:
        raise UserError("no rendered dataset given; name at least one with --data")
    sizes = {}
    for dataset in datasets:
        if options.camera not in dataset.cameras:
            raise UserError(f"{dataset.folder} has no camera {options.camera!r}; it has {', '.join(dataset.cameras)}")
        sizes[dataset.folder] = dataset.read(dataset.paths[0]).frames[options.camera].shape[1:3]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{height}x{width} in {folder}" for folder, (height, width) in sizes.items())
        raise UserError(f"the datasets' frames differ in size ({listed}); render them with one crop and size")
    height, width = next(iter(sizes.values()))
    stride = options.model.stride
    if height % stride or width % stride:
        raise UserError(
            f"frames of {height}x{width} pixels do not divide by the VAE's stride, {stride}; render them with another "
            "crop or size"
        )
    if options.patch > min(height, width):
        raise UserError(f"patch is {options.patch}; patches do not fit frames of {height}x{width} pixels")


def split_paths(datasets: list[RenderedDataset]) -> tuple[list[Path], list[Path]]:
    """Episode files for training and for validation, one in :data:`HELD_OUT` of each dataset."""
    paths = [path for dataset in datasets for path in dataset.paths]
    held = [path for dataset in datasets for path in dataset.paths[::HELD_OUT]]
    taken = set(held)
    return [path for path in paths if path not in taken] or paths, held


def train_vae(options: VAETraining) -> dict[str, Any]:
    """Runs or resumes training, writes the frozen VAE into ``out`` and returns its measurements.

    Raises:
        UserError: data that does not fit, a run folder of other settings or of another process, a diverging loss, a
            full disk.
        Interrupted: the process was told to end; the step in hand is done and saved.
    """
    datasets = open_datasets(options.data)
    check_frames(datasets, options)
    with (
        only_process(options.out / ".lock", f"trains in {options.out}", within=options.out),
        claimed_folder(
            options.out / "train_vae.json",
            dataclasses.asdict(options),
            begun=lambda: latest_training_state(options.out / "training_states") is not None,
            free=("out", "save_minutes", "device"),
        ),
    ):
        return _go_on(options, *split_paths(datasets))


def _go_on(options: VAETraining, train: list[Path], held: list[Path]) -> dict[str, Any]:
    """Trains from the last training state on, and measures."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    vae = FrameVAE(options.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(vae, options.learning_rate, 0.0)
    found, start = latest_training_state(options.out / "training_states"), 0
    if found is not None:
        start = load_training_state(found, {"model": vae.state_dict()}, optimizer)["step"]
        print(f"resumed from {found}")
    _train(vae, optimizer, options, FrameSampler(train, options.camera, options.seed), start)
    return finish(vae, options, train, held)


def _train(
    vae: FrameVAE, optimizer: torch.optim.Optimizer, options: VAETraining, sampler: FrameSampler, start: int
) -> None:
    """Does the steps from ``start`` on and saves the last one."""
    states, device, saved = options.out / "training_states", torch.device(options.device), time.monotonic()

    def patches(step: int) -> Tensor:
        return sampler.patches(step, options.batch_size, options.patch)

    with (
        deferred_interrupts() as interrupts,
        prefetch(patches, start, options.steps) as batches,
        tqdm(total=options.steps, initial=start, desc="train-vae", unit="step") as progress,
    ):
        for step, batch in enumerate(batches, start):
            set_learning_rate(optimizer, learning_rate(step, options.steps, options.warmup, options.learning_rate))
            generator = seeded_generator(options.seed * 1_000_003 + step)
            pixels = to_pixels(moved(batch, device)).contiguous(memory_format=torch.channels_last)
            loss, squared = vae_loss(vae, pixels, options.kl_weight, generator)
            loss.backward()
            clip_and_step(vae, optimizer, 1.0, f"at step {step}")
            progress.update(1)
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss.item():.4f}", psnr=f"{psnr_of_error(squared.item(), 2):.1f}dB")
            told, late = interrupts.received, time.monotonic() - saved > 60 * options.save_minutes
            if late or told is not None or step + 1 == options.steps:
                save_training_state(states, step + 1, {"model": vae.state_dict()}, optimizer, {}, keep=1)
                saved = time.monotonic()
            if told is not None:
                raise Interrupted(told, saved_steps(states))


def finish(vae: FrameVAE, options: VAETraining, train: list[Path], held: list[Path]) -> dict[str, Any]:
    """Measures the latents' scale and the held-out error; saves the frozen VAE and a picture of reconstructions."""
    vae.eval()
    frames = FrameSampler(train, options.camera, options.seed + 1).patches(0, 256, None).to(options.device)
    latents = torch.cat([vae.encode(part) for part in frames.split(32)])
    vae.set_scale(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    frames = FrameSampler(held, options.camera, options.seed + 2).patches(0, 64, None).to(options.device)
    shown = torch.cat([vae.decode(vae.encode(part)) for part in frames.split(32)])
    quality = psnr(shown.cpu(), frames.cpu())
    metrics = {"psnr_db": round(quality, 2), "steps": options.steps, "held_out_episodes": len(held)}
    picture(frames[:4].cpu().numpy(), shown[:4].cpu().numpy(), options.out / "reconstructions.png")
    save_frame_encoder(vae, options.out / "vae", metrics)
    return metrics


def picture(frames: np.ndarray, shown: np.ndarray, path: Path) -> None:
    """Writes a PNG: given frames above, reconstructions below."""
    import imageio.v3 as iio

    rows = np.concatenate([np.concatenate(list(images), axis=1) for images in (frames, shown)], axis=0)
    with atomic_path(path) as temporary:
        iio.imwrite(temporary, rows, extension=".png")
