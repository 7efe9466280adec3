"""Batches made ahead in a thread: their order, how far ahead, errors, and the end of the thread."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from par_agent.data.prefetch import prefetch


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_batches_come_in_order():
    with prefetch(lambda n: n * n, 3, 9) as batches:
        assert list(batches) == [9, 16, 25, 36, 49, 64]
    assert running() == []


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (7, 3)])
def test_an_empty_range_gives_nothing(start, stop):
    with prefetch(lambda n: n, start, stop) as batches:
        assert list(batches) == []


def test_batches_are_made_while_the_consumer_works():
    made = {number: threading.Event() for number in range(5)}
    with prefetch(lambda n: made[n].set() or n, 0, 5, depth=2) as batches:
        assert next(batches) == 0
        assert made[1].wait(600) and made[2].wait(600), "nothing is made ahead"


def test_no_more_than_depth_batches_wait_and_one_is_in_the_making():
    made = []
    with prefetch(lambda n: made.append(n) or n, 0, 100, depth=2) as batches:
        for taken, _ in enumerate(batches, 1):
            assert len(made) <= taken + 2 + 1
            if taken == 20:
                break
    assert len(made) <= 23


def test_an_error_comes_where_its_batch_would_have():
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("batch 2")
        return number

    taken = []
    with pytest.raises(ValueError, match="batch 2"), prefetch(make, 0, 10) as batches:
        for batch in batches:
            taken.append(batch)
    assert taken == [0, 1]
    assert running() == []


def test_leaving_early_ends_the_thread_and_waits_for_the_batch_in_the_making():
    reading = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            reading.set()
            time.sleep(0.1)
        return number

    with pytest.raises(ZeroDivisionError), prefetch(make, 0, 1000) as batches:
        assert next(batches) == 0
        reading.wait(600)
        raise ZeroDivisionError
    assert running() == []


ENDS_WHILE_A_FILE_IS_READ = """
import threading, time
import h5py
from h5py._objects import phil
from par_agent.data.prefetch import prefetch

file, reading = h5py.File("open.h5", "w", driver="core", backing_store=False), threading.Event()

def make(number):
    if number:
        with phil:  # as every read of h5py does
            reading.set()
            time.sleep(0.5)
    return number

with prefetch(make, 0, 1000) as batches:
    next(batches)
    reading.wait()
    raise ZeroDivisionError
"""


def test_a_process_ends_whose_training_failed_while_a_batch_was_read():
    result = subprocess.run([sys.executable, "-c", ENDS_WHILE_A_FILE_IS_READ], capture_output=True, timeout=600)
    assert result.returncode == 1 and b"ZeroDivisionError" in result.stderr
