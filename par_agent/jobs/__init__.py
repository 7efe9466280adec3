"""Work in several processes: on this machine or on a Ray cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from par_agent.jobs.local import DEFAULT_WORKERS, local_runner
from par_agent.jobs.ray import ray_runner
from par_agent.jobs.runner import JobRunner, Prepare

__all__ = ["DEFAULT_WORKERS", "JobRunner", "Prepare", "open_runner"]


def open_runner(
    prepare: Prepare, setup: Any, folder: Path, workers: int, cluster: str | None = None
) -> AbstractContextManager[JobRunner]:
    """Starts workers, which end with the block.

    Args:
        prepare: importable; called once in every worker with the next two arguments.
        setup: what all jobs have in common; picklable.
        folder: where the files that jobs make are to appear.
        workers: processes of this machine, unless there is a cluster.
        cluster: address of a Ray cluster whose nodes do the jobs, see :func:`par_agent.jobs.ray.ray_runner`.
    """
    if cluster is None:
        return local_runner(prepare, setup, folder, workers)
    return ray_runner(prepare, setup, folder, cluster)
