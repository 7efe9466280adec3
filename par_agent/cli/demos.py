"""`par-agent demos`: demonstrations from ManiSkill's own motion planner."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from par_agent.data.demos import DemoRequest, make_demos
from par_agent.option_ranges import Checked


@dataclass(frozen=True)
class DemosConfig(Checked):
    """Makes successful demonstrations of one task with ManiSkill's own motion planner."""

    task: str
    """One of the registered tasks, for example PushCube."""
    num: int = 1000
    """Number of demonstrations; failed and too long attempts are not counted."""
    out: Path = Path("data/demos")
    """Output folder; the file is <out>/<environment>/motionplanning/trajectory.none.pd_joint_pos.physx_cpu.h5."""
    workers: int = min(2, os.cpu_count() or 1)
    """Worker processes. The file does not depend on it."""
    cluster: str | None = None
    """Address of a Ray cluster whose nodes plan instead of worker processes; auto: that of this machine."""
    first_seed: int = 0
    """Environment seed of the first attempt; below the evaluation protocol's 20241201, as are all that follow."""
    max_steps: int = 200
    """Solutions with more control steps are left out."""


def main(config: DemosConfig) -> int:
    """Makes what is missing and prints where the file is."""
    request = DemoRequest(config.task, config.num, config.first_seed, config.max_steps)
    path = make_demos(request, config.out, config.workers, cluster=config.cluster)
    print(f"{request.num} demonstrations of {request.env_id}: {path}")
    return 0
