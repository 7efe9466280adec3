"""The LeRobotDataset v3.0 folder: what its files are called and what is in them.

::

    meta/info.json                             sizes, frames a second, features
    meta/stats.json                            mean, std, min, max and count of every feature
    meta/tasks.parquet                         task index of every instruction
    meta/episodes/chunk-000/file-000.parquet   where every episode is
    meta/par_agent.json                        what only this package asks for; others do not read it
    data/chunk-000/file-000.parquet            one row a control step, several episodes a file
    videos/<feature>/chunk-000/file-000.mp4    the frames of those rows, several episodes a file

Features are ``observation.state`` (P), ``action`` (A) and ``observation.images.<camera>``, a video or images.
"""

from __future__ import annotations

import re
from typing import Any

from par_agent.errors import UserError
from par_agent.utils.references import optional_module

VERSION = "v3.0"
INFO, STATS, TASKS, EXPORT_RECORD = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/par_agent.json"
NUMBERED = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES, DATA = f"meta/episodes/{NUMBERED}.parquet", f"data/{NUMBERED}.parquet"
VIDEO = f"videos/{{video_key}}/{NUMBERED}.mp4"
FILES_PER_CHUNK = 1000
DATA_MEGABYTES, VIDEO_ROWS = 100, 20_000
"""A file of rows, or of frames, that has grown past this gets no further episode."""

STATE, ACTION, IMAGES, EXTRA = "observation.state", "action", "observation.images.", "observation.extra."
IS_NEW, DONE = "frame_is_new", "next.done"
"""Whether a row has a frame of its own, or shows the last one again; whether a row is an episode's last."""


def pyarrow_module(name: str) -> Any:
    """A module of pyarrow, for example ``parquet``."""
    return optional_module(f"pyarrow.{name}" if name else "pyarrow", "LeRobot datasets need pyarrow", "lerobot")


def numbered(pattern: str, number: int, **names: str) -> str:
    """Path of the file of a running number below the dataset's folder."""
    chunk, file = divmod(number, FILES_PER_CHUNK)
    return pattern.format(chunk_index=chunk, file_index=file, **names)


def fill(template: str, **fields: int | str) -> str:
    """Fills the fields of a path template such as :data:`VIDEO`, which a dataset names in its description.

    Fields stand in braces and have at most a width; all else in braces is refused. Python's own formatting is not used:
    it would read attributes of the values.
    """

    def value(match: re.Match[str]) -> str:
        name, width = match[1], match[2]
        if name not in fields:
            raise UserError(f"the path {template!r} has the field {name!r}; known: {', '.join(fields)}")
        return str(fields[name]) if width is None else str(fields[name]).zfill(int(width))

    filled = re.sub(r"\{(\w+)(?::0?(\d)d)?\}", value, template)
    if "{" in filled or "}" in filled:
        raise UserError(f"the path {template!r} is no template; expected one like {VIDEO!r}")
    return filled


def vector(names: list[str]) -> dict[str, Any]:
    """Description of a feature of several numbers a row."""
    return {"dtype": "float32", "shape": [len(names)], "names": names}


def image(height: int, width: int, fps: int, *, video: bool) -> dict[str, Any]:
    """Description of a camera's feature."""
    feature: dict[str, Any] = {"dtype": "video" if video else "image", "shape": [height, width, 3]}
    feature["names"] = ["height", "width", "channels"]
    if video:
        feature["info"] = {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
        }
    return feature
