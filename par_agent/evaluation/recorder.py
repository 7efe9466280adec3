"""A rollout's video, encoded while the rollout goes on, so that long rollouts of many environments fit in memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FRAMES_PER_SECOND = 20
"""ManiSkill's control frequency: videos play in real time."""


class VideoRecorder:
    """Writes an MP4 that plays in real time. Use it as a context manager: without `finish`, no file is left.

    A lost video is no failed rollout: what goes wrong is kept for `finish`.

    Args:
        path: the file, which appears when it is complete.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._encoder: Any = None
        self._error: Exception | None = None

    def __enter__(self) -> VideoRecorder:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._encoder is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._encoder.close()
        self._temporary.unlink(missing_ok=True)

    def append(self, frame: np.ndarray) -> None:
        """Adds a frame (H, W, 3) uint8; all have the size of the first."""
        if self._error is not None:
            return
        try:
            if self._encoder is None:
                self._encoder = self._open(frame.shape[1], frame.shape[0])
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
        return None if self._error is None else f"{self._path} was not saved: {self._error}"

    def _open(self, width: int, height: int) -> Any:
        import imageio_ffmpeg

        self._path.parent.mkdir(parents=True, exist_ok=True)
        encoder = imageio_ffmpeg.write_frames(
            str(self._temporary),
            (width, height),
            fps=FRAMES_PER_SECOND,
            macro_block_size=2,
            output_params=["-f", "mp4"],
        )
        encoder.send(None)
        return encoder
