"""Videos of rollouts, encoded while these go on, so that long rollouts of many environments fit in memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from par_agent.evaluation.rollout import RolloutObserver

if TYPE_CHECKING:
    import numpy as np
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
        self._recording = {position: _VideoFile(path) for position, path in paths.items()}
        self._warnings: dict[int, str | None] = {}

    def after_reset(self) -> None:
        if self._recording:
            images = self._env.render()
            for position, video in self._recording.items():
                video.append(images[position])

    def after_step(self, actions: torch.Tensor, result: StepResult) -> None:
        self.after_reset()

    def record_fields(self, position: int) -> dict[str, Any]:
        if (video := self._recording.pop(position, None)) is not None:
            self._warnings[position] = video.finish()
        return {}

    def warning(self, position: int) -> str | None:
        return self._warnings.get(position)

    def close(self) -> None:
        for video in self._recording.values():
            video.discard()


class _VideoFile:
    """An MP4 that plays in real time, and appears when it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._encoder: Any = None
        self._error: Exception | None = None

    def append(self, frame: np.ndarray) -> None:
        """Adds a frame (H, W, 3) uint8 of the first one's size."""
        if self._error is not None:
            return
        try:
            self._encoder = self._encoder or self._open(frame.shape[1], frame.shape[0])
            self._encoder.send(frame.tobytes())
        except (OSError, RuntimeError) as error:
            self._error = error

    def finish(self) -> str | None:
        """Completes the file after its last frame; returns what went wrong, if anything did."""
        try:
            if self._error is None:
                self._encoder.close()
                os.replace(self._temporary, self._path)
        except (OSError, RuntimeError) as error:
            self._error = error
        self.discard()
        return None if self._error is None else f"{self._path} was not saved: {self._error}"

    def discard(self) -> None:
        """Leaves no incomplete file behind."""
        if self._encoder is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._encoder.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def _open(self, width: int, height: int) -> Any:
        import imageio_ffmpeg

        self._path.parent.mkdir(parents=True, exist_ok=True)
        options: Any = {"fps": FRAMES_PER_SECOND, "macro_block_size": 2, "output_params": ["-f", "mp4"]}
        encoder = imageio_ffmpeg.write_frames(str(self._temporary), (width, height), **options)
        encoder.send(None)
        return encoder
