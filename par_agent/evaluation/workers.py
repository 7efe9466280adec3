"""Worker processes that roll policies out: spawned, single-threaded, one job at a time.

A worker builds the environment and the policy of every task before it reports ready, so that whatever does not fit is
known before anything is written. A worker that dies takes nothing with it: its job is given to a fresh one.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

from par_agent.errors import UnavailableError, UserError
from par_agent.evaluation.jobs import MAX_ATTEMPTS, Bench, Reply, RolloutJob, WorkerSetup, died
from par_agent.jobs.processes import receive, start_process
from par_agent.utils.interrupts import Interrupts, deferred_interrupts


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, setup: WorkerSetup, core: int | None) -> None:
        self.process, self.connection = start_process(_worker_main, setup, core)
        self.job: RolloutJob | None = None

    def receive(self, interrupts: Interrupts) -> tuple[str, Any] | None:
        """The worker's next message; None once it is dead.

        Raises:
            Interrupted: this process was told to end.
        """
        try:
            message: tuple[str, Any] = receive(self.connection, interrupts)
            return message
        except (EOFError, OSError):
            self.process.join()
            return None

    def send(self, job: RolloutJob) -> None:
        """Starts a job; a dead worker is noticed by the next `receive`."""
        self.job = job
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(job)

    def stop(self) -> None:
        """Ends the process, busy or not."""
        self.connection.close()
        self.process.kill()
        self.process.join()


class WorkerPool:
    """Worker processes that share a list of jobs. Use it as a context manager.

    Args:
        setup: what the workers build.
        count: number of processes.

    Raises:
        UserError: (on entering) a task, the policy or the renderer does not work; nothing has been written yet.
    """

    def __init__(self, setup: WorkerSetup, count: int) -> None:
        self._setup = setup
        self._cores = _cores_for(count)
        self._workers: list[_Worker] = []
        self.workers = count
        """Number of processes."""
        self.renderer = ""
        """Name of the device that renders, known once the pool is entered."""

    def __enter__(self) -> WorkerPool:
        with contextlib.ExitStack() as stack:
            self._interrupts = stack.enter_context(deferred_interrupts())
            stack.callback(self._end_workers)
            for core in self._cores:
                self._workers.append(_Worker(self._setup, core))
            for worker in self._workers:
                self.renderer = _wait_until_ready(worker, self._interrupts)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[tuple[RolloutJob, Reply]]:
        """Yields the reply to every rollout as it ends, in no particular order.

        A job whose worker died is done again as a whole: some of its rollouts may be yielded twice, with equal records.

        Raises:
            Interrupted: this process was told to end; rollouts in hand are lost.
            UnavailableError: what the policy acts with is gone.
        """
        waiting = deque(jobs)
        attempts: dict[RolloutJob, int] = {}
        self._give_out(waiting)
        while busy := {worker.connection: worker for worker in self._workers if worker.job is not None}:
            ready = connection.wait([*busy, self._interrupts.fileno()])
            self._interrupts.check()
            for worker in [busy[each] for each in ready if isinstance(each, connection.Connection)]:
                job, message = worker.job, worker.receive(self._interrupts)
                assert job is not None
                if message is None:
                    attempts[job] = attempts.get(job, 0) + 1
                    how = f"the worker process died (exit code {worker.process.exitcode})"
                    self._replace(worker)
                    if attempts[job] < MAX_ATTEMPTS:
                        waiting.appendleft(job)
                    else:
                        yield from ((job, reply) for reply in died(job, how))
                elif message[0] == "unavailable":
                    raise UnavailableError(message[1])
                elif message[0] == "reply":
                    yield job, message[1]
                else:
                    worker.job = None
            self._give_out(waiting)

    def _give_out(self, waiting: deque[RolloutJob]) -> None:
        for worker in self._workers:
            if waiting and worker.job is None:
                worker.send(waiting.popleft())

    def _replace(self, dead: _Worker) -> None:
        """Starts a new worker in the place of a dead one."""
        index = self._workers.index(dead)
        dead.stop()
        self._workers[index] = _Worker(self._setup, self._cores[index])
        _wait_until_ready(self._workers[index], self._interrupts)


def _wait_until_ready(worker: _Worker, interrupts: Interrupts) -> str:
    """Waits for a worker's first message; returns its renderer.

    Raises:
        Interrupted: this process was told to end.
        UserError: what the worker could not build.
    """
    message = worker.receive(interrupts)
    if message is None:
        raise UserError(
            f"a worker process died while it started (exit code {worker.process.exitcode}); `par-agent doctor` says "
            "what is missing"
        )
    kind, content = message
    if kind == "invalid":
        raise UserError(content)
    return str(content)


def _cores_for(count: int) -> Sequence[int | None]:
    """One core per worker if there are as many workers as cores; else the scheduler decides."""
    cores = sorted(os.sched_getaffinity(0))
    return cores if len(cores) == count else [None] * count


def _worker_main(parent: connection.Connection, setup: WorkerSetup, core: int | None) -> None:
    """Body of a worker process: builds, reports ready, then does jobs until the parent hangs up."""
    os.environ["LP_NUM_THREADS"] = "1"  # the software renderer's own threads
    os.environ["OMP_NUM_THREADS"] = "1"
    if core is not None:
        os.sched_setaffinity(0, {core})
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        try:
            bench = Bench(setup)
            parent.send(("ready", bench.renderer()))
        except UserError as error:
            parent.send(("invalid", str(error)))
            return
        except Exception as error:
            text = f"could not start: {type(error).__name__}: {error} (`par-agent doctor` says what is missing)"
            parent.send(("invalid", f"{text}\n{traceback.format_exc()}"))
            return
        while True:
            try:
                for reply in bench.do(parent.recv()):
                    parent.send(("reply", reply))
                parent.send(("done", None))
            except UnavailableError as error:
                parent.send(("unavailable", str(error)))
