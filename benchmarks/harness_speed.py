"""Times this harness against a plain evaluation loop, alternating in one run: `python benchmarks/harness_speed.py`.

Processor time is given beside wall time: on a machine that does other work too, it is the one to trust.

The plain loop does what published evaluation scripts of ManiSkill policies do (RDT's, for one): one process,
`obs_mode="rgb"`, and `env.render()` after every control step, although a policy that executes chunks looks only at the
frame after each chunk. A second plain loop leaves the sensor cameras out and uses the harness's own, cheaper shader.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from par_agent.cli.options import run_script
from par_agent.errors import UserError
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.records import Record
from par_agent.evaluation.run_config import RunConfig
from par_agent.simulation.environment import make_simulation
from par_agent.tasks import PAPER_TASKS, get_task
from par_agent.utils.checked import Checked, Count, SmallCount
from par_agent.utils.json_fields import parse_options


class SwayPolicy:
    """Sways the arm a little, a chunk at a time, and costs nothing: what is timed is the harness.

    Args:
        chunk: control steps from one looked-at frame to the next.
    """

    action_size = 8

    def __init__(self, chunk: int = 8) -> None:
        self._chunk = chunk

    @property
    def needs_frame(self) -> bool:
        return self._step % self._chunk == 0

    def reset(self, env_idx: Any = None, seed: int | None = None) -> None:
        self._step = 0
        self._start: Any = None

    def act(self, obs: dict[str, Any]) -> Any:
        import torch

        joints = obs["agent"]["qpos"][:, :7]
        if self._start is None:
            self._start = joints.clone()
        self._step += 1
        sway = 0.1 * torch.sin(torch.tensor(self._step / 20))
        return torch.cat([self._start + sway, torch.ones(len(joints), 1)], dim=1)


@dataclass(frozen=True)
class SpeedConfig(Checked):
    """Times the harness against a plain loop that renders at every control step."""

    tasks: tuple[str, ...] = PAPER_TASKS
    """Registered tasks to roll out."""
    policy: str = "harness_speed:SwayPolicy"
    """As in `par-agent benchmark`. The default has no model, so that only the harness is timed."""
    policy_kwargs: tuple[str, ...] = ()
    """Options of the policy as key=value, as in `par-agent benchmark`."""
    states: Count = 2
    """Rollouts per task and worker of the harness, each to the task's step limit."""
    plain_steps: Count = 40
    """Control steps per task of the plain loops; their resets are not counted."""
    rounds: Count = 3
    """How many times everything is timed in turn; medians are printed."""
    workers: SmallCount | None = None
    """Worker processes of the harness. Default: one per core."""


@dataclass(frozen=True)
class Contestant:
    """One way to roll a policy out."""

    name: str
    plain: bool
    """Whether it is a plain loop."""
    obs_mode: str = "none"
    """Plain loops: ManiSkill's observation mode."""
    shader: str = "minimal"
    """Plain loops: shader of all cameras."""
    workers: int = 1
    """Harness: worker processes."""


@dataclass(frozen=True)
class StepTime:
    """What a control step takes, in seconds."""

    wall: float
    """By the clock, with all workers."""
    processor: float
    """Of all processes and threads together."""


