"""Lets ManiSkill's motion planner solve a task, a few seeds at a time.

A worker process makes one *part* at a time: the successful episodes of `SEEDS_PER_PART` consecutive seeds, recorded by
ManiSkill's own `RecordEpisode`. The folder of a part has its final name only when it is complete.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypedDict

from par_agent.errors import UserError
from par_agent.jobs.runner import DoJob
from par_agent.simulation.environment import open_environment
from par_agent.tasks import resolve_task
from par_agent.utils.files import read_object
from par_agent.utils.hdf5 import file_image, open_in_memory
from par_agent.utils.versions import installed_version, planner_problem

SEEDS_PER_PART = 10
UNFINISHED = "unfinished-"
"""How names of folders begin that are not complete."""
ARMS = ("panda", "so100")
"""ManiSkill's motion planners."""
SOURCE = ("motionplanning", "official motion planning solution from ManiSkill contributors")
"""How ManiSkill's own files name where their actions come from."""
Attempt = Callable[[Any, int], int | None]
"""Resets the environment that records and acts in it for one seed; gives the control steps of a success, and None for
what is not kept. One that resets nothing leaves nothing to keep."""


def part_folder(parts: Path, first: int) -> Path:
    """Folder of the part whose first seed is `first`."""
    return parts / f"seeds-{first:08d}"


def finished_parts(parts: Path) -> list[int]:
    """First seeds of all complete parts, in order."""
    return sorted(int(folder.name.removeprefix("seeds-")) for folder in parts.glob("seeds-" + "[0-9]" * 8))


class PartEpisode(TypedDict):
    """What is read of an entry in `episodes`."""

    episode_id: int
    elapsed_steps: int


class Part(TypedDict):
    """What is read of ManiSkill's JSON of a part."""

    episodes: list[PartEpisode]


def read_part(parts: Path, first: int) -> Part:
    """ManiSkill's JSON of a part: `env_info`, ..., and one entry in `episodes` for each success."""
    return read_object(part_folder(parts, first) / "part.json", Part)


def remove_unfinished(parts: Path) -> None:
    """Deletes what interrupted workers left."""
    for folder in parts.glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def remove_parts(parts: Path) -> None:
    """Deletes all parts and their folder. If it is stopped, every part that is left is whole."""
    for first in finished_parts(parts):
        os.replace(part_folder(parts, first), parts / f"{UNFINISHED}{first:08d}")
    remove_unfinished(parts)
    shutil.rmtree(parts)


def part_maker(task: str, parts: Path) -> DoJob:
    """What a worker does: makes the part of a task, by its name or as ``module:NAME``, whose first seed it is given."""
    env_id = resolve_task(task).env_id
    return lambda first: make_part(env_id, first, parts)


def make_part(env_id: str, first: int, parts: Path) -> Iterator[int | Path]:
    """Lets the planner solve seeds `first .. first + SEEDS_PER_PART - 1`; see :func:`record_part`."""

    def begin() -> tuple[Any, Attempt]:
        env = open_environment(
            env_id, obs_mode="none", control_mode="pd_joint_pos", render_mode="rgb_array", sim_backend="physx_cpu"
        )
        return env, lambda recorder, seed: solve(recorder, env_id, seed)

    return record_part(first, parts, begin, SOURCE)


