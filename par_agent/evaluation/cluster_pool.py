"""Rollouts on a Ray cluster, with the same bench as local workers.

Nodes share no folder with this machine: a job takes its initial states along as bytes, and videos come back as bytes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from par_agent.errors import UserError
from par_agent.evaluation.jobs import Bench, Reply, RolloutJob, WorkerSetup, died
from par_agent.evaluation.rollout import rollout_versions
from par_agent.jobs.ray_cluster import Cluster, LostJobError
from par_agent.utils.files import atomic_path
from par_agent.utils.references import search_folder
from par_agent.utils.versions import check_versions


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


@dataclass(frozen=True)
class NodeJob:
    """A job for a node."""

    job: RolloutJob
    """Its paths are of the machine that asks."""
    states: bytes
    """Content of the job's file of initial states."""


@dataclass(frozen=True)
class NodeResult:
    """What a node gives back for one job."""

    replies: list[Reply]
    videos: dict[int, bytes]
    """MP4s by state."""


class ClusterPool:
    """Has a cluster do jobs, as :class:`par_agent.evaluation.workers.WorkerPool` has processes of this machine.

    Args:
        setup: what the workers build.
        address: the cluster's, see :class:`par_agent.jobs.ray_cluster.Cluster`.
        versions: of all that decides a rollout, see :func:`par_agent.evaluation.rollout.rollout_versions`.
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
            questions = iter(["renderer"])
            ((_, answer),) = self._cluster.run(_NodeBench, self._setup, _NodeBench.tell, lambda: next(questions, None))
            if isinstance(answer, LostJobError):
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
        node_jobs = (NodeJob(job, job.states_file.read_bytes()) for job in jobs)
        for done, result in self._cluster.run(_NodeBench, self._setup, _NodeBench.do, lambda: next(node_jobs, None)):
            if isinstance(result, LostJobError):
                result = NodeResult(died(done.job, str(result)), {})
            for reply in result.replies:
                yield done.job, _save_video(done.job, reply, result.videos)


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


class _NodeBench:
    """A bench in a process of a node, with a folder of its own.

    Raises:
        UserError: the node has other versions, or a task, the policy or the renderer does not work there.
    """

    def __init__(self, setup: NodeSetup) -> None:
        os.environ["LP_NUM_THREADS"] = "1"  # the software renderer's own threads
        search_folder(setup.folder)
        check_versions("this package", setup.versions, rollout_versions())
        check_versions("the policy", {"files": setup.fingerprint}, {"files": setup.worker.policy.fingerprint()})
        self._bench = Bench(setup.worker)
        self._folder = tempfile.TemporaryDirectory()

    def tell(self, _question: str) -> str:
        """Name of the device that renders."""
        return self._bench.renderer()

    def do(self, asked: NodeJob) -> NodeResult:
        folder, job = Path(self._folder.name), asked.job
        states_file = folder / job.states_file.name
        if not states_file.exists():
            states_file.write_bytes(asked.states)
        videos = tuple((state, folder / f"{state}.mp4") for state, _ in job.videos)
        replies = list(self._bench.do(replace(job, states_file=states_file, videos=videos)))
        made = {state: path.read_bytes() for state, path in videos if path.exists()}
        for _, path in videos:
            path.unlink(missing_ok=True)
        return NodeResult(replies, made)
