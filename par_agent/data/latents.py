"""Frozen-VAE latents of rendered frames: cached on disk, or encoded when they are needed.

::

    dataset/latents/<camera>-<VAE hash>-<variants>x<shift>.npy   (variants, frames, C, h, w) float16, memory-mapped
                                                          .json  of which frames: the dataset's spec and their number

Variant 0 holds the frames as they are; in every further variant each episode is changed at random
(:mod:`par_agent.data.augmentation`), all of its frames alike. Without the cache every window is changed anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from par_agent.data.augmentation import Augmentation, Change
from par_agent.data.episodes import RenderedDataset, read_episode, read_frames
from par_agent.data.index import EpisodeIndex
from par_agent.errors import UserError
from par_agent.files import only_process, read_json, write_json
from par_agent.interrupts import deferred_interrupts

Encoder = Callable[[Tensor], Tensor]
"""Frames (B, H, W, 3) uint8 to scaled latents (B, C, h, w)."""

AT_ONCE = 64
"""Frames that are encoded together."""


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
    """Copies of every frame in the cache, the first unchanged."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How far the others are changed."""

    def __post_init__(self) -> None:
        if self.variants < 1:
            raise UserError(f"variants is {self.variants}; it must be at least 1, the unchanged frames")

    def name(self, dataset: RenderedDataset) -> str:
        """File name of the cache without its suffix."""
        name = f"{self.camera}-{self.encoder_hash}-{self.variants}x{self.augmentation.shift}"
        if self.augmentation.color_jitter:
            name += f"-color{self.augmentation.color_jitter:g}"
        if dataset.skipped:
            names = " ".join(path.name for path in dataset.skipped)
            name += f"-without-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
        return name


