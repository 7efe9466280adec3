"""`par-agent demos`: demonstrations from ManiSkill's own motion planner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from par_agent.data.demos import DemoRequest, make_demos
from par_agent.jobs import DEFAULT_WORKERS
from par_agent.utils.checked import ClusterAddress, SmallCount


@dataclass(frozen=True)
class DemosConfig(DemoRequest):
    """Makes successful demonstrations of one task with ManiSkill's own motion planner."""

    out: Path = Path("data/demos")
    """Output folder; the file is <out>/<environment>/motionplanning/trajectory.none.pd_joint_pos.physx_cpu.h5."""
    workers: SmallCount = DEFAULT_WORKERS
    """Worker processes. Their number does not change the file."""
    cluster: ClusterAddress | None = None
    """Address of a Ray cluster whose nodes plan instead of worker processes; auto: the cluster of this machine."""


def main(config: DemosConfig) -> int:
    """Makes what is missing and prints where the file is."""
    path = make_demos(config, config.out, config.workers, cluster=config.cluster)
    print(f"{config.num} demonstrations of {config.env_id}: {path}")
    return 0
