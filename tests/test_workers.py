"""Worker processes: what they report, and what becomes of their errors and their death."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from par_agent.data.workers import DoJob, Report, receive, send, worker_processes
from par_agent.errors import UserError


def prepare(folder: Path) -> DoJob:
    """Runs in the worker: jobs 0 and 1 write a file, the others fail in three ways."""
    prepared = []

    def do_job(number: int, report: Report) -> None:
        prepared.append(number)
        if number == 2:
            raise UserError("the seed is too large")
        if number == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        if number == 4:
            os._exit(1)
        report(10 + number)
        (folder / str(number)).write_text(str(len(prepared)))

    return do_job


def test_jobs_report_and_errors_reach_the_user(tmp_path):
    with worker_processes(1, prepare, (tmp_path,), tmp_path) as (connection,):
        for number in (0, 1):
            send(connection, number)
            assert receive(connection) == ("progress", 10 + number)
            assert receive(connection) == ("done", number)
        assert (tmp_path / "1").read_text() == "2", "prepared more than once"
        send(connection, 2)
        with pytest.raises(UserError, match="the seed is too large"):
            receive(connection)
        send(connection, 3)
        with pytest.raises(UserError, match=rf"cannot write below {tmp_path}: .*No space left.*same command again"):
            receive(connection)
        send(connection, 4)
        with pytest.raises(UserError, match=r"a worker process died.*par-agent doctor.*fewer workers"):
            receive(connection)
        send(connection, 0)
        with pytest.raises(UserError, match="a worker process died"):
            receive(connection)
