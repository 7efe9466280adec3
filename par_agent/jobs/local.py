"""Worker processes of this machine. They ignore Ctrl-C, which the main process handles, and end with that process."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from par_agent.errors import UserError
from par_agent.jobs.runner import DOCTOR, LostJobError, Prepare, described_error, job_error, use_one_thread
from par_agent.utils.interrupts import SIGNALS, Interrupts, deferred_interrupts

DEFAULT_WORKERS = min(2, os.cpu_count() or 1)
"""Worker processes, if no number is given."""
MAX_ATTEMPTS = 2
"""How often a job is tried whose worker dies."""
PR_SET_PDEATHSIG = 1
"""Of Linux's ``prctl``: the signal that a process gets when the thread that started it ends."""
ADVICE = (
    ": out of memory, or a crash inside the simulator, its renderer or its planner; run `par-agent doctor`, then the "
    "same command again, with fewer workers if memory was short"
)


@contextmanager
def local_runner(prepare: Prepare, setup: Any, folder: Path, workers: int) -> Iterator[LocalRunner]:
    """Starts worker processes and waits until all are ready; see :func:`par_agent.jobs.open_runner`.

    Each gets a core of its own if there are exactly as many cores. They end with the block, however it ends, and with
    this process, even if that is killed. A worker that cannot start raises UserError on entering.
    """
    cores = sorted(os.sched_getaffinity(0))
    with deferred_interrupts() as interrupts:
        runner = LocalRunner((prepare, setup, folder), interrupts)
        try:
            for core in cores if len(cores) == workers else [None] * workers:
                runner.processes.append(_Worker(core, prepare, setup, folder))
            for worker in runner.processes:
                worker.wait_until_ready(interrupts)
            yield runner
        finally:
            for worker in runner.processes:
                worker.close()


class LocalRunner:
    """Worker processes; a :class:`par_agent.jobs.runner.JobRunner`."""

    def __init__(self, arguments: tuple[Prepare, Any, Path], interrupts: Interrupts) -> None:
        self._arguments, self._interrupts = arguments, interrupts
        self.processes: list[_Worker] = []

    @property
    def workers(self) -> int:
        """Processes."""
        return len(self.processes)

    def run(self, jobs: Iterable[Any], *, yield_lost: bool = False) -> Iterator[tuple[Any, Any]]:
        """See :meth:`par_agent.jobs.runner.JobRunner.run`."""
        upcoming, retries = iter(jobs), deque[tuple[Any, int]]()
        while True:
            for worker in self.processes:
                if worker.job is None:
                    worker.begin(*(retries.popleft() if retries else (next(upcoming, None), 1)))
            busy = {worker.connection: worker for worker in self.processes if worker.job is not None}
            if not busy:
                return
            ready = wait([*busy, self._interrupts.fileno()])
            self._interrupts.check()
            for worker in [busy[each] for each in ready if isinstance(each, Connection)]:
                job = worker.job
                kind, content = worker.receive()
                if kind == "message":
                    yield job, content
                elif kind == "done":
                    worker.job = None
                elif kind == "failed":
                    worker.job = None
                    raise content
                else:
                    lost = LostJobError(f"the worker process {content}", ADVICE)
                    if worker.attempt < MAX_ATTEMPTS:
                        retries.append((job, worker.attempt + 1))
                    elif yield_lost:
                        yield job, lost
                    else:
                        raise lost
                    worker.close()
                    place = self.processes.index(worker)
                    self.processes[place] = _Worker(worker.core, *self._arguments)
                    self.processes[place].wait_until_ready(self._interrupts)


class _Worker:
    """This process's end of a worker process."""

    def __init__(self, core: int | None, *arguments: Any) -> None:
        self.core = core
        self.job: Any = None
        """What it does now, or None."""
        self.attempt = 0
        """How often that job was begun."""
        self._process, self.connection = start_process(_serve, core, *arguments)

    def begin(self, job: Any, attempt: int) -> None:
        """Starts a job, unless it is None; a dead process is noticed by the next `receive`."""
        self.job, self.attempt = job, attempt
        if job is not None:
            with suppress(BrokenPipeError):
                self.connection.send(job)

    def receive(self) -> tuple[str, Any]:
        """The next of ``("message", message)``, ``("done", None)``, ``("failed", error)`` and ``("died", how)``."""
        try:
            event: tuple[str, Any] = self.connection.recv()
            return event
        except (EOFError, ConnectionResetError):
            self._process.join()
            return "died", f"died (exit code {self._process.exitcode})"

    def wait_until_ready(self, interrupts: Interrupts) -> None:
        """Waits until it can do jobs; raises Interrupted where this process is told to end, UserError otherwise."""
        wait([self.connection, interrupts.fileno()])
        interrupts.check()
        kind, content = self.receive()
        if kind == "failed":
            raise content
        if kind == "died":
            raise UserError(f"a worker process {content} while it started; `par-agent doctor` says what is missing")

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def start_process(work: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Starts a process in which ``work(connection, *arguments)`` runs; also returns the connection's other end.

    It ends with the thread that starts it, however that ends, and whatever it is doing then. End it with ``kill``: it
    ignores the signals by which a terminal or a cluster tells all processes of a command to end. ``work`` has to be
    importable, its arguments picklable.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(work, theirs, *arguments), daemon=True)
    resource_tracker.ensure_running()  # its start would let blocked signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited, until the process ignores them
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


def _main(work: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    """Body of the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:  # it ended before the line above
        return
    work(connection, *arguments)


def _serve(connection: Connection, core: int | None, prepare: Prepare, setup: Any, folder: Path) -> None:
    """A worker: does the jobs that the other end sends; ends when that does."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            use_one_thread()
            do_job = prepare(setup, folder)
        except Exception as error:
            connection.send(("failed", described_error(error, "a worker process could not start", DOCTOR)))
            return
        connection.send(("done", None))
        while True:
            job = connection.recv()
            try:
                for message in do_job(job):
                    connection.send(("message", message))
                connection.send(("done", None))
            except Exception as error:
                connection.send(("failed", job_error(error, "a worker process", folder)))
