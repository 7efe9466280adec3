"""HDF5 files: built in memory and written in one go, and checked while they are read.

On a full disk the HDF5 library reports each failed write when an object is freed, or crashes. Writing the finished
bytes is one ordinary write that fails with one OSError.

Files of others may refer to further files or claim sizes that they do not have. Damaged files make h5py raise
exceptions of any kind. :class:`HDF5Reader` turns all of these into a :class:`UserError`.
"""

from __future__ import annotations

import math
import struct
import uuid
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from par_agent.errors import UserError, reader_faults
from par_agent.utils.files import check_file

FLOATS = (np.float32, np.float64)
"""Types of real numbers that files of others may hold."""
MOST_COMPRESSED = 1100
"""Bytes of an array for each of its bytes on disk; deflate reaches 1032."""
LARGEST = 1e6
"""Largest absolute value that a position, velocity or command of a robot may have."""
SMALL = 65536
"""Arrays of at most this many bytes are never refused for their size."""

HEAP = b"GCOL\1\0\0\0"
"""First bytes of a heap of texts. Its size follows, then for each entry its number (0: free space) and its length."""

Shape = tuple[int | None, ...]
"""Sizes of an array's dimensions; None: any."""


def open_in_memory() -> h5py.File:
    """A new, empty HDF5 file that never touches the disk; all but the values of its arrays will have checksums."""
    # HDF5 takes two open files of one name for the same file. The format of version 1.8 has no checksums.
    name, format = f"in-memory-{uuid.uuid4()}.h5", ("v110", "v110")
    return h5py.File(name, "w", driver="core", backing_store=False, libver=format)


def file_image(file: h5py.File) -> bytes:
    """The bytes of an open HDF5 file, as they would be on disk."""
    file.flush()
    image: bytes = file.id.get_file_image()
    return image


def number_fault(values: np.ndarray) -> str | None:
    """Describes the first number that no robot gives (NaN, infinity, too large), with its row; None: there is none."""
    if values.dtype.kind not in "fc":
        return None
    for bad, what in ((~np.isfinite(values), "NaN or infinity"), (np.abs(values) > LARGEST, "numbers too large")):
        if bad.any():
            first = tuple(np.argwhere(bad)[0])
            return f"{what}{f' in row {first[0]}' if first else ''}: {values[first]}"
    return None


