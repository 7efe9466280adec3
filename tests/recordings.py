"""Short ManiSkill recordings of random arm motion, made in memory and seen through the cameras while they happen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from par_agent.jobs.runner import DoJob, JobRunner, Prepare
from par_agent.utils.hdf5 import file_image, open_in_memory

SHADER = {"shader_pack": "minimal"}

Views = dict[str, np.ndarray]
"""Camera -> (H, W, 3) uint8."""


@cache
def _probe() -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-m", "par_agent.simulation.renderer_probe"], capture_output=True, text=True
    )
    return result.returncode, result.stdout.strip()


def require_renderer() -> None:
    """Skips the test where nothing can render."""
    status, words = _probe()
    if status:
        pytest.skip(f"no usable renderer ({words}); `par-agent doctor` says more")


def make_environment(env_id: str, control_mode: str = "pd_joint_pos") -> Any:
    """One CPU environment with sensor cameras, to which nothing is shown unless :func:`look` is called."""
    import gymnasium
    import mani_skill.envs  # noqa: F401  registers the environments
    from mani_skill.utils.logging_utils import logger

    logger.setLevel("ERROR")
    environment = gymnasium.make(
        env_id,
        obs_mode="rgb",
        control_mode=control_mode,
        render_mode="rgb_array",
        sim_backend="physx_cpu",
        render_backend="cpu",
        sensor_configs=SHADER,
        human_render_camera_configs=SHADER,
    )
    base: Any = environment.unwrapped
    base.see = base.get_obs
    base.get_obs = lambda *_, **__: {}
    return environment


def look(base: Any) -> Views:
    """What the cameras show now: ManiSkill's own observation and its own render camera."""
    sensors = {name: data["rgb"][0].numpy() for name, data in base.see()["sensor_data"].items()}
    return {"render_camera": base.render_rgb_array("render_camera")[0].numpy(), **sensors}


def record(
    path: Path,
    env_id: str,
    lengths: Sequence[int],
    look_at: dict[int, list[int]],
    control_mode: str = "pd_joint_pos",
) -> list[list[Views]]:
    """Records one episode per length into ``path`` (.h5, with its .json), seeds 0, 1, …

    Args:
        look_at: episode -> control steps before which to look.
        control_mode: controller; joints walk randomly with ``pd_joint_pos``, other commands are random.

    Returns:
        For every episode what the cameras showed live.
    """
    from mani_skill.utils.wrappers.record import RecordEpisode

    recorder = RecordEpisode(
        make_environment(env_id, control_mode),
        output_dir=str(path.parent),
        trajectory_name=path.stem,
        save_video=False,
        record_reward=False,
        save_on_reset=False,
    )
    recorder._h5_file.close()
    recorder._h5_file = open_in_memory()
    base: Any = recorder.unwrapped
    seen = []
    for seed, length in enumerate(lengths):
        generator = np.random.default_rng(seed)
        recorder.reset(seed=seed)
        target = base.agent.robot.get_qpos()[0, :8].numpy()
        views = []
        for step in range(length + 1):
            if step in look_at.get(seed, ()):
                views.append(look(base))
            if step < length and control_mode == "pd_joint_pos":
                target = target + generator.normal(0, 0.1, 8).astype(np.float32)
                recorder.step(target)
            elif step < length:
                size = base.single_action_space.shape
                recorder.step(generator.uniform(-1, 1, size).astype(np.float32))
        recorder.flush_trajectory()
        seen.append(views)
    image = file_image(recorder._h5_file)
    recorder.close()
    path.write_bytes(image)
    return seen


class InThisProcess:
    """A job runner without workers: nothing has to be imported again."""

    workers = 1

    def __init__(self, do_job: DoJob) -> None:
        self._do_job = do_job

    def run(self, jobs: Iterable[Any], *, yield_lost: bool = False) -> Iterator[tuple[Any, Any]]:
        for job in jobs:
            if job is None:
                return
            yield from ((job, message) for message in self._do_job(job))


@contextmanager
def run_in_this_process(
    prepare: Prepare, setup: Any, folder: Path, workers: int, cluster: str | None = None
) -> Iterator[JobRunner]:
    """In place of :func:`par_agent.jobs.open_runner`."""
    yield InThisProcess(prepare(setup, folder))
