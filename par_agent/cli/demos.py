"""`par-agent demos`: demonstrations from ManiSkill's own motion planner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from par_agent.data.demos import DemoRequest, make_demos
from par_agent.jobs import DEFAULT_WORKERS
from par_agent.utils.checked import Checked, ClusterAddress, Count, Seed, SmallCount


@dataclass(frozen=True)
class DemosConfig(Checked):
    """Makes successful demonstrations of one task with ManiSkill's own motion planner."""

    task: str
    """A registered task, for example PushCube."""
    num: Count = 1000
    """Number of demonstrations; attempts that fail or are too long do not count."""
    out: Path = Path("data/demos")
    """Output folder; the file is <out>/<environment>/motionplanning/trajectory.none.pd_joint_pos.physx_cpu.h5."""
    workers: SmallCount = DEFAULT_WORKERS
    """Worker processes. Their number does not change the file."""
    cluster: ClusterAddress | None = None
    """Address of a Ray cluster whose nodes plan instead of worker processes; auto: the cluster of this machine."""
    first_seed: Seed = 0
    """Environment seed of the first attempt. All seeds must stay below 20241201, where the protocol's begin."""
    max_steps: Count = 200
    """Attempts with more control steps are left out."""


def main(config: DemosConfig) -> int:
    """Makes what is missing and prints where the file is."""
    request = DemoRequest(config.task, config.num, config.first_seed, config.max_steps)
    path = make_demos(request, config.out, config.workers, cluster=config.cluster)
    print(f"{request.num} demonstrations of {request.env_id}: {path}")
    return 0
