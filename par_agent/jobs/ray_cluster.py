"""Work on an existing Ray cluster: a connection, and jobs that survive lost workers and lost nodes."""

from __future__ import annotations

import contextlib
import logging
import platform
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from par_agent.errors import UserError
from par_agent.utils.interrupts import deferred_interrupts

Job = TypeVar("Job")

MAX_RETRIES = 3
"""How often a job is started again whose worker process or node is lost."""
NOTICED = 0.5
"""Seconds after which an interruption is noticed at the latest."""


class LostJobError(Exception):
    """A job's worker was lost at every attempt."""


class Cluster:
    """A connection to a running Ray cluster. Use it as a context manager.

    This package, in the same version, has to be installed on every node.

    Args:
        address: ``host:port`` of the cluster's head, or ``auto`` for the cluster that this machine belongs to.

    Raises:
        UserError: (on entering) Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._ray: Any = None

    def __enter__(self) -> Cluster:
        try:
            import ray
        except ImportError:
            raise UserError("a cluster needs Ray: pip install 'par-agent[cluster]'") from None
        try:
            _connect(self._address)  # Ray itself tries an address for minutes
            with _same_sigterm():
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"no Ray cluster at {self._address!r} ({error}); start one with `ray start --head`, add nodes with "
                "`ray start --address=HOST:PORT`, and give its address"
            ) from None
        self._ray = ray
        return self

    def __exit__(self, *exception: object) -> None:
        self._ray.shutdown()  # ends this program's tasks, not the cluster

    @property
    def cpus(self) -> int:
        """CPUs of all nodes together, each of which does one job at a time."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def run(
        self,
        prepare: Callable[[Any], Any],
        setup: Any,
        do: Callable[[Any, Job], Any],
        next_job: Callable[[], Job | None],
    ) -> Iterator[tuple[Job, Any]]:
        """Does jobs in tasks of one CPU each, as many at once as there are CPUs.

        Args:
            prepare: importable on every node; makes what `do` needs of `setup`, once in each of a node's processes.
            setup: what it is made of; stored in the cluster once.
            do: importable on every node; does one job with it.
            next_job: gives the next job when a CPU waits for one; None while there is none.

        Yields:
            Every job and its result, as they come, each once. The result of a job that was lost at every attempt is a
            :class:`LostJobError`; an exception of `prepare` or `do` is raised.

        Raises:
            Interrupted: this process was told to end.
        """
        task = self._ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_do_on_node)
        shared = self._ray.put(setup)
        running: dict[Any, Job] = {}
        while True:
            while len(running) < max(1, self.cpus) and (job := next_job()) is not None:
                running[task.remote(prepare, shared, do, job)] = job
            if not running:
                return
            finished = self._wait(list(running))
            try:
                result = self._ray.get(finished)
            except self._ray.exceptions.RayTaskError as error:
                raise _cause(error) from error
            except self._ray.exceptions.RayError as error:
                result = LostJobError(f"its worker was lost {MAX_RETRIES + 1} times: {type(error).__name__}")
            yield running.pop(finished), result

    def _wait(self, running: list[Any]) -> Any:
        """The next task that ends."""
        with deferred_interrupts() as interrupts:
            while True:
                finished, _ = self._ray.wait(running, num_returns=1, timeout=NOTICED)
                interrupts.check()
                if finished:
                    return finished[0]


@contextlib.contextmanager
def _same_sigterm() -> Iterator[None]:
    """What SIGTERM does is the same after the block as before; Ray lets it end the process without a clean-up."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _cause(error: Any) -> Exception:
    """The exception that ended a task."""
    cause: Exception = error.cause
    if isinstance(cause, RuntimeError) and "failed to import" in str(cause):  # in Ray's words
        return UserError(f"a node of the cluster has not this version of this package: install it there ({cause})")
    return cause


def _connect(address: str) -> None:
    """Checks that something answers at ``host:port`` or ``ray://host:port``; other addresses are Ray's to understand.

    Raises:
        OSError: nothing does.
        ValueError: no valid port.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is not None and parts.port is not None:
        socket.create_connection((parts.hostname, parts.port), timeout=10).close()


_prepared: tuple[Any, Any, Any] | None = None  # on a node: how it was made, of what, and the thing itself


def _do_on_node(prepare: Callable[[Any], Any], setup: Any, do: Callable[[Any, Any], Any], job: Any) -> Any:
    """Does one job with what this process has prepared, which outlives single tasks.

    Raises:
        UserError: the node cannot do such jobs.
    """
    global _prepared
    try:
        if _prepared is None or _prepared[:2] != (prepare, setup):
            _prepared = None  # frees what an earlier run needed
            _prepared = prepare, setup, prepare(setup)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"node {platform.node()} could not start: {type(error).__name__}: {error} (try `par-agent doctor` there)"
        ) from None
    return do(_prepared[2], job)
