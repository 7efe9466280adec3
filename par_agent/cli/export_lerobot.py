"""`par-agent export-lerobot`: rendered demonstrations for LeRobot and the tools around it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from par_agent.data.episodes import RenderedDataset
from par_agent.data.lerobot_export import export_lerobot
from par_agent.utils.checked import Checked, Range


@dataclass(frozen=True)
class ExportLeRobotConfig(Checked):
    """Writes a rendered dataset as a LeRobotDataset v3.0: a row per control step with the newest frame at that step."""

    data: Path
    """Rendered dataset; after `par-agent render --stride 1` every row has its own frame."""
    out: Path
    """Folder to make."""
    fps: Annotated[int, Range(0, 1000, above=True)] = 20
    """Control steps per second; ManiSkill's tasks have 20."""
    images: bool = False
    """Stores frames losslessly, as PNG images in the data files, instead of as videos."""


def main(config: ExportLeRobotConfig) -> int:
    """Writes the folder and says where it is."""
    dataset = RenderedDataset(config.data)
    export_lerobot(dataset, config.out, fps=config.fps, images=config.images)
    print(f"{len(dataset)} episodes of {config.data} as a LeRobot dataset: {config.out}")
    return 0
