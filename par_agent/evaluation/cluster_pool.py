"""Rollouts as tasks on a Ray cluster, with the same bench as local workers.

Nodes share no folder with this machine: a task gets the initial states as bytes and gives its videos back as bytes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from par_agent.cluster import Cluster, LostTaskError
from par_agent.errors import UserError
from par_agent.evaluation.jobs import Bench, Reply, RolloutJob, WorkerSetup, died
from par_agent.evaluation.provenance import package_versions
from par_agent.files import atomic_path


@dataclass(frozen=True)
class NodeSetup:
    """What a node needs to do jobs, and what has to be the same there."""

    worker: WorkerSetup
    """Tasks, track and policy."""
    versions: dict[str, str]
    """Versions of all that decides a rollout, of this machine."""
    fingerprint: str
    """Hash of the policy's files, of this machine."""
    folder: str
    """Where modules of ``module:Class`` references are looked for."""


class ClusterPool:
    """Has a cluster do jobs, as :class:`par_agent.evaluation.workers.WorkerPool` has processes of this machine.

    Args:
        setup: what the workers build.
        address: the cluster's, see :class:`par_agent.cluster.Cluster`.
        versions: of all that decides a rollout, see :func:`par_agent.evaluation.provenance.package_versions`.
        fingerprint: of the policy.

    Raises:
        UserError: (on entering) no cluster, other versions on its nodes, or a task, the policy or the renderer does not
            work there; nothing has been written yet.
    """

    def __init__(self, setup: WorkerSetup, address: str, versions: dict[str, str], fingerprint: str) -> None:
        self._setup = NodeSetup(setup, versions, fingerprint, os.getcwd())
        self._cluster = Cluster(address)
        self.renderer = ""
        """Name of the device that renders, known once the pool is entered."""
        self.workers = 0
        """Rollouts at once, known once the pool is entered."""

    def __enter__(self) -> ClusterPool:
        self._cluster.__enter__()
        try:
            self.workers = self._cluster.cpus
            ((_, answer),) = self._cluster.run(prepare, [(self._setup,)])
            if isinstance(answer, LostTaskError):
                raise UserError(f"the cluster could not start a worker: {answer}")
        except BaseException:
            self.__exit__()
            raise
        self.renderer = answer
        return self

    def __exit__(self, *exception: object) -> None:
        self._cluster.__exit__(*exception)

    def run(self, jobs: Iterable[RolloutJob]) -> Iterator[tuple[RolloutJob, Reply]]:
        """Yields the reply to every rollout as it ends, in no particular order."""
        jobs = list(jobs)
        files = {job.states_file for job in jobs}
        shared = {file: self._cluster.share(file.read_bytes()) for file in files}
        setup = self._cluster.share(self._setup)
        for position, result in self._cluster.run(do, [(setup, job, shared[job.states_file]) for job in jobs]):
            job = jobs[position]
            if isinstance(result, LostTaskError):
                result = Result(died(job, str(result)), {})
            for reply in result.replies:
                yield job, _save_video(job, reply, result.videos)


def _save_video(job: RolloutJob, reply: Reply, videos: dict[int, bytes]) -> Reply:
    """Writes the video that came with a reply; a lost one becomes its warning."""
    if reply.state not in videos:
        return reply
    path = dict(job.videos)[reply.state]
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(videos[reply.state])
    except OSError as error:
        return replace(reply, warning=f"{path} was not saved: {error}")
    return reply


# --- on the nodes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a node gives back for one job."""

    replies: list[Reply]
    videos: dict[int, bytes]
    """MP4s by state."""


class _Desk:
    """A node's worker process: its bench, which outlives single tasks, and a folder of its own."""

    def __init__(self, setup: NodeSetup) -> None:
        os.environ["LP_NUM_THREADS"] = "1"  # the software renderer's own threads
        if os.path.isdir(setup.folder) and setup.folder not in sys.path:
            sys.path.insert(0, setup.folder)
        check_versions("this package", setup.versions, package_versions())
        check_versions("the policy", {"files": setup.fingerprint}, {"files": setup.worker.policy.fingerprint()})
        self.setup = setup
        self.bench = Bench(setup.worker)
        self._folder = tempfile.TemporaryDirectory()

    def do(self, job: RolloutJob, states: bytes) -> Result:
        folder = Path(self._folder.name)
        states_file = folder / job.states_file.name
        if not states_file.exists():
            states_file.write_bytes(states)
        videos = tuple((state, folder / f"{state}.mp4") for state, _ in job.videos)
        replies = list(self.bench.do(replace(job, states_file=states_file, videos=videos)))
        made = {state: path.read_bytes() for state, path in videos if path.exists()}
        for _, path in videos:
            path.unlink(missing_ok=True)
        return Result(replies, made)


_desk: _Desk | None = None


def _desk_for(setup: NodeSetup) -> _Desk:
    """This process's desk, set up anew if the last task was of another run."""
    global _desk
    if _desk is None or _desk.setup != setup:
        _desk = _Desk(setup)
    return _desk


def prepare(setup: NodeSetup) -> str:
    """Task: builds everything once; returns the name of the device that renders.

    Raises:
        UserError: the node has other versions, or a task, the policy or the renderer does not work there.
    """
    try:
        return _desk_for(setup).bench.renderer()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"a node could not start: {type(error).__name__}: {error} (try `par-agent doctor` there)"
        ) from None


def do(setup: NodeSetup, job: RolloutJob, states: bytes) -> Result:
    """Task: does one job.

    Args:
        setup: what the job is a part of.
        job: its paths are of the machine that asks.
        states: content of the job's file of initial states.

    Raises:
        UserError: see :func:`prepare`.
    """
    prepare(setup)
    return _desk_for(setup).do(job, states)


def check_versions(what: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Compares a node's versions with those of the machine that asks.

    Raises:
        UserError: they differ.
    """
    differing = [
        f"{name} {found.get(name)} instead of {value}" for name, value in expected.items() if found.get(name) != value
    ]
    if differing:
        import platform

        raise UserError(
            f"node {platform.node()} has another version of {what} ({', '.join(differing)}): results would not be "
            "comparable; install the same there"
        )
