"""``par-agent finetune``: trains a policy on rendered demonstrations."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from par_agent.data.episodes import RenderedDataset
from par_agent.errors import UserError
from par_agent.tasks import TASKS, TRACKS, Track, find_task
from par_agent.training.finetune import FinetuneConfig, finetune
from par_agent.training.loop import Rollouts
from par_agent.utils.files import writing

__all__ = ["FinetuneConfig", "main"]

DEVELOPMENT_SEED = 555000
"""First environment seed of the initial states that policies are developed on; the protocol's stay untouched."""


def main(config: FinetuneConfig) -> int:
    """Trains and says where the policy is."""
    rollouts = make_rollouts(config) if config.evaluation.rollout_every else None
    with writing(config.out):
        finetune(config, rollouts)
    print(f"trained policy: {config.out / 'policy'}\nnext: {next_command(config)}")
    return 0


def next_command(config: FinetuneConfig) -> str:
    """What one does with a trained policy: measures it, on initial states for development, or trains it on."""
    policy = config.out / "policy"
    if not config.has_actions:
        return f"par-agent finetune --init {policy} --data DEMONSTRATIONS --out RUN"
    try:
        tasks = tuple(dict.fromkeys(_task_of(folder) for folder in config.folders()))
        track = _track_of(config.cameras, tasks)
    except UserError:
        return f'PARPolicy.from_pretrained("{policy}", instruction=...), in Python'
    where = f"--tasks {' '.join(tasks)}{'' if track == 'paper' else f' --track {track}'}"
    return f"par-agent benchmark --policy {policy} {where} --state-seed {DEVELOPMENT_SEED} --policy-seeds 1"


def make_rollouts(config: FinetuneConfig) -> Rollouts:
    """Closed-loop evaluation by the benchmark's own harness, on initial states for development."""
    from par_agent.evaluation.benchmark_run import BenchmarkRun
    from par_agent.evaluation.policies import PolicySource
    from par_agent.evaluation.run_config import RunConfig

    tasks = tuple(dict.fromkeys(_task_of(folder) for folder in config.folders()))
    track = _track_of(config.cameras, tasks)

    def rollouts(policy: Path) -> dict[str, float]:
        run = RunConfig(
            tasks=tasks,
            policy=PolicySource(str(policy)),
            out=config.out / "rollouts",
            track=track,
            states=config.evaluation.rollout_states,
            state_seed=DEVELOPMENT_SEED,
            policy_seeds=1,
            workers=len(os.sched_getaffinity(0)),
        )
        successes = defaultdict(list)
        for record in BenchmarkRun(run).run(on_start=lambda found: None, on_record=lambda record: None):
            successes[record["task"]].append(float(record["success_once"]))
        return {task: sum(values) / len(values) for task, values in successes.items()}

    return rollouts


def _task_of(folder: Path) -> str:
    """Name of the task that a dataset's episodes are of."""
    env_id = RenderedDataset(folder).spec.env_id
    if (task := find_task(env_id)) is None:
        raise UserError(f"{folder} holds episodes of {env_id}, which --rollout-every cannot evaluate; leave it out")
    return task.name


def _track_of(cameras: tuple[str, ...], tasks: tuple[str, ...]) -> Track:
    """The track on which policies see these cameras."""
    for track in TRACKS:
        if all(set(cameras) <= set(TASKS[task].cameras(track)) for task in tasks):
            return track
    raise UserError(
        f"no track of the benchmark shows camera {', '.join(map(repr, cameras))} in {', '.join(tasks)}: leave "
        "--rollout-every out"
    )
