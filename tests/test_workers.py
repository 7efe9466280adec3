"""Worker processes: what they report, and what becomes of their errors and their death."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from par_agent.errors import UserError
from par_agent.jobs.local import DoJob, Report, worker_processes
from par_agent.utils.hdf5 import open_in_memory


def prepare(base: int, folder: Path) -> DoJob:
    """Runs in the worker: jobs 0 and 1 write a file, the others fail in four ways."""
    prepared = []

    def do_job(number: int, report: Report) -> Path:
        prepared.append(number)
        if number == 2:
            raise UserError("the seed is too large")
        if number == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        if number == 4:
            os._exit(1)
        if number == 5:
            raise KeyError("seed")
        report(base + number)
        (folder / str(number)).write_text(str(len(prepared)))
        return folder / str(number)

    return do_job


def test_jobs_report_and_errors_reach_the_user(tmp_path):
    with worker_processes(1, prepare, 10, tmp_path) as do_all:

        def do(*jobs: int) -> list[tuple[str, int]]:
            remaining = iter(jobs)
            return list(do_all(lambda: next(remaining, None)))

        assert do(0, 1) == [("progress", 10), ("done", 0), ("progress", 11), ("done", 1)]
        assert (tmp_path / "1").read_text() == "2", "prepared more than once"
        with pytest.raises(UserError, match="the seed is too large"):
            do(2)
        with pytest.raises(UserError, match=rf"cannot write below {tmp_path}: .*No space left.*same command again"):
            do(3)
        with pytest.raises(UserError, match=r"a worker process failed: KeyError: 'seed'\nTraceback"):
            do(5)
        with pytest.raises(UserError, match=r"a worker process died.*par-agent doctor.*fewer workers"):
            do(4)
        with pytest.raises(UserError, match="a worker process died"):
            do(0)


def test_two_files_are_built_in_memory_at_once():
    with open_in_memory() as first, open_in_memory() as second:
        first["number"], second["number"] = 1, 2
        assert (first["number"][()], second["number"][()]) == (1, 2)


def test_a_job_that_comes_up_later_is_done_too_and_jobs_are_shared_out(tmp_path):
    later = [1]
    first = [0, 0]
    with worker_processes(2, prepare, 10, tmp_path) as do_all:
        for kind, _ in do_all(lambda: first.pop() if first else None):
            if kind == "done" and later:
                first.append(later.pop())
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists()
