"""A cache of latents on disk, with two hashes of every episode.

::

    dataset/latents/<camera>-<VAE hash>-<variants>x<shift>.npy   (variants, frames, C, h, w) float16
                                                          .json  hashes of each episode's file and latents

Both hashes are compared before every run, which costs far less than reading the frames. Episodes whose hashes are
missing or differ are encoded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import os
from math import prod
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from par_agent.data.episodes import damaged_episode
from par_agent.data.index import EpisodeIndex
from par_agent.data.latents import Encoder, LatentSpec, changes, encode_frames
from par_agent.errors import UserError
from par_agent.utils.files import check_writable, only_process, read_content, read_object, remedy, write_json, writing
from par_agent.utils.interrupts import deferred_interrupts

FORMAT = 2
"""Version of the cache; goes up when latents are computed differently."""

EPISODES_PER_SAVE = 50
"""Episodes between two writings of the progress file."""

Shape = tuple[int, int, int, int, int]
"""Variants V, frames N, channels C, height h and width w."""

STORED = np.dtype("<f2")
"""Type of the numbers."""

Hashes = dict[str, tuple[str, str]]
"""Name of an episode file -> hash of its bytes, hash of its latents."""


class _Record(TypedDict):
    """What the JSON beside a cache holds."""

    made: int
    encoder: str
    episodes: dict[str, tuple[str, str]]


class CachedLatents:
    """Latents that are kept on disk.

    Raises:
        UserError: the dataset lacks the camera.
    """

    def __init__(self, index: EpisodeIndex, spec: LatentSpec, encode: Encoder) -> None:
        index.dataset.check_camera(spec.camera)
        self._index, self._spec, self._encode = index, spec, encode
        self._file: LatentFile | None = None

    def prepare(self) -> None:
        """Computes what is missing; see :func:`cached_latents`."""
        self._file = cached_latents(self._index, self._spec, self._encode)

    def read(self, rows: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
        assert self._file is not None, "prepare() comes first"
        variant = 0 if generator is None else int(generator.integers(len(self._file)))
        return self._file[variant, rows]

    def latents(self, stored: np.ndarray) -> Tensor:
        return torch.from_numpy(stored).float()


def cached_latents(index: EpisodeIndex, spec: LatentSpec, encode: Encoder) -> LatentFile:
    """Latents of all episodes' frames; computes those that are missing or whose hashes differ.

    Computing resumes where it was stopped; the file has its final name only when complete.

    Raises:
        UserError: the dataset lacks the camera, its frames do not give latents of the expected shape, an episode is
            damaged, another process computes them now, or they cannot be written.
        Interrupted: the process was told to end.
    """
    dataset = index.dataset
    dataset.check_camera(spec.camera)
    path = dataset.folder / "latents" / f"{spec.name(dataset)}.npy"
    cache = _Cache(index, spec, path)
    if len(cache.intact(path, cache.record)) < len(dataset):
        try:
            check_writable(path.parent)
        except UserError as error:
            raise UserError(f"{error}; or train without latents on disk: --no-cache") from None
        lock, doing = path.with_suffix(".lock"), f"computes the latents of {dataset.folder}"
        with writing(path.parent), only_process(lock, doing, within=path.parent):
            cache.compute(encode)
    return LatentFile(path, cache.shape)


class _Cache:
    """Compares a cache with its dataset and completes it."""

    def __init__(self, index: EpisodeIndex, spec: LatentSpec, path: Path) -> None:
        self.index, self.spec, self.path, self.record = index, spec, path, path.with_suffix(".json")
        self.shape: Shape = (spec.variants, index.num_frames, *spec.shape)
        paths = tqdm(index.dataset.paths, desc=f"check {index.dataset.folder.name}", unit="episode", delay=2)
        self.contents = {file.name: _hash(read_content(file)) for file in paths}

    def intact(self, path: Path, record: Path) -> Hashes:
        """Hashes of the episodes whose latents in a file are as its record says; empty where the file does not fit."""
        known = self._read(record) if file_fits(path, self.shape) else {}
        if not known:
            return {}
        file, found = LatentFile(path, self.shape), {}
        for number, (name, content) in enumerate(self.contents.items()):
            if known.get(name) == (content, _hash(file.read(self.index.frames_of(number)).data)):
                found[name] = known[name]
        return found

    def compute(self, encode: Encoder) -> None:
        """Encodes what no file holds."""
        partial, progress = self.path.with_suffix(".partial"), self.path.with_suffix(".progress.json")
        older, done = self.intact(self.path, self.record), self.intact(partial, progress)
        source = LatentFile(self.path, self.shape) if older else None
        file = LatentFile(partial, self.shape, writable=True) if done else None
        paths = tqdm(self.index.dataset.paths, desc=f"latents of {self.index.dataset.folder.name}", unit="episode")
        try:
            with deferred_interrupts() as interrupts, contextlib.closing(paths):
                for number, path in enumerate(paths):
                    interrupts.check()
                    if path.name in done:
                        continue
                    rows = self.index.frames_of(number)
                    copied = source is not None and path.name in older
                    latents = source.read(rows) if source and copied else self._encode(path, rows, encode)
                    file = file or LatentFile.create(partial, self.shape)
                    file.write(rows, latents)
                    done[path.name] = (self.contents[path.name], _hash(latents.data))
                    if len(done) % EPISODES_PER_SAVE == 0:
                        self._write(progress, done)
        except BaseException:
            with contextlib.suppress(OSError):
                if done:
                    self._write(progress, done)
                else:
                    partial.unlink(missing_ok=True)
                    progress.unlink(missing_ok=True)
            raise
        self._write(self.record, done)
        partial.replace(self.path)
        progress.unlink(missing_ok=True)

    def _encode(self, path: Path, rows: range, encode: Encoder) -> np.ndarray:
        """Latents (V, n, C, h, w) float16 of an episode."""
        spec, episode = self.spec, self.index.dataset.read(path)
        frames = episode.frames[spec.camera]
        if len(frames) != len(rows):
            raise damaged_episode(path, f"{len(frames)} frames, and {len(rows)} when it was first read")
        changed = np.concatenate([change(frames) for change in changes(int(episode.attributes["seed"]), spec)])
        latents = np.ascontiguousarray(encode_frames(changed, spec, encode).numpy(), STORED)
        return latents.reshape(spec.variants, len(frames), *spec.shape)

    def _write(self, record: Path, done: Hashes) -> None:
        write_json(record, {"made": FORMAT, "encoder": self.spec.encoder_config, "episodes": done})

    def _read(self, record: Path) -> Hashes:
        """Hashes in a record; empty where it is damaged or of another encoder."""
        try:
            content = read_object(record, _Record)
        except UserError:
            return {}
        if (content["made"], content["encoder"]) != (FORMAT, self.spec.encoder_config):
            return {}
        return {name: (hashes[0], hashes[1]) for name, hashes in content["episodes"].items()}


def _hash(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class LatentFile:
    """An open ``.npy`` file of (V, N, C, h, w) float16 that :func:`file_fits`, read and written piece by piece.

    It is not mapped into memory: where a disk is full or broken, or another program has cut the file, the system ends a
    process that touches mapped memory, without a word. Here that is an error.
    """

    def __init__(self, path: Path, shape: Shape, *, writable: bool = False) -> None:
        self.path, self.shape = path, shape
        self._file = open(path, "r+b" if writable else "rb", buffering=0)  # noqa: SIM115 it is closed with this object
        self._start, self._frame = len(_header(shape)), STORED.itemsize * prod(shape[2:])

    @classmethod
    def create(cls, path: Path, shape: Shape) -> LatentFile:
        """A new file, whose space on the disk is reserved.

        Raises:
            UserError: there is not as much space.
        """
        header = _header(shape)
        size = len(header) + STORED.itemsize * prod(shape)
        try:
            with open(path, "wb", buffering=0) as file:
                _reserve(file.fileno(), size)
                file.write(header)
                file.truncate(size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UserError(
                f"cannot reserve the {size / 1e9:.2g} GB of {path}: {error.strerror}; {remedy(error)}, or train "
                "without latents on disk: --no-cache"
            ) from None
        return cls(path, shape, writable=True)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: tuple[int, np.ndarray]) -> np.ndarray:
        """Latents (n, C, h, w) of one variant of frames ``rows`` (n,) int64, ascending.

        Raises:
            UserError: the file has been cut.
            OSError: the disk cannot be read.
        """
        variant, rows = place
        latents = np.empty((len(rows), *self.shape[2:]), STORED)
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for first, last in itertools.pairwise(cuts):
            self._read(variant, int(rows[first]), latents[first:last])
        return latents

    def read(self, rows: range) -> np.ndarray:
        """Latents (V, n, C, h, w) of all variants of consecutive frames; errors as of ``[]``."""
        latents = np.empty((len(self), len(rows), *self.shape[2:]), STORED)
        for variant, values in enumerate(latents):
            self._read(variant, rows.start, values)
        return latents

    def write(self, rows: range, latents: np.ndarray) -> None:
        """Replaces all variants of consecutive frames by (V, n, C, h, w).

        Raises:
            OSError: the disk is full or cannot be written.
        """
        for variant, values in enumerate(np.ascontiguousarray(latents, STORED)):
            content, place = values.data.cast("B"), self._place(variant, rows.start)
            while content:
                written = os.pwrite(self._file.fileno(), content, place)
                content, place = content[written:], place + written

    def _read(self, variant: int, row: int, latents: np.ndarray) -> None:
        content, place = latents.data.cast("B"), self._place(variant, row)
        while content:
            count = os.preadv(self._file.fileno(), [content], place)
            if not count:
                raise UserError(f"{self.path} was cut while it was in use; run the same command again")
            content, place = content[count:], place + count

    def _place(self, variant: int, row: int) -> int:
        return self._start + self._frame * (variant * self.shape[1] + row)


def file_fits(path: Path, shape: Shape) -> bool:
    """Whether a file has the header and the length of such latents."""
    header = _header(shape)
    try:
        with open(path, "rb") as file:
            return file.read(len(header)) == header and path.stat().st_size == len(header) + 2 * prod(shape)
    except OSError:
        return False


def _reserve(file: int, size: int) -> None:
    """Reserves space on the disk where the file system can; elsewhere a full disk shows when it is written to."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _header(shape: Shape) -> bytes:
    """What an ``.npy`` file begins with."""
    buffer = io.BytesIO()
    content = {"descr": STORED.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, content)
    return buffer.getvalue()
