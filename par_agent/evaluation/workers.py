"""Worker processes that roll policies out: spawned, single-threaded, one rollout at a time.

A worker builds the environment and the policy of every task before it reports ready, so that whatever does not fit is
known before anything is written. A worker that dies takes nothing with it: its rollout is given to a fresh one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from par_agent.errors import UserError
from par_agent.evaluation.policies import PolicySource, resolve_task

if TYPE_CHECKING:
    import numpy as np

    from par_agent.evaluation.environment import TaskEnvironment
    from par_agent.evaluation.policies import Policy
    from par_agent.evaluation.protocol import InitialState

MAX_ATTEMPTS = 2
"""How often a rollout is tried whose worker process dies."""


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker builds before its first rollout."""

    tasks: tuple[str, ...]
    """Task names or ``module:NAME`` references."""
    track: str
    """``paper`` or ``native``."""
    policy: PolicySource
    """Where each task's policy comes from."""


@dataclass(frozen=True)
class StatesJob:
    """Make initial states and store them."""

    task: str
    """Task reference."""
    seeds: tuple[int, ...]
    """Environment seeds."""
    path: Path
    """File to write."""


@dataclass(frozen=True)
class RolloutJob:
    """Roll a policy out once."""

    task: str
    """Task reference."""
    states_file: Path
    """File of the task's initial states."""
    state: int
    """Index into the file."""
    policy_seed: int
    """Seed of the policy's randomness."""
    run_to_end: bool = False
    """Go on after the first success."""
    video: Path | None = None
    """MP4 file to save."""


Job = StatesJob | RolloutJob


@dataclass(frozen=True)
class Reply:
    """What came of a job."""

    fields: dict[str, Any] | None = None
    """The rollout's record, None if it failed."""
    warning: str | None = None
    """What went wrong beside the rollout."""
    error: str | None = None
    """Exception type and message, or how the worker died."""
    traceback: str = ""
    """Where the exception came from."""


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, setup: WorkerSetup, core: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_worker_main, args=(child, setup, core), daemon=True)
        self.process.start()
        child.close()
        self.job: Job | None = None

    def receive(self) -> tuple[str, Any] | None:
        """The worker's next message; None once it is dead."""
        try:
            message: tuple[str, Any] = self.connection.recv()
            return message
        except (EOFError, OSError):
            self.process.join()
            return None

    def send(self, job: Job) -> None:
        """Starts a job; a dead worker is noticed by the next `receive`."""
        self.job = job
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(job)

    def stop(self) -> None:
        """Ends the process, busy or not."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


class WorkerPool:
    """Worker processes that share a list of jobs. Use it as a context manager.

    Args:
        setup: what the workers build.
        count: number of processes.

    Raises:
        UserError: (on entering) a task, the policy or the renderer does not work; nothing has been written yet.
    """

    def __init__(self, setup: WorkerSetup, count: int) -> None:
        self._setup = setup
        self._cores = _cores_for(count)
        self._workers: list[_Worker] = []
        self.renderer = ""
        """Name of the device that renders, known once the pool is entered."""

    def __enter__(self) -> WorkerPool:
        try:
            self._workers = [_Worker(self._setup, core) for core in self._cores]
            for worker in self._workers:
                self.renderer = _wait_until_ready(worker)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Reply]]:
        """Yields every job's reply as it comes, in no particular order."""
        waiting = deque(jobs)
        attempts: dict[Job, int] = {}
        self._give_out(waiting)
        while busy := {worker.connection: worker for worker in self._workers if worker.job is not None}:
            for ready in connection.wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                job, message = worker.job, worker.receive()
                assert job is not None
                worker.job = None
                if message is not None:
                    yield job, message[1]
                    continue
                attempts[job] = attempts.get(job, 0) + 1
                reply = Reply(error=f"the worker process died (exit code {worker.process.exitcode})")
                self._replace(worker)
                if attempts[job] < MAX_ATTEMPTS:
                    waiting.appendleft(job)
                else:
                    yield job, reply
            self._give_out(waiting)

    def _give_out(self, waiting: deque[Job]) -> None:
        for worker in self._workers:
            if waiting and worker.job is None:
                worker.send(waiting.popleft())

    def _replace(self, dead: _Worker) -> None:
        """Starts a new worker in the place of a dead one."""
        index = self._workers.index(dead)
        dead.stop()
        self._workers[index] = _Worker(self._setup, self._cores[index])
        _wait_until_ready(self._workers[index])


