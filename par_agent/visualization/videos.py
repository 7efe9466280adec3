"""Writing images and clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from par_agent.errors import UserError
from par_agent.utils.files import atomic_path, check_writable

SUFFIXES = (".mp4", ".gif", ".png")


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
    """Writes frames (T, H, W, 3) uint8 as .mp4 (H.264), .gif or, for one frame, .png, atomically."""
    import imageio.v2 as imageio

    check_video_path(path, len(frames))
    kind = path.suffix.lower().removeprefix(".")
    with atomic_path(path) as temporary:
        if kind == "png":
            imageio.imwrite(temporary, frames[0], format="png")
        elif kind == "gif":
            imageio.mimwrite(temporary, list(frames), format="gif", duration=1000 / fps, loop=0)
        else:
            # H.264 with 4:2:0 colour needs even sizes only; imageio's default would resize to multiples of 16.
            imageio.mimwrite(
                temporary, list(frames), format="mp4", fps=fps, macro_block_size=2, output_params=["-f", "mp4"]
            )