def clock() -> tuple[float, float]:
    """Seconds by the clock, and processor seconds of this process and of those that it has started and that go on."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return time.perf_counter(), sum(t.user + t.system for t in times)


def step_time(started: tuple[float, float], stopped: tuple[float, float], steps: int) -> StepTime:
    """The time of one of so many control steps between two moments."""
    return StepTime((stopped[0] - started[0]) / steps, (stopped[1] - started[1]) / steps)


def contestants(workers: int) -> list[Contestant]:
    """What is timed, the reference first."""
    harness = [Contestant(f"harness, {n} worker{'s' * (n > 1)}", plain=False, workers=n) for n in {1, workers}]
    return [
        Contestant("plain loop, obs_mode rgb, default shader", plain=True, obs_mode="rgb", shader="default"),
        Contestant("plain loop, render camera only, minimal shader", plain=True),
        *sorted(harness, key=lambda contestant: contestant.workers),
    ]


def time_plain_loop(config: SpeedConfig, contestant: Contestant) -> list[StepTime]:
    """A control step of the plain loop, for every task; runs in a process of its own, without a limit on threads."""
    import torch

    times = []
    for task in config.tasks:
        spec = get_task(task)
        env = make_simulation(spec, obs_mode=contestant.obs_mode, shader=contestant.shader)
        policy = policy_source(config).build(spec)
        env.reset(seed=0)
        policy.reset(seed=0)
        base: Any = env.unwrapped
        image = env.render()
        started = clock()
        for _ in range(config.plain_steps):
            observation = {
                "agent": {"qpos": base.agent.robot.get_qpos()},
                "sensor_data": {spec.camera: {"rgb": image}},
            }
            with torch.no_grad():
                action = policy.act(observation)
            env.step(action)
            image = env.render()
        times.append(step_time(started, clock(), config.plain_steps))
        env.close()
    return times


def time_harness(config: SpeedConfig, contestant: Contestant) -> StepTime:
    """A control step of a benchmark run: from the workers being ready to the last record, with resets."""
    with tempfile.TemporaryDirectory() as folder:
        run = BenchmarkRun(
            RunConfig(
                tasks=config.tasks,
                policy=policy_source(config),
                out=Path(folder),
                states=config.states * contestant.workers,
                policy_seeds=1,
                workers=contestant.workers,
                run_to_end=True,
            )
        )
        moments: list[tuple[float, float]] = []
        records: list[Record] = []

        def add(record: Record) -> None:
            records.append(record)
            if len(records) == run.info.total:  # the workers are there still
                moments.append(clock())

        run.run(lambda found: moments.append(clock()), add)
    failed = [record["error"] for record in records if record["error"] is not None]
    if failed:
        raise UserError(f"{len(failed)} rollouts ended with an exception, the first with: {failed[0]}")
    started, stopped = moments
    return step_time(started, stopped, sum(record["steps"] for record in records))


def policy_source(config: SpeedConfig) -> PolicySource:
    """The policy that is rolled out."""
    return PolicySource(config.policy, parse_options(config.policy_kwargs))


def measure(config: SpeedConfig, contestant: Contestant) -> StepTime:
    """A control step of one contestant, mean over tasks."""
    if not contestant.plain:
        return time_harness(config, contestant)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        tasks = process.submit(time_plain_loop, config, contestant).result()
    return StepTime(mean(task.wall for task in tasks), mean(task.processor for task in tasks))


def main(config: SpeedConfig) -> None:
    """Times everything in turn and prints the table."""
    console = Console()
    everyone = contestants(len(os.sched_getaffinity(0)) if config.workers is None else config.workers)
    times: dict[str, list[StepTime]] = {contestant.name: [] for contestant in everyone}
    for turn in range(config.rounds):
        for contestant in everyone:
            step = measure(config, contestant)
            times[contestant.name].append(step)
            last = f"{1000 * step.wall:.1f} ms per control step, {1000 * step.processor:.1f} ms of processor time"
            console.print(f"round {turn + 1} of {config.rounds}: {contestant.name}: {last}", highlight=False)
    console.print(table(config, times))


def table(config: SpeedConfig, times: dict[str, list[StepTime]]) -> Table:
    """Medians over rounds, and speeds against the first line of `times`."""
    result = Table(
        title=f"{', '.join(config.tasks)}; policy {config.policy} {' '.join(config.policy_kwargs)}".strip(),
        caption=f"ms per control step and speed against the first line; median and range of {config.rounds} rounds",
    )
    for column in ("", "wall ms", "speed", "processor ms", "speed"):
        result.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    reference = next(iter(times.values()))
    for name, values in times.items():
        cells = []
        for kind in ("wall", "processor"):
            ratios = [getattr(r, kind) / getattr(v, kind) for r, v in zip(reference, values, strict=True)]
            spread = f" ({min(ratios):.1f}–{max(ratios):.1f})" if len(ratios) > 1 else ""
            cells += [f"{1000 * median(getattr(v, kind) for v in values):.1f}", f"{median(ratios):.1f}x{spread}"]
        result.add_row(name, *cells)
    return result


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/harness_speed.py", main, SpeedConfig, __doc__))
