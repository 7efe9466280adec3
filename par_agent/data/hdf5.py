"""HDF5 files that are built in memory and written in one go.

On a full disk the HDF5 library reports each failed write when an object is freed, or crashes. Writing the finished
bytes is one ordinary write that fails with one OSError.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h5py


def open_in_memory() -> h5py.File:
    """A new, empty HDF5 file that never touches the disk."""
    import h5py

    # HDF5 takes two open files of one name for the same file.
    return h5py.File(f"in-memory-{uuid.uuid4()}.h5", "w", driver="core", backing_store=False)


def file_image(file: h5py.File) -> bytes:
    """The bytes of an open HDF5 file, as they would be on disk."""
    file.flush()
    image: bytes = file.id.get_file_image()
    return image
