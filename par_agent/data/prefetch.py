"""Computes the next batches in a background thread while the present one is trained on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Batch = TypeVar("Batch")


@contextmanager
def prefetch(make: Callable[[int], Batch], start: int, stop: int, depth: int = 2) -> Iterator[Iterator[Batch]]:
    """Gives ``make(start) … make(stop - 1)`` in order, up to ``depth`` of them made ahead.

    An exception of ``make`` is raised where its batch would have come. The thread ends with the block: one that still
    read a file when Python ends would keep h5py's lock, and the process with it.
    """
    ready: queue.Queue[tuple[Batch | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def work() -> None:
        for number in range(start, stop):
            try:
                item: tuple[Batch | None, BaseException | None] = (make(number), None)
            except BaseException as error:
                item = (None, error)
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if stopped.is_set() or item[1] is not None:
                return

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()

    def batches() -> Iterator[Batch]:
        for _ in range(start, stop):
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch  # type: ignore[misc]

    try:
        yield batches()
    finally:
        stopped.set()
        thread.join()
