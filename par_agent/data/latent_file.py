"""Latents in one ``.npy`` file, read and written piece by piece.

The file is not mapped into memory: where a disk is full or broken, or another program has cut the file, the system ends
a process that touches mapped memory, without a word. Here that is an error.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
from math import prod
from pathlib import Path

import numpy as np

from par_agent.errors import UserError
from par_agent.utils.files import remedy

Shape = tuple[int, int, int, int, int]
"""Variants V, frames N, channels C, height h and width w."""

STORED = np.dtype("<f2")
"""Type of the numbers."""


class LatentFile:
    """An open file of (V, N, C, h, w) float16. Give it :func:`file_fits` first.

    Args:
        path: the file.
        shape: what it holds.
        writable: whether it is opened for :meth:`write` too.
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
                with contextlib.suppress(_NotReservable):
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
    """Whether a file is one of such latents, as far as its header and its length tell."""
    header = _header(shape)
    try:
        with open(path, "rb") as file:
            return file.read(len(header)) == header and path.stat().st_size == len(header) + 2 * prod(shape)
    except OSError:
        return False


class _NotReservable(Exception):
    """The file system cannot reserve space: then a full disk is noticed when it is written to."""


def _reserve(file: int, size: int) -> None:
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise _NotReservable from None
        raise


def _header(shape: Shape) -> bytes:
    """What an ``.npy`` file begins with."""
    buffer = io.BytesIO()
    content = {"descr": STORED.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, content)
    return buffer.getvalue()
