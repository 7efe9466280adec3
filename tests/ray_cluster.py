"""A Ray cluster whose head and nodes are started by a process of their own.

A process that has started a cluster is ended by Ray, without a word, minutes after the cluster has stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


class RayCluster:
    """A head with one CPU at ``address``, and nodes with one CPU each, known by their numbers."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.address: str = connection.recv()

    def add_node(self) -> int:
        """Starts a node; its number."""
        return self._ask("add")

    def remove_node(self, number: int) -> None:
        """Ends a node, whatever it is doing; nothing happens if it has ended."""
        self._ask("remove", number)

    def _ask(self, *request: Any) -> int:
        self._connection.send(request)
        answer: int = self._connection.recv()
        return answer


@contextmanager
def running_cluster() -> Iterator[RayCluster]:
    """A cluster for as long as the block runs, whose processes have no lower priority than others."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,))
    process.start()
    theirs.close()
    try:
        yield RayCluster(ours)
    finally:
        ours.close()
        process.join()


def _serve(connection: Connection) -> None:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "PYTHONPATH": ":".join(sys.path)}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    nodes: list[Any] = []
    connection.send(cluster.address)
    try:
        while True:
            kind, *numbers = connection.recv()
            if kind == "add":
                nodes.append(cluster.add_node(**NODE))
            for number in numbers:
                if nodes[number] in cluster.worker_nodes:
                    cluster.remove_node(nodes[number])
            connection.send(len(nodes) - 1)
    except EOFError:
        cluster.shutdown()
