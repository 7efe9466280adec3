"""Worker processes that do jobs, one at a time each, and that end with the process that started them."""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from par_agent.errors import UserError
from par_agent.jobs.processes import receive, start_process
from par_agent.utils.files import cannot_write
from par_agent.utils.interrupts import Interrupts, deferred_interrupts

Report = Callable[[int], None]
"""Tells of an amount done inside a job."""

DoJob = Callable[[Any, Report], Path]
"""Does a job; returns the file, or the folder of files, that it made."""

Prepare = Callable[[Any, Path], DoJob]
"""Called once where jobs are done, with what they have in common and the folder to write to."""

NextJob = Callable[[], Any]
"""Gives the next job; None while there is none."""

DoAll = Callable[[NextJob], Iterator[tuple[str, Any]]]
"""Does jobs until there is none left; yields ("progress", amount) and ("done", job) as they come."""

UNFINISHED = "unfinished-"
"""How names of folders begin that are not complete."""
DEFAULT_WORKERS = min(2, os.cpu_count() or 1)
"""Worker processes, if no number is given."""


@contextmanager
def worker_processes(count: int, prepare: Prepare, what: Any, folder: Path) -> Iterator[DoAll]:
    """Starts processes, and gives what lets them do jobs.

    The processes end with the block, however it ends, and with this process, even if that is killed.

    Args:
        count: number of processes.
        prepare: importable.
        what: its first argument, picklable as jobs are.
        folder: where the jobs write.
    """
    workers = []
    with deferred_interrupts() as interrupts:
        try:
            for _ in range(count):
                workers.append(start_process(serve, prepare, what, folder))
            yield partial(do_all, [connection for _, connection in workers], interrupts)
        finally:
            for process, connection in workers:
                process.kill()
                process.join()
                connection.close()


def do_all(workers: Sequence[Connection], interrupts: Interrupts, next_job: NextJob) -> Iterator[tuple[str, Any]]:
    """Lets workers, at the other ends of connections, do jobs; see :data:`DoAll`.

    Raises:
        Interrupted: this process was told to end; what workers do is left undone.
        UserError: a worker has met an error, or has died.
    """
    idle = deque(workers)
    busy: dict[Connection, Any] = {}
    while True:
        while idle and (job := next_job()) is not None:
            worker = idle.popleft()
            busy[worker] = job
            with suppress(BrokenPipeError):  # that it has died is noticed below
                worker.send(job)
        if not busy:
            return
        ready = wait([*busy, interrupts.fileno()])
        interrupts.check()
        for worker in [each for each in ready if isinstance(each, Connection)]:
            kind, value = _receive(worker, interrupts)
            if kind == "progress":
                yield kind, value
            else:
                idle.append(worker)
                yield kind, busy.pop(worker)


def _receive(worker: Connection, interrupts: Interrupts) -> tuple[str, Any]:
    """Reads a worker's next message."""
    try:
        kind, value = receive(worker, interrupts)
    except EOFError:
        raise UserError(
            "a worker process died (out of memory, or a crash inside the simulator, its renderer or its planner); "
            "run `par-agent doctor`, then the same command again, with fewer workers if memory was short"
        ) from None
    if kind == "error":
        raise UserError(value)
    return kind, value


def serve(connection: Connection, prepare: Prepare, what: Any, folder: Path) -> None:
    """A worker: does the jobs that the other end asks for; ends when that does."""
    import torch

    torch.set_num_threads(1)
    do_job: DoJob | None = None
    try:
        while True:
            job = connection.recv()
            try:
                do_job = do_job or prepare(what, folder)
                do_job(job, lambda amount: connection.send(("progress", amount)))
            except BrokenPipeError:
                raise
            except UserError as error:
                connection.send(("error", str(error)))
            except OSError as error:
                connection.send(("error", cannot_write(folder, error)))
            except Exception as error:
                text = f"a worker process failed: {type(error).__name__}: {error}"
                connection.send(("error", f"{text}\n{traceback.format_exc()}"))
            else:
                connection.send(("done", None))
    except (EOFError, BrokenPipeError):
        return
