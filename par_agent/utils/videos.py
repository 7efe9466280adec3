"""Writing images and clips."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.errors import UserError
from par_agent.utils.files import atomic_path, check_writable

SUFFIXES = (".mp4", ".gif", ".png")


class MP4Writer:
    """Encodes frames as they come (H.264); the file appears when it is complete.

    Its methods raise OSError or RuntimeError where the file cannot be written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self._fps = path, fps
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._encoder: Any = None

    def append(self, frame: np.ndarray) -> None:
        """Adds a frame (H, W, 3) uint8 of the first one's size."""
        if self._encoder is None:
            import imageio_ffmpeg

            self.path.parent.mkdir(parents=True, exist_ok=True)
            # 4:2:0 colour needs even sizes only; the default would resize to multiples of 16.
            options: Any = {"fps": self._fps, "macro_block_size": 2, "quality": None, "output_params": ["-f", "mp4"]}
            self._encoder = imageio_ffmpeg.write_frames(str(self._temporary), frame.shape[1::-1], **options)
            self._encoder.send(None)
        self._encoder.send(frame.tobytes())

    def finish(self) -> None:
        """Completes the file after its last frame."""
        self._encoder.close()
        os.replace(self._temporary, self.path)

    def close(self) -> None:
        """Leaves no incomplete file behind."""
        if self._encoder is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._encoder.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()


def check_video_path(path: Path, frames: int) -> None:
    """Raises UserError for a suffix, number of frames or place that :func:`write_video` could not write."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} has the suffix {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".png" and frames != 1:
        raise UserError(f"{path} holds one frame and there are {frames}; use .mp4 or .gif, or one frame")
    check_writable(path.parent)
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected the name of a file")


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Writes frames (N, H, W, 3) uint8 as .mp4 (H.264), .gif or, for one frame, .png, atomically."""
    import imageio.v2 as imageio

    check_video_path(path, len(frames))
    kind = path.suffix.lower().removeprefix(".")
    with atomic_path(path) as temporary:
        if kind == "png":
            imageio.imwrite(temporary, frames[0], format="png")
        elif kind == "gif":
            imageio.mimwrite(temporary, list(frames), format="gif", duration=1000 / fps, loop=0)
        else:
            with contextlib.closing(MP4Writer(temporary, fps)) as video:
                for frame in frames:
                    video.append(frame)
                video.finish()
