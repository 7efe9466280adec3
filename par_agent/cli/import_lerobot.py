"""`par-agent import-lerobot`: a LeRobot dataset as training data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from par_agent.data.lerobot_features import LeRobotRequest
from par_agent.data.lerobot_folder import LeRobotFolder
from par_agent.data.lerobot_import import import_lerobot
from par_agent.data.lerobot_plan import plan_import
from par_agent.utils.checked import Checked


@dataclass(frozen=True, kw_only=True)
class ImportLeRobotConfig(LeRobotRequest, Checked):
    """Converts a LeRobotDataset, v2.0 to v3.0, into a dataset folder like those of `par-agent render`."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder with `meta/info.json`."""
    out: Path
    """Dataset folder to create or to continue."""


def main(config: ImportLeRobotConfig) -> int:
    """Says what is understood of the dataset, imports what is missing and says where it is."""
    plan = plan_import(LeRobotFolder(config.source), config)
    print(plan)
    count = import_lerobot(plan, config.out)
    print(f"{count} episodes of {config.source}: {config.out}")
    return 0
