"""`par-agent dagger`: corrections of a policy by ManiSkill's motion planner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from par_agent.data.demos import make_demos
from par_agent.evaluation.dagger import MOMENTS, DaggerRequest, Moment
from par_agent.evaluation.policies import PolicySource
from par_agent.jobs import DEFAULT_WORKERS
from par_agent.tasks import BUNDLED, Track
from par_agent.utils.checked import Checked, ClusterAddress, Count, Seed, SmallCount


@dataclass(frozen=True, kw_only=True)
class DaggerConfig(Checked):
    """Rolls a policy out and lets ManiSkill's motion planner go on from where it came to; keeps what then succeeds."""

    task: str
    """Task by name, for example PickCube, or module:NAME for a TaskSpec of your own."""
    policy: str | None = None
    """Checkpoint folder, name of a bundled checkpoint, org/name[@revision] on the Hub, or module:Class. Default: the
    track's bundled checkpoint."""
    policy_kwargs: tuple[str, ...] = ()
    """Options of the policy as key=value, as in `par-agent benchmark`."""
    track: Track = "paper"
    """What the policy observes, as in `par-agent benchmark`."""
    moments: tuple[Moment, ...] = MOMENTS
    """When the planner takes over; every rollout draws one. error: the hand leaves or drops the object that it had
    reached. stall: it has moved less than a centimetre in 24 control steps. random: at one of the first 100 control
    steps. It never takes over while the hand holds the object."""
    num: Count = 200
    """Number of corrections; rollouts that the policy solves before its moment do not count."""
    first_seed: Seed = 2_000_000
    """Environment seed of the first rollout. All seeds must stay below 20241201, where the protocol's begin."""
    max_steps: Count = 200
    """Corrections with more control steps are left out."""
    out: Path = Path("data/demos")
    """Output folder; the file is <out>/<environment>/dagger/trajectory.none.pd_joint_pos.physx_cpu.h5."""
    workers: SmallCount = DEFAULT_WORKERS
    """Worker processes. Their number does not change the file."""
    cluster: ClusterAddress | None = None
    """Address of a Ray cluster whose nodes do the work instead of worker processes; auto: that of this machine."""


def main(config: DaggerConfig) -> int:
    """Makes what is missing and prints where the file is."""
    request = DaggerRequest(
        config.task,
        config.num,
        first_seed=config.first_seed,
        max_steps=config.max_steps,
        policy=PolicySource.from_options(config.policy or BUNDLED[config.track], config.policy_kwargs, "cpu"),
        track=config.track,
        moments=config.moments,
    )
    path = make_demos(request, config.out, config.workers, cluster=config.cluster)
    print(f"{config.num} corrections of {request.env_id}: {path}")
    print("render them with `par-agent render --trajectory`, then train on both: `par-agent finetune --data A B`")
    return 0
