"""`par-agent benchmark`: rolls a policy out under the paper's protocol and prints and saves the table."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from par_agent.baselines import find_policy
from par_agent.errors import UserError
from par_agent.evaluation.alignment import Alignment
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.records import Record, rollout_name
from par_agent.evaluation.report import terminal_tables, write_results
from par_agent.evaluation.run_config import RunConfig, RunOptions
from par_agent.tasks import BUNDLED
from par_agent.utils.checked import Checked, Range
from par_agent.utils.json_fields import parse_options
from par_agent.vla_eval.client import PREFIX

EXIT_ALL_ERRORS = 1


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(Checked):
    """Which policy acts, what it is told, and where it runs."""

    policy: str | None = None
    """Checkpoint folder, name of a bundled checkpoint, org/name[@revision] on the Hugging Face Hub, module:Class,
    vla-eval:ws://HOST:PORT of a model server, or row of the table of methods: act, bc-t, dp, icrt, rdt, mini, par-noar,
    par-discrete, par-noimagine. Default: the track's bundled checkpoint, par-mini or par-mini-native."""
    policy_checkpoint: Path | None = None
    """Weights of a row of the table of methods (default: runs/NAME/policy) or of module:Class: a
    folder or a name, as above."""
    policy_kwargs: tuple[str, ...] = ()
    """Options of the policy as key=value. Checkpoints take those of PARPolicy.from_pretrained, a class takes its own,
    model servers take those of par_agent.vla_eval.client.ModelServerPolicy and name=... for tables and folders."""
    device: str | None = None
    """Device that the policy runs on. Default: cuda for --backend gpu, else cpu."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(RunOptions, PolicyOptions):  # dataclasses put the fields of the last base first
    """Rolls a policy out under the paper's protocol; the same command resumes a run that was stopped."""

    alignment: Annotated[int, Range(0, 1024)] = 0
    """Lets the policy imagine N chunks ahead in every plan and compares them with what follows (slow; needs [viz])."""


def run_config(config: BenchmarkConfig) -> RunConfig:
    """The run that the command line asks for."""
    device = config.device or ("cuda" if config.backend == "gpu" else "cpu")
    policy = config.policy or BUNDLED[config.track]
    if policy.startswith(PREFIX) and (config.device is not None or config.backend == "gpu"):
        raise UserError(
            "a model server has a device of its own and acts in one environment: no --device or --backend gpu"
        )
    options = {field.name: getattr(config, field.name) for field in fields(RunOptions)}
    options["workers"] = len(os.sched_getaffinity(0)) if config.workers is None else config.workers
    source = find_policy(policy, parse_options(config.policy_kwargs), device, config.policy_checkpoint)
    return RunConfig(**options, policy=source, measurements=(Alignment(config.alignment),) if config.alignment else ())


class ProgressDisplay(Progress):
    """A progress bar with running success counts, and one plain line per task when its first result comes."""

    def __init__(self, console: Console, total: int, filmed: bool = False) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        super().__init__(*columns, TimeRemainingColumn(), console=console)
        self._total = total
        self._slowly = " and are filmed, which takes some minutes each" if filmed else ""
        self._successes: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._bar = self.add_task("starting workers", total=total)

    def begin(self, found: list[Record]) -> None:
        """Shows what is on disk already."""
        if found:
            self.console.print(f"{len(found)} of {self._total} rollouts are on disk already.")
        if len(found) < self._total:
            self.console.print(f"the workers are ready; the first rollouts run{self._slowly}")
        self.update(self._bar, description="first rollouts")
        for record in found:
            self._count(record)

    def show(self, record: Record) -> None:
        """Shows one new rollout."""
        if not self._finished[record["task"]] or record["error"] is not None:
            self.console.print(_first_result(record))
        self._count(record)

    def _count(self, record: Record) -> None:
        self._finished[record["task"]] += 1
        self._successes[record["task"]] += record["success_once"]
        counts = ", ".join(f"{task} {self._successes[task]}/{n}" for task, n in self._finished.items())
        self.update(self._bar, description=counts, advance=1)


def _first_result(record: Record) -> str:
    where = rollout_name(record)
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
    with ProgressDisplay(console, run.info.total, filmed=config.video > 0) as display:
        records = run.run(display.begin, display.show)
    results = write_results(run.info, records)
    for table in terminal_tables(run.info, results):
        console.print(table)
    done = f"{time.monotonic() - started:.0f} s; table, rollouts and videos: {run.folder / 'report.html'}"
    console.print(done, highlight=False, soft_wrap=True)
    if broken := [result.task for result in results if result.rollouts and result.errors == result.rollouts]:
        print(f"every rollout of {', '.join(broken)} ended with an exception: {run.folder}/errors.log", file=sys.stderr)
        return EXIT_ALL_ERRORS
    return 0
