"""Demonstrations from ManiSkill's own motion planner, in ManiSkill's own trajectory format (`.h5` and `.json`).

Seeds are tried in order. Finished parts (`planning.py`) wait in a hidden folder and are merged at the end:

    <out>/PushCube-v1/motionplanning/.parts/seeds-00000000/part.h5, part.json
    <out>/PushCube-v1/motionplanning/trajectory.none.pd_joint_pos.physx_cpu.h5, .json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from par_agent.errors import UserError
from par_agent.jobs import Prepare, open_runner
from par_agent.simulation import planning
from par_agent.tasks import PROTOCOL_SEED, resolve_task
from par_agent.utils.checked import Checked, Count, Seed
from par_agent.utils.files import atomic_path, claimed_folder, only_process, read_object, write_json, writing
from par_agent.utils.hdf5 import HDF5Reader, file_image, open_in_memory
from par_agent.utils.interrupts import Interrupts, deferred_interrupts

REMAKE = "delete it and run the same command again, which makes it anew"
FILE_NAME = "trajectory.none.pd_joint_pos.physx_cpu.h5"


@dataclass(frozen=True)
class DemoRequest(Checked):
    """Which demonstrations to make. Equal requests give equal files."""

    task: str
    """Task by name, for example PushCube, or module:NAME for a TaskSpec of your own."""
    num: Count = 1000
    """Number of demonstrations; attempts that fail or are too long do not count."""
    first_seed: Seed = 0
    """Environment seed of the first attempt. All seeds must stay below 20241201, where the protocol's begin."""
    max_steps: Count = 200
    """Attempts with more control steps are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_seed + self.num > PROTOCOL_SEED:
            raise UserError(
                f"seeds {self.first_seed} to {self.first_seed + self.num - 1} reach {PROTOCOL_SEED}, where the "
                "evaluation protocol's initial states start; these must not enter training data: take smaller seeds"
            )

    @property
    def env_id(self) -> str:
        """Gymnasium id of the task's environment; an unknown task is a UserError."""
        return resolve_task(self.task).env_id

    def path(self, out: Path) -> Path:
        """The `.h5` file below `out`, named as ManiSkill names its own."""
        return Path(out) / self.env_id / "motionplanning" / FILE_NAME

    def record(self) -> dict[str, Any]:
        """What the `.json` says about how the file was made."""
        return {name: getattr(self, name) for name in ("env_id", "num", "first_seed", "max_steps")}

    def maker(self) -> tuple[Prepare, Any]:
        """What a worker is prepared with to make parts of the file: a function, and its first argument."""
        return planning.part_maker, self.task


