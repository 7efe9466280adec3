"""Videos of rollouts, encoded while these go on, so that long rollouts of many environments fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from par_agent.evaluation.rollout import RolloutObserver
from par_agent.utils.videos import MP4Writer

if TYPE_CHECKING:
    import torch

    from par_agent.simulation.environment import StepResult, TaskEnvironment

FRAMES_PER_SECOND = 20
"""ManiSkill's control frequency: videos play in real time."""


class VideoObserver(RolloutObserver):
    """Renders environments once more after every control step and saves MP4s, by the environment's position.

    A video that cannot be saved becomes a warning of its rollout, no failure.
    """

    def __init__(self, env: TaskEnvironment, paths: Mapping[int, Path]) -> None:
        self._env = env
        self._videos = {position: MP4Writer(path, FRAMES_PER_SECOND) for position, path in paths.items()}
        self._warnings: dict[int, str] = {}

    def after_reset(self) -> None:
        if self._videos:
            images = self._env.render()
            for position, video in list(self._videos.items()):
                self._attempt(position, partial(video.append, images[position]))

    def after_step(self, actions: torch.Tensor, result: StepResult) -> None:
        self.after_reset()

    def record_fields(self, position: int) -> dict[str, Any]:
        if (video := self._videos.get(position)) is not None:
            self._attempt(position, video.finish)
            self._videos.pop(position, None)
        return {}

    def warning(self, position: int) -> str | None:
        return self._warnings.get(position)

    def close(self) -> None:
        for video in self._videos.values():
            video.close()

    def _attempt(self, position: int, write: Callable[[], None]) -> None:
        """Writes; a video with a fault is given up."""
        try:
            write()
        except (OSError, RuntimeError) as error:
            video = self._videos.pop(position)
            video.close()
            self._warnings[position] = f"{video.path} was not saved: {error}"
