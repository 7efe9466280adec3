"""Frozen-VAE latents of a rendered dataset, computed once and kept on disk beside it.

::

    dataset/latents/<camera>-<VAE hash>-<variants>x<shift>.npy   (variants, frames, C, h, w) float16, memory-mapped

Variant 0 holds the frames as they are; in every further variant each episode is shifted by a random whole number of
pixels, the same for all of its frames (edges repeated): the augmentation of training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.errors import UserError
from par_agent.files import read_json, write_json

Encoder = Callable[[Tensor], Tensor]
"""Frames (B, H, W, 3) uint8 to scaled latents (B, C, h, w)."""


@dataclass(frozen=True)
class LatentSpec:
    """What decides the latents of a dataset."""

    camera: str
    """Camera of the frames."""
    encoder_hash: str
    """Identifies the frozen encoder, for example the hash of its weights."""
    shape: tuple[int, int, int]
    """Channels, height and width of one latent frame."""
    variants: int = 4
    """Copies of every frame, the first unshifted."""
    shift: int = 6
    """Largest shift of a variant, pixels."""

    @property
    def name(self) -> str:
        """File name without its suffix."""
        return f"{self.camera}-{self.encoder_hash}-{self.variants}x{self.shift}"


def shifts(seed: int, spec: LatentSpec) -> np.ndarray:
    """Downward and rightward shift (variants, 2) in pixels of the episode of an environment seed."""
    drawn = np.random.default_rng([seed, spec.shift]).integers(-spec.shift, spec.shift + 1, (spec.variants, 2))
    drawn[0] = 0
    return drawn


def shift_frames(frames: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Shifts frames (K, H, W, 3) by (down, right) pixels; edge pixels repeat."""
    down, right = (int(value) for value in shift)
    rows = np.clip(np.arange(frames.shape[1]) - down, 0, frames.shape[1] - 1)
    columns = np.clip(np.arange(frames.shape[2]) - right, 0, frames.shape[2] - 1)
    return frames[:, rows][:, :, columns]


def cached_latents(dataset: RenderedDataset, spec: LatentSpec, encode: Encoder) -> np.ndarray:
    """Latents (variants, frames of all episodes, C, h, w) float16, memory-mapped; computed where they are missing.

    Computing resumes where it was stopped; the file has its final name only when complete.

    Raises:
        UserError: the dataset lacks the camera, or its frames do not give latents of the expected shape.
    """
    if spec.camera not in dataset.cameras:
        raise UserError(
            f"{dataset.folder} holds no camera {spec.camera!r}; it has {', '.join(dataset.cameras)}: render it "
            f"again with --cameras {spec.camera}"
        )
    final = dataset.folder / "latents" / f"{spec.name}.npy"
    if not final.exists():
        _compute(dataset, spec, encode, final)
    return np.load(final, mmap_mode="r")


def _compute(dataset: RenderedDataset, spec: LatentSpec, encode: Encoder, final: Path) -> None:
    partial, record = final.with_suffix(".partial"), final.with_suffix(".progress.json")
    shape = (spec.variants, dataset.summary["num_frames"], *spec.shape)
    if partial.exists() and record.exists():
        content = read_json(record)
        episode, row = int(content["episodes"]), int(content["frames"])
        array = open_memmap(partial, mode="r+")
    else:
        final.parent.mkdir(parents=True, exist_ok=True)
        episode = row = 0
        array = open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
    paths = dataset.paths[episode:]
    for path in tqdm(paths, desc=f"latents of {dataset.folder.name}", unit="episode"):
        row += _encode_episode(path, spec, encode, array, row)
        episode += 1
        if episode % 50 == 0:
            array.flush()
            write_json(record, {"episodes": episode, "frames": row})
    array.flush()
    partial.replace(final)
    record.unlink(missing_ok=True)


def _encode_episode(path: Path, spec: LatentSpec, encode: Encoder, array: np.ndarray, row: int) -> int:
    """Encodes one episode into ``array`` from ``row``; returns its number of frames."""
    episode = read_episode(path)
    frames = episode.frames[spec.camera]
    seed = int(episode.attributes["seed"])
    moved = np.concatenate([shift_frames(frames, shift) for shift in shifts(seed, spec)])
    latents = torch.cat([encode(part) for part in torch.from_numpy(moved).split(64)]).cpu().numpy()
    if latents.shape[1:] != spec.shape:
        raise UserError(
            f"frames of {frames.shape[1]}x{frames.shape[2]} pixels in {path} give latents {latents.shape[1:]}; the "
            f"model reads {spec.shape}: render the dataset with another crop or size"
        )
    array[:, row : row + len(frames)] = latents.reshape(spec.variants, len(frames), *spec.shape)
    return len(frames)


def file_hash(path: Path) -> str:
    """First 12 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
