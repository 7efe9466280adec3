"""Work on an existing Ray cluster: a connection, and tasks that survive lost workers and lost nodes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from par_agent.errors import UserError

MAX_RETRIES = 3
"""How often a task is started again whose worker process or node is lost."""


class LostTaskError(Exception):
    """A task's worker was lost at every attempt."""


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
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
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
        """CPUs of all nodes together, each of which runs one task at a time."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def share(self, value: Any) -> Any:
        """Stores a value once for many tasks; hand the result to :meth:`run` as an argument in its place."""
        return self._ray.put(value)

    def run(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Calls a function in tasks of one CPU each, as many at once as there are CPUs.

        Args:
            function: importable on every node.
            calls: the arguments of each call.

        Yields:
            Position in `calls` and the call's result, as they come, each once. The result of a task that was lost at
            every attempt is a :class:`LostTaskError`; an exception of the function is raised.
        """
        task = self._ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(function)
        positions = {task.remote(*arguments): position for position, arguments in enumerate(calls)}
        while positions:
            (finished,), _ = self._ray.wait(list(positions), num_returns=1)
            try:
                result = self._ray.get(finished)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                result = LostTaskError(f"its worker was lost {MAX_RETRIES + 1} times: {type(error).__name__}")
            yield positions.pop(finished), result


def _connect(address: str) -> None:
    """Checks that something answers at ``host:port`` or ``ray://host:port``; other addresses are Ray's to understand.

    Raises:
        OSError: nothing does.
        ValueError: no valid port.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is not None and parts.port is not None:
        socket.create_connection((parts.hostname, parts.port), timeout=10).close()
