"""``par-agent render``: frames of recorded states, or of random arm motion, as a dataset for training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from par_agent.data.episodes import claimed_dataset, episode_path, summarise
from par_agent.data.render_spec import RenderSpec, read_by, wordings
from par_agent.data.rendering import Renderer, RenderJob, check_seed, episode_renderer, recorded_episode
from par_agent.data.selection import format_numbers, parse_numbers, select
from par_agent.data.trajectory import TrajectoryFile
from par_agent.errors import UserError
from par_agent.jobs import DEFAULT_WORKERS, open_runner
from par_agent.tasks import TaskSpec, find_task, get_task
from par_agent.utils.checked import (
    MANY,
    Checked,
    ClusterAddress,
    Count,
    Length,
    NonNegative,
    Offset,
    Pixels,
    Seed,
    SmallCount,
)
from par_agent.utils.files import only_process, remove_leftovers, write_json, writing
from par_agent.utils.interrupts import deferred_interrupts


@dataclass(frozen=True)
class RenderConfig(Checked):
    """Renders a ManiSkill trajectory file, or random arm motion without actions, into a dataset folder."""

    out: Path
    """Dataset folder to create or to continue."""
    trajectory: Path | None = None
    """ManiSkill trajectory file: .h5, with its .json in the same folder."""
    random_motion: str | None = None
    """Task whose random initial states and arm motion to render, without actions, instead of a trajectory file."""
    recorded_images: bool = False
    """Takes the images inside the trajectory file (recorded with obs_mode rgb) instead of rendering."""
    num: Count | None = None
    """Number of episodes to render. Default: all of the trajectory file, or 1000 of random motion."""
    episodes: str | None = None
    """Episodes of the trajectory file to render, by number, such as 0-99,120. Default: all."""
    include_failures: bool = False
    """Also renders episodes that did not end in success."""
    skip_corrupt: bool = False
    """Leaves out episodes of the trajectory file that are damaged or otherwise unusable, and names each."""
    cameras: tuple[str, ...] = ("render_camera",)
    """`render_camera`, sensor cameras of the environment such as base_camera, or both. With --recorded-images: cameras
    of the trajectory file."""
    crop: tuple[Offset, Offset, Pixels, Pixels] | None = None
    """Top, left, height and width of the crop, in pixels of the rendered image (render_camera: 512x512)."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width of the stored frames; they are shrunk by area averaging or enlarged linearly."""
    extra: tuple[str, ...] = ()
    """Entries of ManiSkill's obs["extra"] that the policy reads besides the joint positions, for example goal_pos;
    entries that the task lacks are skipped. Entries about contacts (is_grasped) are correct in recorded images only."""
    like: str | None = None
    """Checkpoint, a folder, a bundled one's name or org/name[@revision] on the Hub, whose camera, crop, size, extra
    observations and chunk length are taken; those that are given beside it come first."""
    stride: Length = 8
    """Control steps between stored frames: the chunk length, or a divisor of it for more starting points."""
    phase: NonNegative = 0
    """Control step of the first stored frame, 0 to stride - 1."""
    first_seed: Seed = 1_000_000
    """Random motion: environment seed of the first episode."""
    motion_steps: NonNegative = 0
    """Random motion: control steps after the initial state; 0 renders only the initial states."""
    variation: str = "none"
    """What differs from the task's own images, as in `par-agent benchmark --variation`, for example blink."""
    randomize: tuple[str, ...] = ()
    """Draws another appearance for every episode: camera, light, color, table, background, distractors, or names of
    variations; camera=1.5 has 1.5 times the variation's range. Stored with the episode."""
    randomize_seed: Seed = 0
    """Seed of what --randomize draws."""
    instruction: tuple[str, ...] = ()
    """Language instruction, or several wordings of it; each training window uses one. Default: the task's own and, for
    the benchmark's tasks, twelve other wordings. Tasks that this package does not know need one."""
    workers: SmallCount = DEFAULT_WORKERS
    """Worker processes."""
    cluster: ClusterAddress | None = None
    """Address of a Ray cluster whose nodes render instead of worker processes; auto: the cluster of this machine."""

    def spec(self) -> RenderSpec:
        """Resolves the command line into the spec that is stored with the dataset; reads all episodes that it names."""
        if self.like is not None:
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            free = {name: v for name, v in read_by(self.like).items() if getattr(self, name) == defaults[name]}
            return dataclasses.replace(self, like=None, **free).spec()
        if (self.trajectory is None) == (self.random_motion is None):
            raise UserError("give either --trajectory FILE.h5 or --random-motion TASK")
        if self.trajectory is None:
            return self._random_spec(get_task(str(self.random_motion)))
        with TrajectoryFile(self.trajectory) as file:
            task = find_task(file.env_id)
            spec = self._base_spec(file.env_id, str(self.trajectory), max(1, len(file)), task)
            taken = self._select(file, spec)
            modes = sorted({file.info(number).control_mode for number in taken})
            first = tuple(file.episodes[: len(taken)]) == taken
        if len(modes) > 1:
            raise UserError(
                f"{self.trajectory} holds actions of {' and '.join(modes)}; a dataset holds one controller's: choose "
                "with --episodes"
            )
        if task is not None and modes[0] != task.control_mode:
            print(f"control mode {modes[0]}: actions as recorded; the protocol's is {task.control_mode}")
        chosen = None if first else format_numbers(taken)
        return dataclasses.replace(spec, num_episodes=len(taken), source_episodes=chosen)

    def _random_spec(self, task: TaskSpec) -> RenderSpec:
        if self.recorded_images or self.episodes is not None or self.include_failures or self.skip_corrupt:
            raise UserError(
                "--recorded-images, --episodes, --include-failures and --skip-corrupt are for a trajectory file; give "
                "--trajectory FILE.h5"
            )
        spec = self._base_spec(task.env_id, "random-motion", 1000 if self.num is None else self.num, task)
        spec.check_cameras(task)
        return spec

    def _base_spec(self, env_id: str, source: str, count: int, task: TaskSpec | None) -> RenderSpec:
        if task is None and not self.instruction:
            raise UserError(f"{env_id} has no instruction here; say what it is about with --instruction TEXT")
        shared = (
            *("cameras", "crop", "size", "stride", "phase", "first_seed", "motion_steps", "extra"),
            *("variation", "randomize", "randomize_seed"),
        )
        return RenderSpec(
            env_id=env_id,
            source=source,
            num_episodes=count,
            instruction=wordings(self.instruction or (task.wordings if task else ())),
            recorded=self.recorded_images,
            **{name: getattr(self, name) for name in shared},
        )

    def _select(self, file: TrajectoryFile, spec: RenderSpec) -> tuple[int, ...]:
        """Numbers of the episodes to render; what is read later is checked now, of images the first and the last."""
        looked_at = spec if self.skip_corrupt else dataclasses.replace(spec, stride=MANY)

        def check(number: int) -> None:
            if spec.recorded:
                recorded_episode(looked_at, file, number)
            else:
                check_seed(spec, file.read(number).info)

        if unlisted := file.unlisted:
            print(f"left out {len(unlisted)} episodes that the JSON does not list: {unlisted[0]}")
        return select(
            str(file.path),
            file.episodes,
            self.episodes,
            file.succeeded,
            check,
            limit=self.num,
            include_failures=self.include_failures,
            skip_corrupt=self.skip_corrupt,
        )


