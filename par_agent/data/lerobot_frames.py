"""Frames of a LeRobotDataset: those of its videos, or its images."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from par_agent.data.lerobot_features import Feature
from par_agent.data.lerobot_folder import LeRobotFolder
from par_agent.data.media import decode_image, video_frames
from par_agent.data.tables import ADVICE, Table
from par_agent.errors import UserError
from par_agent.utils.files import inside, read_content


class _Picture(TypedDict, total=False):
    """An image in a row: a file's bytes, or its path."""

    bytes: Any
    path: str | None


class CameraFrames:
    """Frames of one camera; videos are read from their beginning to their end, once. To be closed."""

    def __init__(self, source: LeRobotFolder, feature: Feature) -> None:
        self._source, self._feature = source, feature
        self._path: Path | None = None
        self._stream: Generator[np.ndarray, None, None] | None = None
        self._next = 0

    def take(self, number: int, table: Table, steps: np.ndarray) -> np.ndarray:
        """Frames (K, H, W, 3) uint8 of rows ``steps``, ascending, of episode ``number``, whose rows are ``table``.

        Raises:
            UserError: an image or a video is missing, damaged, too short, of another size than the dataset says, or
                has more than 8 bits a channel.
        """
        where = f"{self._feature.name} of {self._source.name(number)}"
        if self._feature.dtype == "image":
            pictures = table.values(self._feature.name, _Picture, steps)
            taken = [self._image(one, f"row {step} of {where}") for one, step in zip(pictures, steps, strict=True)]
        else:
            path, first = self._source.video(number, self._feature.name)
            taken = [self._frame(path, first + int(step), where) for step in steps]
        expected = self._feature.image_size[:2]
        if wrong := [image.shape for image in taken if image.shape[:2] != expected]:
            raise UserError(
                f"{where} shows {wrong[0][0]}x{wrong[0][1]} pixels; meta/info.json says {expected[0]}x{expected[1]}: "
                "correct it there if all are like that"
            )
        return np.stack(taken)

    def _frame(self, path: Path, number: int, where: str) -> np.ndarray:
        if self._stream is None or path != self._path or number < self._next:
            self.close()
            self._path, self._stream, self._next = path, video_frames(path, self._source.fps), 0
        frame = None
        while self._next <= number:
            frame = next(self._stream, None)
            if frame is None:
                raise UserError(f"{path} ends before its frame {number}, which is one of {where}; {ADVICE}")
            self._next += 1
        assert frame is not None
        return frame

    def _image(self, picture: dict[str, Any], where: str) -> np.ndarray:
        content = picture.get("bytes")
        if not content:
            if not picture.get("path"):
                raise UserError(f"{where} holds no image; {ADVICE}")
            content = read_content(inside(self._source.folder, str(picture["path"])))
        return decode_image(content, where)

    def close(self) -> None:
        """Ends the process that decodes."""
        if self._stream is not None:
            self._stream.close()
            self._stream = self._path = None
