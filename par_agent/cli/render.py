"""``par-agent render``: frames of recorded states, or of random arm motion, as a dataset for training."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from par_agent.data.episodes import read_episode
from par_agent.data.rendering import RenderSpec, episode_path, render_episodes
from par_agent.data.statistics import RunningStatistics
from par_agent.data.trajectory import TrajectoryFile
from par_agent.errors import UserError
from par_agent.files import read_json, write_json
from par_agent.tasks import get_task


@dataclass(frozen=True)
class RenderConfig:
    """Renders a ManiSkill trajectory file (or random arm motion, without actions) into a dataset folder."""

    out: Path
    """Dataset folder to create or to continue."""
    trajectory: Path | None = None
    """ManiSkill trajectory file (.h5 with its .json beside it)."""
    random_motion: str | None = None
    """Instead of a trajectory file: task of which to render random initial states and arm motion, without actions."""
    num: int | None = None
    """Episodes to render; all of the trajectory file if not given."""
    cameras: tuple[str, ...] = ("render_camera",)
    """`render_camera` and/or sensor cameras of the environment, for example base_camera."""
    crop: tuple[int, int, int, int] | None = None
    """Top, left, height, width in pixels of the rendered image (render_camera: 512x512)."""
    size: tuple[int, int] | None = None
    """Height and width of the stored frames, resized by area averaging."""
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
    instruction: str | None = None
    """Language instruction; the task's own if not given."""
    workers: int = min(2, os.cpu_count() or 1)
    """Worker processes."""

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
            if mode != get_task(env_id).control_mode:
                raise UserError(
                    f"{self.trajectory} was recorded with control mode {mode}; expected "
                    f"{get_task(env_id).control_mode} (convert it with mani_skill.trajectory.replay_trajectory -c)"
                )
            source = str(self.trajectory)
        else:
            env_id, num, source = get_task(str(self.random_motion)).env_id, self.num or 1000, "random-motion"
        return RenderSpec(
            env_id=env_id,
            source=source,
            num_episodes=num,
            instruction=self.instruction or get_task(env_id).instruction,
            cameras=self.cameras,
            crop=self.crop,
            size=self.size,
            chunk_length=self.chunk_length,
            stride=self.stride,
            phase=self.phase,
            first_seed=self.first_seed,
            motion_steps=self.motion_steps,
        )


def main(config: RenderConfig) -> int:
    """Renders what is missing, then writes the summary."""
    spec = config.spec()
    _claim_folder(config.out, spec)
    todo = [index for index in range(spec.num_episodes) if not episode_path(config.out, index).exists()]
    done = spec.num_episodes - len(todo)
    print(f"{spec.env_id}: {spec.num_episodes} episodes, {done} already rendered, into {config.out}")
    started, frames = time.monotonic(), 0
    if todo:
        frames = _render_in_workers(spec, config.out, todo, config.workers)
    seconds = time.monotonic() - started
    write_json(config.out / "dataset.json", summarise(config.out, spec))
    if frames:
        print(f"{frames} frames in {seconds:.0f} s: {frames / seconds:.1f} frames/s with {config.workers} workers")
    return 0


def _claim_folder(folder: Path, spec: RenderSpec) -> None:
    """Writes the spec, or checks that the folder was begun with the same one."""
    path = folder / "spec.json"
    wanted = spec.to_json()
    if path.exists():
        found = read_json(path)
        differing = sorted(key for key in wanted if found.get(key) != wanted[key])
        if differing:
            details = "; ".join(f"{key}: {found.get(key)} there, {wanted[key]} asked for" for key in differing)
            raise UserError(f"{folder} was begun with other settings ({details}); choose another --out")
    else:
        write_json(path, wanted)
    for leftover in (folder / "episodes").glob(".*.tmp"):
        leftover.unlink()


def _render_in_workers(spec: RenderSpec, folder: Path, todo: list[int], workers: int) -> int:
    """Splits the episodes over spawned processes; returns the number of frames rendered."""
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    count = max(1, min(workers, len(todo)))
    processes = [
        context.Process(target=_worker, args=(spec, folder, todo[rank::count], messages), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    frames, running = 0, count
    try:
        with tqdm(total=len(todo), unit="episode", desc="render") as progress:
            while running:
                try:
                    kind, value = messages.get(timeout=1.0)
                except queue.Empty:
                    if any(process.exitcode not in (None, 0) for process in processes):
                        raise UserError("a render worker was killed; run the same command to continue") from None
                    continue
                if kind == "error":
                    raise UserError(value)
                if kind == "done":
                    running -= 1
                    continue
                frames += value
                progress.update(1)
                progress.set_postfix(frames=frames)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return frames


def _worker(spec: RenderSpec, folder: Path, indices: list[int], messages: Any) -> None:
    try:
        render_episodes(spec, folder, indices, lambda frames: messages.put(("frames", frames)))
        messages.put(("done", None))
    except KeyboardInterrupt:
        return
    except OSError as error:
        messages.put(
            ("error", f"cannot write to {folder}: {error}; free some space, then run the same command to continue")
        )
    except UserError as error:
        messages.put(("error", str(error)))


def summarise(folder: Path, spec: RenderSpec) -> dict[str, Any]:
    """Counts and normalisation statistics over all episodes of a folder (the content of dataset.json).

    ``statistics`` holds mean, standard deviation, minimum and maximum over all control steps of ``proprioception`` (P
    numbers each) and, unless the episodes are action-free, of ``actions`` (A numbers each).
    """
    totals = {"frames": 0, "steps": 0}
    statistics = {name: RunningStatistics() for name in ("proprioception", "actions")}
    for index in range(spec.num_episodes):
        episode = read_episode(episode_path(folder, index), frames=False)
        totals["frames"] += len(episode.frame_steps)
        totals["steps"] += len(episode.proprioception) - 1
        statistics["proprioception"].add(episode.proprioception)
        if episode.actions is not None:
            statistics["actions"].add(np.asarray(episode.actions))
    if spec.is_random:
        del statistics["actions"]
    return {
        "format_version": 1,
        "num_episodes": spec.num_episodes,
        "num_frames": totals["frames"],
        "num_steps": totals["steps"],
        "statistics": {name: value.result() for name, value in statistics.items()},
    }