def make_demos(
    request: DemoRequest, out: Path, workers: int = 1, progress: bool = True, cluster: str | None = None
) -> Path:
    """Makes the requested demonstrations; after an interruption the same call goes on where it stopped.

    Args:
        out: folder for all tasks' demonstrations.
        workers: processes that plan at the same time, at least 1.
        progress: show a progress bar on stderr.
        cluster: address of a Ray cluster whose nodes plan in place of processes of this machine.

    Returns:
        The `.h5` file. It holds `traj_0 .. traj_{num-1}` in seed order, each with `actions` (E, A) float32,
        `env_states/...` (E + 1, ...) float32, and `success`, `terminated`, `truncated` (E,) bool.

    Raises:
        UserError: an unknown task, the file exists and was made by another request, another process works in the same
            folder, the disk is full, the simulator or its planner cannot run here, or there is no such cluster.
        Interrupted: the process was told to end; finished parts are kept.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    target = request.path(out)
    parts = target.parent / ".parts"
    if _is_complete(target, request) and not parts.exists():
        return target
    with (
        deferred_interrupts() as interrupts,
        writing(target.parent),
        only_process(parts / "lock", f"makes demonstrations in {target.parent}", within=target.parent),
        claimed_folder(
            parts / "request.json",
            request.record(),
            begun=lambda: bool(planning.finished_parts(parts)),
            free=("num", "first_seed", "max_steps"),  # parts are made per seed, and whole
        ),
    ):
        planning.remove_unfinished(parts)
        if not _is_complete(target, request):
            try:
                _make_parts(request, parts, workers, progress, cluster)
            finally:
                planning.remove_unfinished(parts)
            _merge(request, parts, target, interrupts)
        planning.remove_parts(parts)
    return target


def _is_complete(target: Path, request: DemoRequest) -> bool:
    """Whether all demonstrations are there; those of another request are refused."""
    if not target.exists():
        return False
    if not target.with_suffix(".json").exists():
        raise UserError(f"{target} lacks its .json: {REMAKE}")
    about: Any = read_object(target.with_suffix(".json"), planning.Part)
    if about.get("request") != request.record():
        raise UserError(
            f"{target} exists and was made with {about.get('request') or 'unknown arguments'}, not {request.record()}; "
            "move it away or give another output folder"
        )
    with HDF5Reader(target, REMAKE) as file:
        steps = {f"traj_{episode['episode_id']}": episode["elapsed_steps"] for episode in about["episodes"]}
        if len(steps) != request.num or file.names() != sorted(steps):
            raise file.damaged(f"it holds {len(file.names())} trajectories, its .json lists {len(steps)}")
        for name, length in steps.items():
            file.check(f"{name}/actions", np.float32, (length, None))
        file.array(f"traj_{request.num - 1}/actions", np.float32, (None, None))
    return True


def _kept_episodes(request: DemoRequest, parts: Path, first: int) -> list[planning.PartEpisode]:
    """Episodes of a finished part that are short enough for the request."""
    episodes = planning.read_part(parts, first)["episodes"]
    return [episode for episode in episodes if episode["elapsed_steps"] <= request.max_steps]


def _next_part(request: DemoRequest, finished: dict[int, int], busy: set[int]) -> int | None:
    """First seed of the next part to make; None while the parts before it hold, or may come to hold, enough episodes.

    ``finished`` maps the first seed of finished parts to their kept episodes; ``busy`` are parts that workers make.
    """
    expected = 0
    for first in range(request.first_seed, PROTOCOL_SEED - planning.SEEDS_PER_PART + 1, planning.SEEDS_PER_PART):
        if expected >= request.num:
            return None
        if first not in finished and first not in busy:
            return first
        expected += finished.get(first, planning.SEEDS_PER_PART)
    raise UserError(f"fewer than {request.num} successful demonstrations before seed {PROTOCOL_SEED}; ask for fewer")


def _make_parts(request: DemoRequest, parts: Path, workers: int, progress: bool, cluster: str | None) -> None:
    """Lets workers make parts until the finished ones, in seed order and without a gap, hold enough episodes."""
    finished = {
        first: len(_kept_episodes(request, parts, first))
        for first in planning.finished_parts(parts)
        if (first - request.first_seed) % planning.SEEDS_PER_PART == 0 and first >= request.first_seed
    }
    if _next_part(request, finished, set()) is None:
        return
    planning.check_planner()
    busy: set[int] = set()

    def wanted_parts() -> Iterator[int | None]:
        while True:
            first = _next_part(request, finished, busy)
            if first is not None:
                busy.add(first)
            yield first

    opened = open_runner(*request.maker(), parts, workers, cluster)
    done = min(sum(finished.values()), request.num)
    bar = tqdm(total=request.num, initial=done, desc=request.env_id, unit="demo", disable=not progress)
    with bar, opened as runner:
        for first, message in runner.run(wanted_parts()):
            if isinstance(message, Path):
                busy.discard(first)
                finished[first] = len(_kept_episodes(request, parts, first))
            elif message <= request.max_steps and bar.n < request.num:
                bar.update()


def _merge(request: DemoRequest, parts: Path, target: Path, interrupts: Interrupts) -> None:
    """Writes the first `num` kept episodes. The `.h5` is there only when its `.json` is."""
    episodes: list[dict[str, Any]] = []
    first = request.first_seed
    with open_in_memory() as output:
        while len(episodes) < request.num:
            interrupts.check()
            folder = planning.part_folder(parts, first)
            with HDF5Reader(folder / "part.h5", f"delete {folder} and run the same command again") as source:
                for episode in _kept_episodes(request, parts, first)[: request.num - len(episodes)]:
                    _copy(source, f"traj_{episode['episode_id']}", output.create_group(f"traj_{len(episodes)}"))
                    episodes.append({**episode, "episode_id": len(episodes)})
            first += planning.SEEDS_PER_PART
        image = file_image(output)
    description = planning.read_part(parts, request.first_seed)
    with atomic_path(target) as temporary:
        temporary.write_bytes(image)
        write_json(target.with_suffix(".json"), {**description, "episodes": episodes, "request": request.record()})


def _copy(source: HDF5Reader, group: str, output: h5py.Group) -> None:
    """Copies groups and arrays, compressed and without time stamps, so that equal arrays give equal bytes."""
    for name in source.names(group):
        path = f"{group}/{name}"
        if source.is_group(path):
            _copy(source, path, output.create_group(name))
        else:
            output.create_dataset(name, data=source.array(path, None, None, finite=False), compression="gzip")
