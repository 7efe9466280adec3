"""A Ray cluster's nodes in place of worker processes. They share no folder with this machine: files come as bytes."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from par_agent.errors import UserError
from par_agent.jobs.local import UNFINISHED, DoAll, NextJob, Prepare
from par_agent.jobs.ray_cluster import Cluster, LostJobError
from par_agent.utils.files import atomic_path
from par_agent.utils.versions import check_versions, installed_versions

_PACKAGES = ("par-agent", "mani_skill", "sapien", "mplib", "torch", "numpy", "h5py")
_CODE = ("data", "tasks.py", "policy/transforms.py")


@dataclass(frozen=True)
class NodeSetup:
    """What a node needs to do jobs, and what has to be the same there."""

    prepare: Prepare
    """Makes what does the jobs."""
    what: Any
    """Its first argument."""
    versions: dict[str, str]
    """Versions of all that decides the files, of this machine."""


@dataclass(frozen=True)
class NodeResult:
    """What a node gives back for one job."""

    made: Path
    """The file or folder that was made, relative to the folder to write to."""
    files: dict[Path, bytes]
    """Contents by path relative to `made`."""
    reports: list[int]
    """Amounts that the job told of."""


@contextmanager
def cluster_workers(address: str, prepare: Prepare, what: Any, folder: Path) -> Iterator[DoAll]:
    """Gives what lets a cluster's nodes do jobs, as :func:`par_agent.jobs.local.worker_processes` does for processes.

    Args:
        address: the cluster's, see :class:`par_agent.jobs.ray_cluster.Cluster`.
        prepare: importable on every node.
        what: its first argument, picklable as jobs are.
        folder: where the files that the jobs make are written to, on this machine.

    Raises:
        UserError: no cluster answers.
    """
    setup = NodeSetup(prepare, what, _versions())

    def do_all(next_job: NextJob) -> Iterator[tuple[str, Any]]:
        for job, result in cluster.run(_NodeWorker, setup, _NodeWorker.do, next_job):
            if isinstance(result, LostJobError):
                raise UserError(f"a job was given up: {result}; see Ray's logs, then run the same command again")
            _write(folder, result)
            yield from (("progress", amount) for amount in result.reports)
            yield "done", job

    with Cluster(address) as cluster:
        yield do_all


def _write(folder: Path, result: NodeResult) -> None:
    """Writes what a job made; it appears when it is complete."""
    target = folder / result.made
    if list(result.files) == [Path()]:
        with atomic_path(target) as temporary:
            temporary.write_bytes(result.files[Path()])
        return
    unfinished = target.with_name(UNFINISHED + target.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    for name, content in result.files.items():
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / name).write_bytes(content)
    os.replace(unfinished, target)


def _versions() -> dict[str, str]:
    return installed_versions(_PACKAGES, _CODE)


class _NodeWorker:
    """What does the jobs in a process of a node, with a folder of its own.

    Raises:
        UserError: the node has other versions, or cannot do such jobs.
    """

    def __init__(self, setup: NodeSetup) -> None:
        import torch

        torch.set_num_threads(1)
        check_versions("this package", setup.versions, _versions())
        self._folder = tempfile.TemporaryDirectory()
        self._do_job = setup.prepare(setup.what, Path(self._folder.name))

    def do(self, job: Any) -> NodeResult:
        """Does a job.

        Raises:
            UserError: the job's own, or the node's disk is full.
        """
        reports: list[int] = []
        try:
            made = self._do_job(job, reports.append)
            paths = [path for path in made.rglob("*") if path.is_file()] if made.is_dir() else [made]
            files = {path.relative_to(made): path.read_bytes() for path in paths}
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        except OSError as error:
            raise UserError(f"node {platform.node()}: {error}") from None
        return NodeResult(made.relative_to(self._folder.name), files, reports)
