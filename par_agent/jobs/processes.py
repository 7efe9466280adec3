"""Processes that work for this one: deaf to Ctrl-C, which is for this one to handle, and gone when it is."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from par_agent.errors import UserError
from par_agent.utils.interrupts import SIGNALS, Interrupts, deferred_interrupts

Result = TypeVar("Result")

PR_SET_PDEATHSIG = 1
"""Of Linux's ``prctl``: the signal that a process gets when the thread that started it ends."""


def start_process(work: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Starts a process in which ``work(connection, *arguments)`` runs; also returns the connection's other end.

    It ends with the thread that starts it, however that ends, and whatever it is doing then. End it with ``kill``: it
    ignores the signals by which a terminal or a cluster tells all processes of a command to end.

    Args:
        work: importable.
        arguments: picklable.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(work, theirs, *arguments), daemon=True)
    resource_tracker.ensure_running()  # its start would let blocked signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited, until the process ignores them
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


def _work(work: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    """Body of the process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:  # it ended before the line above
        return
    work(connection, *arguments)


def receive(connection: Connection, interrupts: Interrupts) -> Any:
    """Waits for the next message of a process.

    Raises:
        EOFError: it has ended.
        Interrupted: this process was told to end.
    """
    wait([connection, interrupts.fileno()])
    interrupts.check()
    try:
        return connection.recv()
    except ConnectionResetError:
        raise EOFError from None


def call_in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function in a process of its own; on an interruption, that ends at once.

    Args:
        function: importable.
        arguments: picklable, as are its result and what it raises.

    Raises:
        UserError: the process died.
        Exception: what the function raises.
    """
    with deferred_interrupts() as interrupts:
        process, connection = start_process(_call, function, arguments)
        try:
            succeeded, outcome = receive(connection, interrupts)
        except EOFError:
            process.join()
            raise UserError(
                f"a process died (exit code {process.exitcode}); `par-agent doctor` says what is missing"
            ) from None
        finally:
            process.kill()
            process.join()
            connection.close()
    if not succeeded:
        raise outcome
    return outcome


def _call(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        connection.send((True, function(*arguments)))
    except Exception as error:
        connection.send((False, error))
