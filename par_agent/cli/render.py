"""``par-agent render``: frames of recorded states, or of random arm motion, as a dataset for training."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from par_agent.data.cluster_workers import cluster_workers
from par_agent.data.rendering import (
    ADDED_FIELDS,
    RenderJob,
    RenderSpec,
    RenderWork,
    episode_path,
    episode_renderer,
    recorded_episode,
    summarise,
    wordings,
)
from par_agent.data.trajectory import TrajectoryFile
from par_agent.data.workers import worker_processes
from par_agent.errors import UserError
from par_agent.files import cannot_write, claim_folder, only_process, write_json
from par_agent.tasks import find_task, get_task

CONTROL_MODE = "pd_joint_pos"
"""Controller of tasks that this package does not know."""


@dataclass(frozen=True)
class RenderConfig:
    """Renders a ManiSkill trajectory file (or random arm motion, without actions) into a dataset folder."""

    out: Path
    """Dataset folder to create or to continue."""
    trajectory: Path | None = None
    """ManiSkill trajectory file (.h5 with its .json beside it)."""
    random_motion: str | None = None
    """Instead of a trajectory file: task of which to render random initial states and arm motion, without actions."""
    recorded_images: bool = False
    """Takes frames from the images inside the trajectory file (recorded with obs_mode rgb); needs no renderer."""
    num: int | None = None
    """Episodes to render; if not given, all of the trajectory file, or 1000 of random motion."""
    cameras: tuple[str, ...] = ("render_camera",)
    """`render_camera` and/or sensor cameras of the environment, for example base_camera; recorded images are of
    these."""
    crop: tuple[int, int, int, int] | None = None
    """Top, left, height, width in pixels of the rendered image (render_camera: 512x512)."""
    size: tuple[int, int] | None = None
    """Height and width of the stored frames, shrunk by area averaging or enlarged linearly."""
    extra: tuple[str, ...] = ()
    """Entries of ManiSkill's obs["extra"] that the policy is to read beside the joint positions, for example goal_pos;
    those that the task has are stored. What tells of contacts (is_grasped) is right in recorded images only."""
    chunk_length: int = 8
    """Actions per chunk (L); only recorded with the dataset, so that training can check it."""
    stride: int = 8
    """Control steps between stored frames; the chunk length, or a divisor of it for more starting points."""
    phase: int = 0
    """Control step of the first stored frame, 0 to stride - 1."""
    first_seed: int = 1_000_000
    """Random motion: environment seed of the first episode."""
    motion_steps: int = 0
    """Random motion: control steps after the initial state; 0 renders the initial states alone."""
    instruction: tuple[str, ...] = ()
    """Language instruction, or several wordings of it, one of which a training window shows; the task's own if not
    given. Tasks that this package does not know need one."""
    workers: int = min(2, os.cpu_count() or 1)
    """Worker processes."""
    cluster: str | None = None
    """Address of a Ray cluster whose nodes render instead of worker processes; auto: that of this machine."""

    def spec(self) -> RenderSpec:
        """Resolves the command line into the spec that is stored with the dataset."""
        if (self.trajectory is None) == (self.random_motion is None):
            raise UserError("give either --trajectory FILE.h5 or --random-motion TASK")
        if self.trajectory is not None:
            with TrajectoryFile(self.trajectory) as file:
                env_id, available, mode = file.env_id, len(file), file.control_mode
            num = available if self.num is None else self.num
            if num > available:
                raise UserError(f"--num {num} asks for more episodes than the {available} in {self.trajectory}")
            task = find_task(env_id)
            expected = CONTROL_MODE if task is None else task.control_mode
            if mode != expected:
                raise UserError(
                    f"{self.trajectory} was recorded with control mode {mode}; expected {expected} (convert it with "
                    "mani_skill.trajectory.replay_trajectory -c)"
                )
            source = str(self.trajectory)
        else:
            task = get_task(str(self.random_motion))
            env_id, source = task.env_id, "random-motion"
            num = 1000 if self.num is None else self.num
            if self.recorded_images:
                raise UserError("--recorded-images are those of a trajectory file; give --trajectory FILE.h5")
        if task is None and not self.instruction:
            raise UserError(f"{env_id} has no instruction here; say what it is about with --instruction TEXT")
        return RenderSpec(
            env_id=env_id,
            source=source,
            num_episodes=num,
            instruction=wordings(self.instruction) or (task.instruction if task else ""),
            cameras=self.cameras,
            crop=self.crop,
            size=self.size,
            chunk_length=self.chunk_length,
            stride=self.stride,
            phase=self.phase,
            first_seed=self.first_seed,
            motion_steps=self.motion_steps,
            recorded=self.recorded_images,
            extra=self.extra,
        )


def main(config: RenderConfig) -> int:
    """Renders what is missing, then writes the summary."""
    if config.workers < 1:
        raise UserError(f"workers is {config.workers}; it must be at least 1")
    spec = config.spec()
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        with only_process(config.out / ".lock", f"renders into {config.out}"):
            _remove_unfinished(config.out)
            begun = any((config.out / "episodes").glob("*"))
            claim_folder(config.out / "spec.json", spec.to_json(), begun=begun, defaults=ADDED_FIELDS)
            try:
                _render_missing(spec, config.out, config.workers, config.cluster)
            finally:
                _remove_unfinished(config.out)
            write_json(config.out / "dataset.json", summarise(config.out))
    except OSError as error:
        raise UserError(cannot_write(config.out, error)) from error
    return 0


def _remove_unfinished(folder: Path) -> None:
    """Deletes what killed workers left."""
    for leftover in (folder / "episodes").glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _render_missing(spec: RenderSpec, folder: Path, workers: int, cluster: str | None) -> None:
    """Lets workers render the episodes that have no file yet, and prints how fast they were."""
    todo = deque(index for index in range(spec.num_episodes) if not episode_path(folder, index).exists())
    done = spec.num_episodes - len(todo)
    print(f"{spec.env_id}: {spec.num_episodes} episodes, {done} already rendered, into {folder}")
    if not todo:
        return
    trajectories = None if spec.is_random else TrajectoryFile(spec.source)

    def next_job() -> RenderJob | None:
        if not todo:
            return None
        index = todo.popleft()
        if trajectories is None:
            return RenderJob(index, None)
        return RenderJob(
            index, recorded_episode(spec, trajectories, index) if spec.recorded else trajectories.read(index)
        )

    work = RenderWork(spec, None if trajectories is None else trajectories.options)
    if cluster is None:
        opened = worker_processes(min(workers, len(todo)), episode_renderer, work, folder)
    else:
        opened = cluster_workers(cluster, episode_renderer, work, folder)
    started, frames = time.monotonic(), 0
    with tqdm(total=len(todo), unit="episode", desc="render") as progress, opened as do_all:
        for kind, value in do_all(next_job):
            if kind == "progress":
                frames += value
            else:
                progress.update()
                progress.set_postfix(frames=frames)
    seconds = time.monotonic() - started
    print(f"{frames} frames in {seconds:.0f} s: {frames / seconds:.1f} frames/s")