def _wait_until_ready(worker: _Worker) -> str:
    """Waits for a worker's first message; returns its renderer.

    Raises:
        UserError: what the worker could not build.
    """
    message = worker.receive()
    if message is None:
        raise UserError(
            f"a worker process died while it started (exit code {worker.process.exitcode}); `par-agent doctor` says "
            "what is missing"
        )
    kind, content = message
    if kind == "invalid":
        raise UserError(content)
    return str(content)


def _cores_for(count: int) -> Sequence[int | None]:
    """One core per worker if there are as many workers as cores; else the scheduler decides."""
    cores = sorted(os.sched_getaffinity(0))
    return cores if len(cores) == count else [None] * count


def _worker_main(parent: connection.Connection, setup: WorkerSetup, core: int | None) -> None:
    """Body of a worker process: builds, reports ready, then does jobs until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["LP_NUM_THREADS"] = "1"  # the software renderer's own threads
    os.environ["OMP_NUM_THREADS"] = "1"
    if core is not None:
        os.sched_setaffinity(0, {core})
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):
        try:
            bench = _Bench(setup)
            parent.send(("ready", bench.renderer()))
        except UserError as error:
            parent.send(("invalid", str(error)))
            return
        except Exception as error:
            text = f"could not start: {type(error).__name__}: {error} (`par-agent doctor` says what is missing)"
            parent.send(("invalid", f"{text}\n{traceback.format_exc()}"))
            return
        while True:
            parent.send(("done", bench.do(parent.recv())))


class _Bench:
    """A worker's environments, policies and initial states, one of each per task."""

    def __init__(self, setup: WorkerSetup) -> None:
        import logging

        import torch

        torch.set_num_threads(1)
        logging.getLogger("mani_skill").setLevel(logging.ERROR)
        self._setup = setup
        self._specs = {task: resolve_task(task) for task in setup.tasks}
        self._built: dict[str, tuple[TaskEnvironment, Policy]] = {}
        self._states: dict[Path, list[InitialState]] = {}
        for task in setup.tasks:
            self._build(task)

    def renderer(self) -> str:
        """Name of the device that renders."""
        import sapien.render

        return str(sapien.render.get_device_summary().splitlines()[0]).partition(": ")[2]

    def do(self, job: Job) -> Reply:
        """Does one job; exceptions become part of the reply."""
        try:
            if isinstance(job, StatesJob):
                self._make_states(job)
                return Reply()
            return self._roll_out(job)
        except Exception as error:
            self._built.pop(job.task, None)  # built anew for the next rollout, whatever state they are in
            return Reply(error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())

    def _build(self, task: str) -> tuple[TaskEnvironment, Policy]:
        """The task's environment and policy, made on first use."""
        from par_agent.evaluation.environment import TaskEnvironment

        if task not in self._built:
            spec = self._specs[task]
            policy = self._setup.policy.build(spec)
            self._built[task] = TaskEnvironment(spec, self._setup.track), policy
        return self._built[task]

    def _make_states(self, job: StatesJob) -> None:
        from par_agent.evaluation.protocol import make_states, save_states

        spec = self._specs[job.task]
        save_states(job.path, spec, make_states(spec, job.seeds))

    def _roll_out(self, job: RolloutJob) -> Reply:
        from par_agent.evaluation.protocol import load_states
        from par_agent.evaluation.rollout import roll_out, save_video

        env, policy = self._build(job.task)
        if job.states_file not in self._states:
            self._states[job.states_file] = load_states(job.states_file, self._specs[job.task])
        state = self._states[job.states_file][job.state]
        frames: list[np.ndarray] | None = None if job.video is None else []
        fields = roll_out(env, policy, state, job.policy_seed, run_to_end=job.run_to_end, frames=frames)
        if job.video is not None and frames is not None:
            try:
                save_video(job.video, frames)
            except (OSError, RuntimeError) as error:  # a lost video is no failed rollout
                return Reply(fields, warning=f"{job.video} was not saved: {error}")
        return Reply(fields)