class HDF5Reader(AbstractContextManager["HDF5Reader"]):
    """An HDF5 file that is open for reading. Use it as a context manager, or close it.

    What is missing or damaged is a UserError that names the file, the entry, what was found and what is expected, and
    ends with ``advice``, what the user can do.
    """

    def __init__(self, path: Path | str, advice: str = "copy or make it again") -> None:
        self.path, self._advice = Path(path), advice
        check_file(self.path)
        with self._named_faults():
            self._file = h5py.File(self.path, "r")

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def damaged(self, fault: str) -> UserError:
        """The error that tells the user of a fault of the file."""
        return UserError(f"{self.path} is damaged ({fault}); {self._advice}")

    def __contains__(self, name: str) -> bool:
        """Whether there is a group or an array ``name``, for example ``frames/render_camera``."""
        with self._named_faults(name):
            return self._find(name) is not None

    def is_group(self, name: str) -> bool:
        """Whether ``name`` is a group, and no array."""
        with self._named_faults(name):
            return isinstance(self._find(name), h5py.Group)

    def names(self, group: str = "") -> list[str]:
        """Names in a group, sorted; of the whole file if none is given."""
        with self._named_faults(group):
            found = self._find(group)
            if not isinstance(found, h5py.Group):
                raise self.damaged(f"{group} is {'missing' if found is None else 'an array'}; expected a group")
            names = sorted(found)
            "".join(names).encode()  # h5py gives what is not UTF-8 as halves of surrogate pairs
            return names

    def check(self, name: str, dtype: Any, shape: Shape | None) -> tuple[int, ...]:
        """Checks an array as :meth:`array` does, without reading its values; returns its shape."""
        with self._named_faults(name):
            found: tuple[int, ...] = self._checked(name, dtype, shape).shape
            return found

    def array(
        self, name: str, dtype: Any, shape: Shape | None, *, rows: np.ndarray | None = None, finite: bool = True
    ) -> np.ndarray:
        """Reads an array.

        Args:
            name: where it is, for example ``frames/render_camera``.
            dtype: the type that it must be stored in, or a tuple of those that it may be; None: any.
            shape: the shape that it must have; None: any.
            rows: (n,) ascending whole numbers: those entries of the first dimension alone.
            finite: refuses NaN, infinity, and numbers beyond :data:`LARGEST`.
        """
        with self._named_faults(name):
            dataset = self._checked(name, dtype, shape)
            if rows is not None and len(rows) and not 0 <= rows[0] <= rows[-1] < len(dataset):
                raise self.damaged(f"{name} has {len(dataset)} entries; entry {rows[-1]} was expected")
            values: np.ndarray = dataset[()] if rows is None else dataset[rows]
        if finite and (fault := number_fault(values)):
            raise self.damaged(f"{name} hold {fault}")
        return values

    def attributes(self) -> dict[str, Any]:
        """The file's attributes: texts, numbers, and tuples of texts."""
        with self._named_faults("its attributes"):
            self._check_texts()
            return {name: self._attribute(name) for name in self._file.attrs}

    # --- inside ---------------------------------------------------------------------------------------------------

    def _named_faults(self, name: str = "") -> AbstractContextManager[None]:
        """Turns whatever h5py raises into a UserError."""
        return reader_faults(self.damaged, name)

    def _find(self, name: str) -> h5py.Group | h5py.Dataset | None:
        """The group or array of a name, or None. Links are refused."""
        found = self._file["/"]
        for part in filter(None, name.split("/")):
            if not isinstance(found, h5py.Group) or not found.id.links.exists(part.encode()):
                return None
            if found.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
                raise self.damaged(f"{name} is a link; only what is in the file itself is read")
            found = found[part]
        return found

    def _checked(self, name: str, dtype: Any, shape: Shape | None) -> h5py.Dataset:
        """The array of a name, after its type, shape and storage were checked."""
        found = self._find(name)
        if not isinstance(found, h5py.Dataset):
            raise self.damaged(f"{name} is {'missing' if found is None else 'no array'}; expected an array")
        allowed = () if dtype is None else dtype if isinstance(dtype, tuple) else (dtype,)
        stored = found.id.get_type()
        if allowed and not any(stored == h5py.h5t.py_create(np.dtype(kind), logical=True) for kind in allowed):
            wanted = " or ".join(str(np.dtype(kind)) for kind in allowed)
            raise self.damaged(f"{name} is stored as {found.dtype}; expected {wanted}")
        given = found.shape or ()
        shape = (None,) * len(given) if shape is None else shape
        if len(given) != len(shape) or any(n not in (None, size) for n, size in zip(shape, given, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.damaged(f"{name} has the shape {found.shape}; expected ({wanted})")
        self._check_storage(found, name)
        return found

    def _check_storage(self, dataset: h5py.Dataset, name: str) -> None:
        """Checks that an array lies in this file, is complete, and claims no more bytes than compression explains."""
        if dataset.is_virtual or dataset.external:
            raise self.damaged(f"{name} lies in other files; only what is in the file itself is read")
        size, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
        if size > SMALL + MOST_COMPRESSED * min(stored, self.path.stat().st_size):
            raise self.damaged(f"{name} claims {size:,} bytes, of which the file holds {stored:,}")
        if dataset.chunks is None:
            present, expected = stored, size
        else:
            sizes = zip(dataset.shape, dataset.chunks, strict=True)
            present, expected = dataset.id.get_num_chunks(), math.prod(-(-n // chunk) for n, chunk in sizes)
        if present != expected:
            raise self.damaged(f"{name} is incomplete")

    def _check_texts(self) -> None:
        """Checks the heaps that texts lie in: where entries do not fill one, the HDF5 library searches for ever."""
        content = self.path.read_bytes()
        begin = content.find(HEAP)
        while begin >= 0:
            size, *_ = struct.unpack_from("<Q", content, begin + 8)
            place, end = begin + 16, begin + size
            while place + 16 <= end:
                number, length = struct.unpack_from("<H6xQ", content, place)
                place += 16 + -(-length // 8) * 8 if number else max(16, length)
                if number == 0 and length < 16:
                    raise self.damaged("its texts")
            if place > end:
                raise self.damaged("its texts")
            begin = content.find(HEAP, begin + 1)

    def _attribute(self, name: str) -> str | int | float | bool | tuple[str, ...]:
        found = self._file.attrs.get_id(name)
        if found.shape is not None and found.get_storage_size() > min(SMALL, self.path.stat().st_size):
            raise self.damaged(f"attribute {name} claims {found.get_storage_size():,} bytes")
        shape, value = found.shape, self._file.attrs[name]
        if shape == () and isinstance(value, np.generic):
            value = value.item()
        texts = [name] if shape == () else [name, *value] if shape is not None and len(shape) == 1 else []
        texts += [value] if isinstance(value, str) else []
        if not (isinstance(value, str | int | float) or texts[1:]) or not all(isinstance(text, str) for text in texts):
            raise self.damaged(f"attribute {name} is {str(value)[:40]}; expected a text, a number or several texts")
        "".join(texts).encode()
        return tuple(value) if shape else value
