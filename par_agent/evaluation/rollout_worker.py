"""Rollouts as jobs: what a worker is asked, what it replies, and the worker, in whatever process it is."""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from par_agent.errors import UnavailableError, UserError
from par_agent.evaluation.run_config import RunConfig
from par_agent.utils.versions import check_versions

if TYPE_CHECKING:
    from par_agent.policy.interface import Policy
    from par_agent.simulation.environment import InitialState, TaskEnvironment


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker is made from."""

    config: RunConfig
    """The run: tasks, policy, what simulates them and what is measured."""
    module_folder: str = ""
    """Folder of the modules of ``module:Class`` references; empty: the current one."""
    fingerprint: str | None = None
    """Hash that the policy's files have to have; None: not compared."""


@dataclass(frozen=True)
class RendererJob:
    """Asks for the name of the device that renders."""


@dataclass(frozen=True)
class RolloutJob:
    """Roll a policy out once from each of some initial states, all at once."""

    task: str
    """Task reference."""
    states_file: Path
    """File of the task's initial states, on the machine that asks."""
    states_content: bytes
    """The bytes of that file."""
    checksum: str
    """SHA-256 of that file."""
    states: tuple[int, ...]
    """Indices into the file."""
    policy_seed: int
    videos: tuple[tuple[int, Path], ...] = ()
    """MP4 files to save, relative to the worker's folder, each with the state it is of."""


@dataclass(frozen=True)
class Reply:
    """What came of one rollout of a job."""

    state: int
    """Initial state of the rollout."""
    fields: dict[str, Any] | None = None
    """The rollout's record, None if it failed."""
    warning: str | None = None
    """What went wrong beside the rollout."""
    error: str | None = None
    """Exception type and message, or how the worker died."""
    traceback: str = ""
    """Where the exception came from."""


class RolloutWorker:
    """A worker's environments and policies, made before its first rollout; it saves videos in ``folder``."""

    def __init__(self, setup: WorkerSetup, folder: Path) -> None:
        if os.path.isdir(setup.module_folder):
            os.chdir(setup.module_folder)
        if setup.fingerprint is not None:
            check_versions("the policy", {"files": setup.fingerprint}, {"files": setup.config.policy.fingerprint()})
        self._config, self._folder = setup.config, folder
        self._built: dict[str, tuple[TaskEnvironment, Policy]] = {}
        self._states: dict[Path, list[InitialState]] = {}
        with contextlib.suppress(ImportError):  # making the environment says what is missing
            import mani_skill.envs  # noqa: F401
        gc.freeze()  # ManiSkill collects garbage at every reset: not among all that was imported, which takes 0.2 s
        for task in self._config.tasks:
            self._build(task)

    def __call__(self, job: RolloutJob | RendererJob) -> Iterator[Reply | str]:
        """Does one job; an exception becomes the reply of all rollouts that it ends, but for UnavailableError."""
        if isinstance(job, RendererJob):
            import sapien.render

            yield str(sapien.render.get_device_summary().splitlines()[0]).partition(": ")[2]
            return
        unfinished = set(job.states)
        try:
            for reply in self._roll_out(job):
                unfinished.discard(reply.state)
                yield reply
        except UnavailableError:
            raise
        except Exception as error:
            with contextlib.suppress(Exception):  # built anew for the next rollout, whatever state they are in
                self._built.pop(job.task)[0].close()
            for state in sorted(unfinished):
                yield Reply(state, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())

    def _build(self, task: str) -> tuple[TaskEnvironment, Policy]:
        """The task's environment and policy, made on first use."""
        if task not in self._built:
            config = self._config
            options: Any = {"backend": config.backend, "num_envs": config.num_envs, "variation": config.variation}
            env, policy = config.policy.open(config.spec(task), config.track, **options)
            for measurement in config.measurements:
                measurement.observer(env, policy)  # so that a policy that cannot be measured is refused at once
            self._built[task] = env, policy
        return self._built[task]

    def _roll_out(self, job: RolloutJob) -> Iterator[Reply]:
        from par_agent.evaluation.protocol import load_states
        from par_agent.evaluation.rollout import roll_out
        from par_agent.evaluation.stages import StageObserver
        from par_agent.evaluation.video_observer import VideoObserver

        env, policy = self._build(job.task)
        if job.states_file not in self._states:
            try:
                self._states[job.states_file] = load_states(job.states_file, env.spec, job.checksum, job.states_content)
            except UserError as error:  # no fault of the policy: it must not count as a failure
                raise UnavailableError(str(error)) from None
        states = [self._states[job.states_file][index] for index in job.states]
        videos = {job.states.index(state): self._folder / path for state, path in job.videos}
        measured = (measurement.observer(env, policy) for measurement in self._config.measurements)
        observers = [VideoObserver(env, videos), StageObserver(env), *measured]
        try:
            options: Any = {"after_success": self._config.steps_after_success, "observers": observers}
            for position, fields in roll_out(env, policy, states, job.policy_seed, **options):
                warning = next(filter(None, (observer.warning(position) for observer in observers)), None)
                yield Reply(job.states[position], fields, warning)
        finally:
            for observer in observers:
                observer.close()
