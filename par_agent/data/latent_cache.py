"""A cache of latents on disk, with two hashes of every episode.

::

    dataset/latents/<cameras>-<VAE hash>-<variants>x<shift>.npy   (variants, frames, C, h, w) float16
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
from par_agent.data.latents import Encoder, LatentSource, LatentSpec, changes, encode_frames
from par_agent.errors import UserError
from par_agent.utils.files import check_writable, only_process, read_content, read_object, remedy, write_json, writing
from par_agent.utils.interrupts import deferred_interrupts

FORMAT = 2
"""Version of the cache; goes up when latents are computed differently."""

EPISODES_PER_SAVE = 50
"""Episodes between two writings of the progress file."""

Shape = tuple[int, int, int, int, int]
"""(V, N, C, h, w), V variants; other letters: see :mod:`par_agent.modeling`."""

STORED = np.dtype("<f2")
"""Type of the numbers."""

Hashes = dict[str, list[str]]
"""Name of an episode file -> hash of its bytes, hash of its latents."""


class _Record(TypedDict):
    """What the JSON beside a cache holds."""

    made: int
    encoder: str
    episodes: Hashes


class CachedLatents(LatentSource):
    """Latents that are kept on disk."""

    def __init__(self, index: EpisodeIndex, spec: LatentSpec, encode: Encoder) -> None:
        super().__init__(index, spec, encode)
        self._shape: Shape = (spec.variants, index.num_frames, *spec.shape)
        self._path = index.dataset.folder / "latents" / f"{spec.name(index.dataset)}.npy"
        self._contents: Hashes = {}
        self.file: LatentFile | None = None
        """The latents of all frames, once they are prepared."""

    def prepare(self) -> None:
        """Computes latents of episodes that have none or whose hashes differ, and opens the file.

        Computing resumes where it was stopped; the file has its final name only when complete.

        Raises:
            UserError: frames do not give latents of the expected shape, an episode is damaged, another process computes
                them now, or they cannot be written.
            Interrupted: the process was told to end.
        """
        dataset, folder = self._index.dataset, self._path.parent
        paths = tqdm(dataset.paths, desc=f"check {dataset.folder.name}", unit="episode", delay=2)
        self._contents = {path.name: [_hash(read_content(path))] for path in paths}
        if len(self._intact(self._path, self._path.with_suffix(".json"))) < len(dataset):
            try:
                check_writable(folder)
            except UserError as error:
                raise UserError(f"{error}; or train without latents on disk: --no-cache") from None
            lock, doing = self._path.with_suffix(".lock"), f"computes the latents of {dataset.folder}"
            with writing(folder), only_process(lock, doing, within=folder):
                self._compute()
        self.file = LatentFile(self._path, self._shape)

    def read(self, rows: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
        assert self.file is not None, "prepare() comes first"
        return self.file[0 if generator is None else int(generator.integers(len(self.file))), rows]

    def latents(self, stored: np.ndarray) -> Tensor:
        return torch.from_numpy(stored).float()

    def _intact(self, path: Path, record: Path) -> Hashes:
        """Hashes of the episodes whose latents in a file are as its record says; empty where the file does not fit."""
        known = self._read_record(record) if file_fits(path, self._shape) else {}
        if not known:
            return {}
        file, found = LatentFile(path, self._shape), {}
        for number, (name, content) in enumerate(self._contents.items()):
            if known.get(name) == [*content, _hash(file.read(self._index.frames_of(number)).data)]:
                found[name] = known[name]
        return found

    def _compute(self) -> None:
        """Encodes what no file holds."""
        partial, progress = self._path.with_suffix(".partial"), self._path.with_suffix(".progress.json")
        record = self._path.with_suffix(".json")
        older, done = self._intact(self._path, record), self._intact(partial, progress)
        source = LatentFile(self._path, self._shape) if older else None
        file = LatentFile(partial, self._shape, writable=True) if done else None
        paths = tqdm(self._index.dataset.paths, desc=f"latents of {self._index.dataset.folder.name}", unit="episode")
        try:
            with deferred_interrupts() as interrupts, contextlib.closing(paths):
                for number, path in enumerate(paths):
                    interrupts.check()
                    if path.name in done:
                        continue
                    rows = self._index.frames_of(number)
                    copied = source is not None and path.name in older
                    latents = source.read(rows) if source and copied else self._variants(path, rows)
                    file = file or LatentFile.create(partial, self._shape)
                    file.write(rows, latents)
                    done[path.name] = [*self._contents[path.name], _hash(latents.data)]
                    if len(done) % EPISODES_PER_SAVE == 0:
                        self._write_record(progress, done)
        except BaseException:
            with contextlib.suppress(OSError):
                if done:
                    self._write_record(progress, done)
                else:
                    partial.unlink(missing_ok=True)
                    progress.unlink(missing_ok=True)
            raise
        self._write_record(record, done)
        partial.replace(self._path)
        progress.unlink(missing_ok=True)

    def _variants(self, path: Path, rows: range) -> np.ndarray:
        """Latents (V, n, C, h, w) float16 of an episode."""
        spec, episode = self._spec, self._index.dataset.read(path)
        if len(episode.frame_steps) != len(rows):
            found = f"{len(episode.frame_steps)} frames, and {len(rows)} when it was first read"
            raise damaged_episode(path, found)
        drawn = changes(int(episode.attributes["seed"]), spec)
        changed = np.concatenate([spec.frames(episode.frames, change) for change in drawn])
        latents = np.ascontiguousarray(encode_frames(changed, spec, self._encode).numpy(), STORED)
        return latents.reshape(spec.variants, len(rows), *spec.shape)

    def _write_record(self, record: Path, done: Hashes) -> None:
        write_json(record, {"made": FORMAT, "encoder": self._spec.encoder_config, "episodes": done})

    def _read_record(self, record: Path) -> Hashes:
        """Hashes in a record; empty where it is damaged or of another encoder."""
        try:
            content = read_object(record, _Record)
        except UserError:
            return {}
        same = (content["made"], content["encoder"]) == (FORMAT, self._spec.encoder_config)
        return content["episodes"] if same else {}


def _hash(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class LatentFile:
    """An open ``.npy`` file of (V, N, C, h, w) float16 that :func:`file_fits`, read and written piece by piece.

    It is not mapped into memory: where a disk is full or broken, or another program has cut the file, the system ends a
    process that touches mapped memory, without a word. Here that is an OSError, or a UserError where the file was cut.
    """

    def __init__(self, path: Path, shape: Shape, *, writable: bool = False) -> None:
        self.path, self.shape = path, shape
        self._file = open(path, "r+b" if writable else "rb", buffering=0)  # noqa: SIM115 it is closed with this object
        self._header_size, self._frame_size = len(_header(shape)), STORED.itemsize * prod(shape[2:])

    @classmethod
    def create(cls, path: Path, shape: Shape) -> LatentFile:
        """A new file, whose space on the disk is reserved."""
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
        """Latents (n, C, h, w) of one variant of frames ``rows`` (n,) int64, ascending."""
        variant, rows = place
        latents = np.empty((len(rows), *self.shape[2:]), STORED)
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for first, last in itertools.pairwise(cuts):
            self._read(variant, int(rows[first]), latents[first:last])
        return latents

    def read(self, rows: range) -> np.ndarray:
        """Latents (V, n, C, h, w) of all variants of consecutive frames."""
        latents = np.empty((len(self), len(rows), *self.shape[2:]), STORED)
        for variant, values in enumerate(latents):
            self._read(variant, rows.start, values)
        return latents

    def write(self, rows: range, latents: np.ndarray) -> None:
        """Replaces all variants of consecutive frames by (V, n, C, h, w)."""
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
        return self._header_size + self._frame_size * (variant * self.shape[1] + row)


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
