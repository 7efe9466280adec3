"""Workers on the nodes of an existing Ray cluster. They share no folder with this machine: files come back as bytes.

Each node needs this package and what it depends on in the same versions. A job whose worker or node is lost is done
again elsewhere.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from par_agent.errors import UserError
from par_agent.jobs.runner import DOCTOR, DoJob, LostJobError, Prepare, described_error, job_error, use_one_thread
from par_agent.utils.files import writing
from par_agent.utils.interrupts import deferred_interrupts
from par_agent.utils.references import optional_module
from par_agent.utils.versions import check_versions, installed_versions

MAX_RETRIES = 3
"""How often a job is started again whose worker process or node is lost."""
NOTICED = 0.5
"""Seconds after which an interruption is noticed at the latest."""
PACKAGES = ("par-agent", "mani_skill", "sapien", "mplib", "diffusers", "torch", "numpy", "h5py")
"""What has to be the same on all nodes beside this package's own code."""


@contextmanager
def ray_runner(prepare: Prepare, setup: Any, folder: Path, address: str) -> Iterator[RayRunner]:
    """Connects to a cluster for as long as the block runs; see :func:`par_agent.jobs.open_runner`.

    The address is ``host:port`` of the cluster's head, or ``auto`` for the cluster that this machine belongs to.
    """
    ray = optional_module("ray", "a cluster needs Ray", "cluster")
    try:
        _connect(address)  # Ray itself tries an address for minutes
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():  # Ray's ends the process without a clean-up
            signal.signal(signal.SIGTERM, handler)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`, add nodes with "
            "`ray start --address=HOST:PORT`, and give its address"
        ) from None
    try:
        yield RayRunner(ray, prepare, setup, folder)
    finally:
        ray.shutdown()  # ends this program's tasks, not the cluster


class RayRunner:
    """A :class:`par_agent.jobs.runner.JobRunner`: a cluster's CPUs, of which each does one job at a time."""

    def __init__(self, ray: Any, prepare: Prepare, setup: Any, folder: Path) -> None:
        self._ray = ray
        self._setup = ray.put(_NodeSetup(uuid.uuid4().hex, prepare, setup, installed_versions(PACKAGES, ("",))))
        self._folder = folder

    @property
    def workers(self) -> int:
        """CPUs of all nodes together."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def run(self, jobs: Iterable[Any], *, yield_lost: bool = False) -> Iterator[tuple[Any, Any]]:
        """See :meth:`par_agent.jobs.runner.JobRunner.run`; a job's messages come together when it has ended."""
        task = self._ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_do_on_node)
        upcoming = iter(jobs)
        running: dict[Any, Any] = {}
        while True:
            while len(running) < max(1, self.workers) and (job := next(upcoming, None)) is not None:
                running[task.remote(self._setup, job)] = job
            if not running:
                return
            finished = self._wait(list(running))
            job = running.pop(finished)
            try:
                messages, files = self._ray.get(finished)
            except self._ray.exceptions.RayTaskError as error:
                raise _cause(error) from error
            except self._ray.exceptions.RayError as error:
                how = f"its worker was lost {MAX_RETRIES + 1} times: {type(error).__name__}"
                lost = LostJobError(how, "; see Ray's logs, then run the same command again")
                if not yield_lost:
                    raise lost from None
                yield job, lost
                continue
            with writing(self._folder):
                _write_files(self._folder, files)
            for message in messages:
                yield job, message

    def _wait(self, running: list[Any]) -> Any:
        """The next task that ends."""
        with deferred_interrupts() as interrupts:
            while True:
                finished, _ = self._ray.wait(running, num_returns=1, timeout=NOTICED)
                interrupts.check()
                if finished:
                    return finished[0]


def _cause(error: Any) -> Exception:
    """The exception that ended a task."""
    cause: Exception = error.cause
    if isinstance(cause, RuntimeError) and "failed to import" in str(cause):  # in Ray's words
        return UserError(f"a cluster node does not have this version of this package: install it there ({cause})")
    return cause


def _connect(address: str) -> None:
    """Raises OSError or ValueError where nothing answers at ``host:port`` or ``ray://host:port``; other addresses are
    Ray's to understand."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname is not None and parts.port is not None:
        socket.create_connection((parts.hostname, parts.port), timeout=10).close()


def _write_files(folder: Path, files: dict[Path, bytes]) -> None:
    """Writes what a job made; a new file, or a new folder with all that is in it, appears when it is complete."""
    if not files:
        return
    temporary = folder / f".job.{os.getpid()}.tmp"
    try:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        _move_into(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.is_dir() and (target / path.name).is_dir():
            _move_into(path, target / path.name)
        else:
            os.replace(path, target / path.name)


@dataclass(frozen=True)
class _NodeSetup:
    """What a node needs to do a run's jobs; equal for all jobs of a run."""

    run: str
    """Identifies the run."""
    prepare: Prepare = field(compare=False)
    """Makes what does the jobs."""
    setup: Any = field(compare=False)
    """Its first argument."""
    versions: dict[str, str] = field(compare=False)
    """Versions on the machine that asks."""


@lru_cache(maxsize=1)  # a process of a node outlives single jobs
def _prepare(node: _NodeSetup) -> tuple[DoJob, tempfile.TemporaryDirectory[str]]:
    """The function that does a run's jobs in this process of a node, and the folder it writes to."""
    check_versions("this package", node.versions, installed_versions(PACKAGES, ("",)))
    use_one_thread()
    folder = tempfile.TemporaryDirectory()
    return node.prepare(node.setup, Path(folder.name)), folder


def _do_on_node(node: _NodeSetup, job: Any) -> tuple[list[Any], dict[Path, bytes]]:
    """Does one job; its messages, and the content of each file that it made, by path below the worker's folder."""
    who = f"node {platform.node()}"
    try:
        do_job, temporary = _prepare(node)
    except Exception as error:
        raise described_error(error, f"{who} could not start", DOCTOR) from None
    folder = Path(temporary.name)
    try:
        messages = list(do_job(job))
        files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return messages, files
    except Exception as error:
        raise job_error(error, who, f"{folder} of {who}") from None
    finally:
        shutil.rmtree(folder)
        folder.mkdir()
