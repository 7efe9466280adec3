"""`par-agent import-lerobot`: a LeRobot dataset as training data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from par_agent.data.lerobot_import import LeRobotFolder, LeRobotRequest, import_lerobot


@dataclass(frozen=True)
class ImportLeRobotConfig:
    """Reads a LeRobotDataset v3.0 into a dataset folder, as `par-agent render` makes them."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder with `meta/info.json`."""
    out: Path
    """Dataset folder to create or to continue."""
    stride: int | None = None
    """Rows between stored frames; the chunk length, or a divisor of it for more starting points. 8 if not given."""
    cameras: tuple[str, ...] = ()
    """Cameras, without `observation.images.`; all if not given."""
    crop: tuple[int, int, int, int] | None = None
    """Top, left, height, width in pixels of the images."""
    size: tuple[int, int] | None = None
    """Height and width of the stored frames, resized by area averaging."""
    control_mode: str | None = None
    """`pd_joint_pos` where actions are target positions of the joints; by the features' names if not given."""


def main(config: ImportLeRobotConfig) -> int:
    """Imports what is missing and says where it is."""
    request = LeRobotRequest(config.stride, config.cameras, config.crop, config.size, config.control_mode)
    spec = import_lerobot(LeRobotFolder(config.source), config.out, request)
    print(f"{spec.num_episodes} episodes of {config.source}: {config.out}")
    return 0