class LatentSource(Protocol):
    """Where training windows get their latents from."""

    def read(self, rows: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
        """What is stored of frames ``rows`` (n,) int64, ascending, of one episode: an array with leading dimension n.

        All are augmented alike, as ``generator`` draws it; not at all if it is None.
        """

    def latents(self, stored: np.ndarray) -> Tensor:
        """Scaled latents (n, C, h, w) float32 of what :meth:`read` gave, of any number of episodes."""


class CachedLatents:
    """Latents that were computed before.

    Args:
        array: (variants, frames, C, h, w) of any float type, for example from :func:`cached_latents`.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def read(self, rows: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
        variant = 0 if generator is None else int(generator.integers(len(self._array)))
        return self._array[variant, rows]

    def latents(self, stored: np.ndarray) -> Tensor:
        return torch.from_numpy(stored).float()


class EncodedFrames:
    """Latents of frames that are read from disk, changed and encoded when they are needed.

    Raises:
        UserError: see :func:`check_camera`.
    """

    def __init__(self, index: EpisodeIndex, spec: LatentSpec, encode: Encoder) -> None:
        check_camera(index.dataset, spec.camera)
        self._index, self._spec, self._encode = index, spec, encode

    def read(self, rows: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
        path, first = self._index.file_of(int(rows[0]))
        change = Change() if generator is None else self._spec.augmentation.draw(generator)
        return change(read_frames(path, self._spec.camera, rows - first))

    def latents(self, stored: np.ndarray) -> Tensor:
        return _encode(stored, self._spec, self._encode).float()


def changes(seed: int, spec: LatentSpec) -> list[Change]:
    """The change of every variant of the episode of an environment seed; the first is none."""
    augmentation = spec.augmentation
    moves = np.random.default_rng([seed, augmentation.shift])
    shifts = moves.integers(-augmentation.shift, augmentation.shift + 1, (spec.variants, 2)).tolist()
    colors = np.random.default_rng([seed, augmentation.shift, 1])
    factors = colors.uniform(1 - augmentation.color_jitter, 1 + augmentation.color_jitter, (spec.variants, 3)).tolist()
    drawn = [Change((s[0], s[1]), (f[0], f[1], f[2])) for s, f in zip(shifts, factors, strict=True)]
    return [Change(), *drawn[1:]]


def check_camera(dataset: RenderedDataset, camera: str) -> None:
    """Checks that a dataset has a camera.

    Raises:
        UserError: it has not.
    """
    if camera not in dataset.cameras:
        raise UserError(
            f"{dataset.folder} holds no camera {camera!r}; it has {', '.join(dataset.cameras)}: render it "
            f"again with --cameras {camera}"
        )


def cached_latents(index: EpisodeIndex, spec: LatentSpec, encode: Encoder) -> np.ndarray:
    """Latents (variants, frames of all episodes, C, h, w) float16, memory-mapped; computed where they are missing.

    Computing resumes where it was stopped; the file has its final name only when complete. Latents of a dataset that
    was rendered anew in another way are computed anew.

    Raises:
        UserError: the dataset lacks the camera, its frames do not give latents of the expected shape, an episode is
            damaged, or another process computes them now.
        Interrupted: the process was told to end.
    """
    dataset = index.dataset
    check_camera(dataset, spec.camera)
    final = dataset.folder / "latents" / f"{spec.name(dataset)}.npy"
    final.parent.mkdir(parents=True, exist_ok=True)
    frames = {"spec": dataset.spec, "frames": index.num_frames}
    if not _complete(final, frames):
        doing = f"computes the latents of {dataset.folder}"
        with only_process(final.with_suffix(".lock"), doing, within=final.parent):
            _compute(index, spec, encode, final, frames)
    return np.load(final, mmap_mode="r")


def _complete(final: Path, frames: dict[str, Any]) -> bool:
    """Whether the latents are there and, as far as is known, those of ``frames``."""
    about = final.with_suffix(".json")
    return final.exists() and (not about.exists() or read_json(about) == frames)


def _compute(index: EpisodeIndex, spec: LatentSpec, encode: Encoder, final: Path, frames: dict[str, Any]) -> None:
    partial, record = final.with_suffix(".partial"), final.with_suffix(".progress.json")
    shape = (spec.variants, index.num_frames, *spec.shape)
    final.unlink(missing_ok=True)
    begun = read_json(record) if partial.exists() and record.exists() else {}
    if begun.get("of") == frames:
        episode, row = int(begun["episodes"]), int(begun["frames"])
        array = open_memmap(partial, mode="r+")
    else:
        episode = row = 0
        array = open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
    paths = index.dataset.paths[episode:]
    with deferred_interrupts() as interrupts:
        for path in tqdm(paths, desc=f"latents of {index.dataset.folder.name}", unit="episode"):
            row += _encode_episode(path, spec, encode, array, row)
            episode += 1
            if episode % 50 == 0 or interrupts.received is not None:
                array.flush()
                write_json(record, {"of": frames, "episodes": episode, "frames": row})
            interrupts.check()
    array.flush()
    write_json(final.with_suffix(".json"), frames)
    partial.replace(final)
    record.unlink(missing_ok=True)


def _encode_episode(path: Path, spec: LatentSpec, encode: Encoder, array: np.ndarray, row: int) -> int:
    """Encodes one episode into ``array`` from ``row``; returns its number of frames."""
    episode = read_episode(path)
    frames = episode.frames[spec.camera]
    changed = np.concatenate([change(frames) for change in changes(int(episode.attributes["seed"]), spec)])
    latents = _encode(changed, spec, encode).numpy()
    array[:, row : row + len(frames)] = latents.reshape(spec.variants, len(frames), *spec.shape)
    return len(frames)


def _encode(frames: np.ndarray, spec: LatentSpec, encode: Encoder) -> Tensor:
    """Latents (n, C, h, w), on the CPU, of frames (n, H, W, 3) uint8.

    Raises:
        UserError: they have another shape than the model reads.
    """
    parts = torch.from_numpy(np.ascontiguousarray(frames)).split(AT_ONCE)
    latents = torch.cat([encode(part).cpu() for part in parts])
    if tuple(latents.shape[1:]) != spec.shape:
        raise UserError(
            f"frames of {frames.shape[1]}x{frames.shape[2]} pixels give latents {tuple(latents.shape[1:])}; the model "
            f"reads {spec.shape}: render the dataset with another crop or size"
        )
    return latents


def file_hash(path: Path) -> str:
    """First 12 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
