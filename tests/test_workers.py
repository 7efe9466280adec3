"""Worker processes of this machine: what they send, and what becomes of their errors and their death."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from par_agent.errors import UnavailableError, UserError
from par_agent.jobs.local import local_runner
from par_agent.jobs.runner import DoJob, LostJobError
from par_agent.utils.hdf5 import open_in_memory


def prepare(base: int, folder: Path) -> DoJob:
    """Runs in the worker: jobs 0 and 1 write a file, the others fail in five ways."""
    if base < 0:
        raise ArithmeticError("below zero")
    if base == 0:
        os._exit(3)
    done = []

    def do_job(number: int) -> Iterator[int]:
        done.append(number)
        if number == 2:
            raise UserError("the seed is too large")
        if number == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        if number == 4:
            yield -1
            os._exit(1)
        if number == 5:
            raise KeyError("seed")
        if number == 6:
            raise UnavailableError("the server is gone")
        if number == 7 and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(1)
        (folder / str(number)).write_text(str(len(done)))
        yield base
        yield base + number

    return do_job


def test_messages_and_errors_of_jobs_reach_the_user(tmp_path: Path) -> None:
    with local_runner(prepare, 10, tmp_path, workers=1) as runner:
        assert list(runner.run([0, 1])) == [(0, 10), (0, 10), (1, 10), (1, 11)]
        assert (tmp_path / "1").read_text() == "2", "prepared more than once"
        with pytest.raises(UserError, match="the seed is too large"):
            list(runner.run([2]))
        with pytest.raises(UserError, match=rf"cannot write below {tmp_path}: .*No space left.*same command again"):
            list(runner.run([3]))
        with pytest.raises(UserError, match=r"a worker process failed: KeyError: 'seed'\nTraceback"):
            list(runner.run([5]))
        with pytest.raises(UnavailableError, match="the server is gone"):
            list(runner.run([6]))


def test_a_job_whose_worker_dies_is_done_again_and_one_that_is_always_lost_says_so(tmp_path: Path) -> None:
    with local_runner(prepare, 10, tmp_path, workers=1) as runner:
        assert list(runner.run([7, 1])) == [(7, 10), (7, 17), (1, 10), (1, 11)]
        first, second, (job, lost), *others = runner.run([4, 1], yield_lost=True)
        assert first == second == (4, -1) and others == [(1, 10), (1, 11)]
        assert job == 4 and isinstance(lost, LostJobError) and lost.how == "the worker process died (exit code 1)"
        with pytest.raises(LostJobError, match=r"died \(exit code 1\): out of memory.*par-agent doctor.*fewer workers"):
            list(runner.run([4]))


def test_a_worker_that_cannot_start_is_an_error_before_any_job(tmp_path: Path) -> None:
    for setup, message in (
        (-1, r"a worker process could not start: ArithmeticError: below zero .*par-agent doctor.*\nTraceback"),
        (0, r"a worker process died \(exit code 3\) while it started; `par-agent doctor`"),
    ):
        with pytest.raises(UserError, match=message), local_runner(prepare, setup, tmp_path, workers=1):
            pass


def prepare_threads(_: None, folder: Path) -> DoJob:
    import torch

    return lambda job: [(torch.get_num_threads(), os.environ["LP_NUM_THREADS"], len(os.sched_getaffinity(0)))]


def test_a_worker_computes_and_renders_with_one_thread_on_a_core_of_its_own(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    with local_runner(prepare_threads, None, tmp_path, workers=cores) as runner:
        assert list(runner.run(["job"])) == [("job", (1, "1", 1))]


def test_two_files_are_built_in_memory_at_once() -> None:
    with open_in_memory() as first, open_in_memory() as second:
        first["number"], second["number"] = 1, 2
        assert (first["number"][()], second["number"][()]) == (1, 2)


def test_a_job_that_comes_up_later_is_done_too_and_jobs_are_shared_out(tmp_path: Path) -> None:
    waiting = [0, 0]
    found = []

    def jobs() -> Iterator[int | None]:
        while True:
            yield waiting.pop() if waiting else None

    with local_runner(prepare, 10, tmp_path, workers=2) as runner:
        for job, _ in runner.run(jobs()):
            found.append(job)
            if found == [0, 0, 0, 0]:
                waiting.append(1)
    assert found == [0, 0, 0, 0, 1, 1]