def record_part(
    first: int, parts: Path, begin: Callable[[], tuple[Any, Attempt]], source: tuple[str, str]
) -> Iterator[int | Path]:
    """Attempts seeds `first .. first + SEEDS_PER_PART - 1` and stores the successes as one part.

    A fresh environment each time: contact forces carry traces of earlier episodes, and an episode must not depend on
    which worker made it or where an interruption fell.

    Args:
        first: first seed.
        parts: folder of the parts.
        begin: makes the environment and gives it with what attempts a seed; not called for a part that is there.
        source: where the actions come from, in a word and in a sentence, for ManiSkill's JSON.

    Yields:
        The number of control steps of every success, and in the end the part's folder.
    """
    finished = part_folder(parts, first)
    if finished.exists():  # by a worker that was lost before it could say so
        yield finished
        return
    from mani_skill.utils.wrappers.record import RecordEpisode

    unfinished = parts / f"{UNFINISHED}{first:08d}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        env, attempt = begin()
    except RuntimeError as error:
        raise UserError(f"ManiSkill cannot start here ({error}); `par-agent doctor` names what is missing") from error
    recorder = RecordEpisode(
        env,
        output_dir=str(unfinished),
        trajectory_name="part",
        save_video=False,
        source_type=source[0],
        source_desc=source[1],
        record_reward=False,
        save_on_reset=False,
    )
    recorder._h5_file.close()
    recorder._h5_file = open_in_memory()  # RecordEpisode has no option for this
    for seed in range(first, first + SEEDS_PER_PART):
        steps = attempt(recorder, seed)
        if recorder._trajectory_buffer is not None:
            recorder.flush_trajectory(save=steps is not None)
        if steps is not None:
            yield steps
    image = file_image(recorder._h5_file)
    recorder.close()
    (unfinished / "part.h5").write_bytes(image)
    os.replace(unfinished, finished)
    yield finished


def check_planner() -> None:
    """Raises UserError where ManiSkill's motion planner cannot run."""
    if problem := planner_problem(installed_version("numpy"), installed_version("mplib")):
        raise UserError(
            f"{problem}; for demonstrations use an environment with Python 3.10 to 3.12 and `pip install "
            "'par-agent[demos]'`, which brings numpy 1.26. Everything else works in this one"
        )


def find_solution(env_id: str) -> Callable[..., Any]:
    """ManiSkill's motion-planned solution of a task, for the arm that the environment has unless told otherwise."""
    check_planner()
    known = _solutions(ARMS)
    if env_id not in known:
        raise UserError(
            f"ManiSkill has no motion planner for {env_id}; it has them for {', '.join(sorted(known))}. The module of "
            "a task of your own can add one to the MP_SOLUTIONS of mani_skill.examples.motionplanning.panda.run. "
            "Demonstrations from elsewhere go straight into `par-agent render --trajectory`"
        )
    return known[env_id]


def _solutions(arms: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """ManiSkill's solutions for some of :data:`ARMS`, by environment."""
    known: dict[str, Callable[..., Any]] = {}
    for arm in arms:
        known |= importlib.import_module(f"mani_skill.examples.motionplanning.{arm}.run").MP_SOLUTIONS
    return known


def check_panda(env_id: str) -> None:
    """Raises UserError for a task that ManiSkill's planner does not solve with a Panda's hand."""
    find_solution(env_id)
    known = _solutions(("panda",))
    if env_id not in known:
        raise UserError(f"ManiSkill plans {env_id} for another robot; corrections need a Panda: {', '.join(known)}")


def solve(env: Any, env_id: str, seed: int) -> int | None:
    """Runs ManiSkill's motion-planned solution of one seed. Returns its control steps, or None where it fails."""
    solution = find_solution(env_id)
    try:
        with redirect_stdout(None):  # the planner prints every attempt that finds no path
            result = solution(env, seed=seed, debug=False, vis=False)
    except (AssertionError, AttributeError, IndexError, TypeError, ValueError):
        return None  # the solutions go on with the -1 that the planner returns where it finds no path
    if isinstance(result, int) or not bool(result[-1]["success"].item()):
        return None
    return int(result[-1]["elapsed_steps"].item())


def as_it_is(env: Any) -> Any:
    """An environment whose reset leaves the simulation as it is: what resets it, such as a planner, goes on instead."""
    import gymnasium as gym

    class AsItIs(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return {}, {"reconfigure": True}  # RecordEpisode reads this: the scene may be another than before

    return AsItIs(env)


def let_go(env: Any, height: float) -> None:
    """Opens a Panda's hand and draws it back by ``height`` metres, as far as the planner finds a way."""
    import sapien
    from mani_skill.examples.motionplanning.panda.motionplanner import PandaArmMotionPlanningSolver

    agent = env.unwrapped.agent
    planner = PandaArmMotionPlanningSolver(env, vis=False, base_pose=agent.robot.pose, print_env_info=False)
    planner.open_gripper()
    hand = agent.tcp.pose.sp
    planner.move_to_pose_with_screw(hand * sapien.Pose([0, 0, -height]))
    planner.close()
