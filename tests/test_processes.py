"""Processes that work for another: what they ignore, and that none is left when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from held import gone, until
from par_agent.jobs.local import local_runner, start_process
from par_agent.jobs.runner import DoJob
from par_agent.utils.interrupts import SIGNALS, Interrupted


def echo(connection: Connection) -> None:
    while True:
        connection.send((os.getpid(), connection.recv()))


def busy(connection: Connection, seconds: None) -> None:
    """Never gives another thread a turn: numbers are added up inside one call."""
    connection.send(os.getpid())
    sum(range(10**15))


def test_a_process_ignores_what_is_for_the_one_that_started_it_to_handle() -> None:
    process, connection = start_process(echo)
    assert process.pid is not None
    for number in SIGNALS:
        os.kill(process.pid, number)
        connection.send(number)
        assert connection.recv() == (process.pid, number)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_signals_are_not_blocked_afterwards() -> None:
    process, connection = start_process(echo)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)
    connection.send("on")
    connection.recv()
    status = Path(f"/proc/{process.pid}/status").read_text()
    blocked = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk"))
    assert not any(blocked >> (number - 1) & 1 for number in SIGNALS)
    process.kill()
    process.join()


def test_a_process_ends_with_the_one_that_started_it_whatever_it_is_doing() -> None:
    program = (
        "import test_processes as t; w = t.start_process(t.busy, None); print(w[1].recv(), flush=True); w[0].join()"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parent, stdout=subprocess.PIPE) as main:
        assert main.stdout is not None
        worker = psutil.Process(int(main.stdout.readline()))
        main.kill()
    gone([worker])


def prepare(_: None, folder: Path) -> DoJob:
    def wait_for_ever(path: Path) -> Iterator[None]:
        path.write_text(str(os.getpid()))
        threading.Event().wait()
        yield

    return wait_for_ever


def test_an_interruption_ends_a_worker_and_its_job_at_once(tmp_path: Path) -> None:
    path = tmp_path / "process"

    def interrupt() -> None:
        until(lambda: path.exists() and path.read_text())
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(Interrupted), local_runner(prepare, None, tmp_path, workers=1) as runner:
        list(runner.run([path]))
    sender.join()
    signal.signal(signal.SIGTERM, before)
    assert not psutil.pid_exists(int(path.read_text()))
