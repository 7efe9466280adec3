"""Batches made ahead in a thread: their order, how far ahead, errors, and the end of the thread."""

from __future__ import annotations

import threading

import pytest

from par_agent.data.prefetch import prefetch


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_come_in_order():
    assert list(prefetch(lambda n: n * n, 3, 9)) == [9, 16, 25, 36, 49, 64]
    assert running() == []


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (7, 3)])
def test_an_empty_range_gives_nothing(start, stop):
    assert list(prefetch(lambda n: n, start, stop)) == []


def test_batches_are_made_while_the_consumer_works():
    made = {number: threading.Event() for number in range(5)}
    batches = prefetch(lambda n: made[n].set() or n, 0, 5, depth=2)
    assert next(batches) == 0
    assert made[1].wait(10) and made[2].wait(10), "nothing is made ahead"
    batches.close()


def test_no_more_than_depth_batches_wait_and_one_is_in_the_making():
    made = []
    batches = prefetch(lambda n: made.append(n) or n, 0, 100, depth=2)
    for taken, _ in enumerate(batches, 1):
        assert len(made) <= taken + 2 + 1
        if taken == 20:
            break
    batches.close()
    assert len(made) <= 23


def test_an_error_comes_where_its_batch_would_have():
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("batch 2")
        return number

    taken = []
    with pytest.raises(ValueError, match="batch 2"):
        for batch in prefetch(make, 0, 10):
            taken.append(batch)
    assert taken == [0, 1]
    assert running() == []


def test_leaving_early_ends_the_thread():
    batches = prefetch(lambda n: n, 0, 1000)
    assert next(batches) == 0
    batches.close()
    assert running() == []
