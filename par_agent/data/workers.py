"""Worker processes that do numbered jobs, one at a time each, and that end with the process that started them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from par_agent.errors import UserError
from par_agent.files import cannot_write

Report = Callable[[int], None]
"""Tells the parent of an amount done inside a job."""

DoJob = Callable[[int, Report], None]
"""Does the job of a given number."""


@contextmanager
def worker_processes(
    count: int, prepare: Callable[..., DoJob], arguments: tuple[Any, ...], folder: Path
) -> Iterator[list[Connection]]:
    """Starts processes and gives a connection to each: :func:`send` it a job, then :func:`receive` its messages.

    The processes end with the block, however it ends, and with this process, even if that is killed.

    Args:
        count: number of processes.
        prepare: called with ``arguments`` once in every process, before its first job; returns what does the jobs.
        folder: where the jobs write, for error messages.
    """
    context = get_context("spawn")
    processes, connections = [], []
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process to handle
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, prepare, arguments, folder), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield connections
    finally:
        for process in processes:
            process.kill()
            process.join()


def send(connection: Connection, number: int) -> None:
    """Gives a worker its next job; that it has died is noticed by the next :func:`receive`."""
    with suppress(BrokenPipeError):
        connection.send(number)


def receive(connection: Connection) -> tuple[str, int]:
    """Reads a worker's next message: ("progress", amount) or ("done", job number).

    Raises:
        UserError: the worker has met an error, or has died.
    """
    try:
        kind, value = connection.recv()
    except (EOFError, ConnectionResetError):
        raise UserError(
            "a worker process died (out of memory, or a crash inside the simulator, its renderer or its planner); "
            "run `par-agent doctor`, then the same command again, with fewer workers if memory was short"
        ) from None
    if kind == "error":
        raise UserError(value)
    return kind, value


def _serve(connection: Connection, prepare: Callable[..., DoJob], arguments: tuple[Any, ...], folder: Path) -> None:
    """Does the jobs that the parent asks for; ends when the parent does."""
    import torch

    torch.set_num_threads(1)
    do_job: DoJob | None = None
    try:
        while True:
            number = connection.recv()
            try:
                do_job = do_job or prepare(*arguments)
                do_job(number, lambda amount: connection.send(("progress", amount)))
            except BrokenPipeError:
                raise
            except UserError as error:
                connection.send(("error", str(error)))
            except OSError as error:
                connection.send(("error", cannot_write(folder, error)))
            else:
                connection.send(("done", number))
    except (EOFError, BrokenPipeError):
        return