def main(config: RenderConfig) -> int:
    """Renders what is missing, then writes the summary."""
    spec = config.spec()
    out = config.out
    with (
        deferred_interrupts(),
        writing(out),
        only_process(out / ".lock", f"renders into {out}", within=out),
        claimed_dataset(out, spec),
    ):
        try:
            _render_missing(spec, out, config.workers, config.cluster)
        finally:
            remove_leftovers(out)
            with suppress(OSError):  # there are episodes, or none was begun
                (out / "episodes").rmdir()
        write_json(out / "dataset.json", summarise(out))
    return 0


def _render_missing(spec: RenderSpec, folder: Path, workers: int, cluster: str | None) -> None:
    """Lets workers render the episodes that have no file yet, and prints how fast they were."""
    todo = [index for index in range(spec.num_episodes) if not episode_path(folder, index).exists()]
    done = spec.num_episodes - len(todo)
    print(f"{spec.env_id}: {spec.num_episodes} episodes, {done} already rendered, into {folder}")
    if not todo:
        return
    with _jobs(spec) as (job, make_renderer):
        opened = open_runner(episode_renderer, make_renderer, folder, min(workers, len(todo)), cluster)
        started, frames = time.monotonic(), 0
        with tqdm(total=len(todo), unit="episode", desc="render") as progress, opened as runner:
            for _, rendered in runner.run(map(job, todo)):
                frames += rendered
                progress.update()
                progress.set_postfix(frames=frames)
    seconds = time.monotonic() - started
    print(f"{frames} frames in {seconds:.0f} s: {frames / seconds:.1f} frames/s")


@contextmanager
def _jobs(spec: RenderSpec) -> Iterator[tuple[Callable[[int], RenderJob], Callable[[], Renderer] | None]]:
    """What makes the job of an episode, and what makes a worker's renderer."""
    if spec.is_random:
        yield (lambda number: RenderJob(number, None)), partial(Renderer, spec)
        return
    with TrajectoryFile(spec.source) as file:
        numbers = file.episodes if spec.source_episodes is None else parse_numbers(spec.source_episodes)

        def job(index: int) -> RenderJob:
            number = numbers[index]
            return RenderJob(index, recorded_episode(spec, file, number) if spec.recorded else file.read(number))

        control_mode = file.info(numbers[0]).control_mode  # env_kwargs need not tell
        options = {**file.options, "control_mode": control_mode}
        yield job, None if spec.recorded else partial(Renderer, spec, options)
