"""Computes the next batches in a background thread while the present one is trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Batch = TypeVar("Batch")


@contextmanager
def prefetch(make: Callable[[int], Batch], start: int, stop: int, depth: int = 2) -> Iterator[Iterator[Batch]]:
    """Gives ``make(start) … make(stop - 1)`` in order, up to ``depth`` of them made ahead.

    An exception of ``make`` is raised in place of its batch. The thread ends with the block: a thread that still reads
    a file when Python exits holds h5py's lock, and the process would hang.
    """
    thread = ThreadPoolExecutor(1, "prefetch")
    made = deque(thread.submit(make, number) for number in range(start, min(start + depth, stop)))

    def batches() -> Iterator[Batch]:
        for number in range(start + depth, stop + depth):
            batch = made.popleft().result()
            if number < stop:
                made.append(thread.submit(make, number))
            yield batch

    try:
        yield batches()
    finally:
        thread.shutdown(cancel_futures=True)
