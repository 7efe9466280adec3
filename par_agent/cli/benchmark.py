"""`par-agent benchmark`: rolls a policy out under the paper's protocol and prints and saves the table."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from par_agent.baselines import find_policy
from par_agent.errors import UserError
from par_agent.evaluation.alignment import Alignment
from par_agent.evaluation.records import Record
from par_agent.evaluation.report import terminal_tables, write_results
from par_agent.evaluation.run_config import RunConfig
from par_agent.evaluation.runner import BenchmarkRun
from par_agent.tasks import BUNDLED, PAPER_TASKS, PROTOCOL_POLICY_SEEDS, PROTOCOL_STATES
from par_agent.utils.checked import Checked, ClusterAddress, Count, Length, NonNegative, Range, Seed, SmallCount
from par_agent.utils.strict_json import parse_options
from par_agent.vla_eval.client import PREFIX

EXIT_ALL_ERRORS = 1


@dataclass(frozen=True)
class BenchmarkConfig(Checked):
    """Rolls a policy out under the paper's protocol. The same command resumes where an earlier one was stopped."""

    tasks: tuple[str, ...] = PAPER_TASKS
    """Tasks by name, or module:NAME for a TaskSpec of your own."""
    policy: str | None = None
    """A bundled checkpoint's name, a checkpoint folder, module:Class, a vla-eval model server as vla-eval:ws://HOST:PORT,
    or a row of the table of methods: act, bc-t, dp, icrt, rdt, par-noar, par-discrete, par-noimagine. Default: the
    track's bundled checkpoint, par-mini or par-mini-native."""
    policy_checkpoint: Path | None = None
    """Weights of a row of the table of methods (default: runs/NAME/policy) or of module:Class."""
    policy_kwargs: tuple[str, ...] = ()
    """Options of the policy as key=value: for a checkpoint those of PARPolicy.from_pretrained, else the class's. For a
    model server those of par_agent.vla_eval.client.ModelServerPolicy, and name=... for tables and folders."""
    track: Literal["paper", "native"] = "paper"
    """What the policy sees: the render camera and joint positions, or ManiSkill's own obs_mode="rgb"."""
    variation: Literal["none", "camera", "dim", "bright", "color", "delay", "shader"] = "none"
    """One thing that training did not show: camera moved by 2 cm, light 30% weaker or stronger, objects of another
    colour, every action one control step late, ManiSkill's default shader (which has a grey background)."""
    states: Annotated[Count, tyro.conf.arg(aliases=["--num-states"])] = PROTOCOL_STATES
    """How many initial states per task: the first of the protocol's, or of those of --state-seed."""
    policy_seeds: Length = PROTOCOL_POLICY_SEEDS
    """Policy seeds per initial state."""
    state_seed: Seed | None = None
    """First environment seed of other initial states than the protocol's (for development); below 20241201."""
    workers: SmallCount | None = None
    """Worker processes. Default: one per core."""
    backend: Literal["cpu", "gpu"] = "cpu"
    """What simulates: one environment per worker process, or ManiSkill's vectorised GPU simulation of all states."""
    cluster: ClusterAddress | None = None
    """Address of a Ray cluster whose nodes do the rollouts; auto: the one that this machine belongs to."""
    device: str | None = None
    """Device that checkpoints are loaded on. Default: cuda for --backend gpu, else cpu."""
    run_to_end: bool = False
    """Go on after the first success until the step limit, to measure success at the end too (slow)."""
    video: NonNegative = 0
    """Save an MP4 of each task's first N rollouts. These render every control step and take several times as long."""
    alignment: Annotated[int, Range(0, 1024)] = 0
    """In every plan, let the policy imagine N chunks ahead and compare that with what happens (slow; par-agent[viz])"""
    retry_errors: bool = False
    """Run rollouts again that an earlier run recorded with an exception."""
    out: Path = Path("benchmark-results")
    """Folder under which the run gets its own folder."""


def run_config(config: BenchmarkConfig) -> RunConfig:
    """The run that the command line asks for.

    Raises:
        UserError: bad values.
    """
    device = config.device or ("cuda" if config.backend == "gpu" else "cpu")
    policy = config.policy or BUNDLED[config.track]
    if policy.startswith(PREFIX) and (config.device is not None or config.backend == "gpu"):
        raise UserError(
            "a model server has a device of its own and acts in one environment: no --device or --backend gpu"
        )
    return RunConfig(
        tasks=config.tasks,
        policy=find_policy(policy, parse_options(config.policy_kwargs), device, config.policy_checkpoint),
        out=config.out,
        track=config.track,
        variation=config.variation,
        states=config.states,
        state_seed=config.state_seed,
        policy_seeds=config.policy_seeds,
        backend=config.backend,
        cluster=config.cluster,
        workers=len(os.sched_getaffinity(0)) if config.workers is None else config.workers,
        run_to_end=config.run_to_end,
        videos=config.video,
        retry_errors=config.retry_errors,
        measurements=(Alignment(config.alignment),) if config.alignment else (),
    )


class ProgressDisplay:
    """A progress bar with running success counts, and one plain line per task when its first result comes."""

    def __init__(self, console: Console, run: BenchmarkRun) -> None:
        self._console = console
        self._run = run
        self._successes: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console)
        self._bar = self._progress.add_task("starting workers", total=run.info.total)

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, found: list[Record]) -> None:
        """Shows what is on disk already."""
        if found:
            self._console.print(f"{len(found)} of {self._run.info.total} rollouts are on disk already.")
        for record in found:
            self._count(record)

    def add(self, record: Record) -> None:
        """Shows one new rollout."""
        if not self._finished[record["task"]] or record["error"] is not None:
            self._console.print(_first_result(record))
        self._count(record)

    def _count(self, record: Record) -> None:
        self._finished[record["task"]] += 1
        self._successes[record["task"]] += record["success_once"]
        counts = ", ".join(f"{task} {self._successes[task]}/{n}" for task, n in self._finished.items())
        self._progress.update(self._bar, description=counts, advance=1)


def _first_result(record: Record) -> str:
    where = f"{record['task']}, state {record['state']}, policy seed {record['policy_seed']}"
    if record["error"] is not None:
        return f"{where}: error, counted as a failure: {record['error']}"
    outcome = "success" if record["success_once"] else "no success"
    return f"{where}: {outcome} after {record['steps']} steps, {record['seconds']:.1f} s"


def main(config: BenchmarkConfig) -> int:
    """Runs the benchmark; returns the exit status."""
    console = Console()
    run = BenchmarkRun(run_config(config))
    console.print(f"rollouts: {run.info.total}, {run.config.protocol_label}; results: {run.folder}", highlight=False)
    started = time.monotonic()
    with ProgressDisplay(console, run) as display:
        records = run.run(display.start, display.add)
    results = write_results(run.info, records)
    for table in terminal_tables(run.info, results):
        console.print(table)
    console.print(f"{time.monotonic() - started:.0f} s; table and records in {run.folder}", highlight=False)
    if broken := [result.task for result in results if result.rollouts and result.errors == result.rollouts]:
        print(f"every rollout of {', '.join(broken)} ended with an exception: {run.folder}/errors.log", file=sys.stderr)
        return EXIT_ALL_ERRORS
    return 0
