"""Reads a LeRobotDataset into a rendered dataset, whatever tool wrote it.

The E + 1 rows of an episode become E control steps, since nothing was observed after the last row's action. Frames are
taken every ``stride`` rows, and at the end. A dataset of :mod:`par_agent.data.lerobot_export` is read back as it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from tqdm import tqdm

from par_agent.data import lerobot
from par_agent.data.episodes import (
    Episode,
    claimed_dataset,
    episode_path,
    episode_paths,
    frame_steps,
    image_size_attributes,
    summarise,
    write_episode,
)
from par_agent.data.lerobot_features import Feature
from par_agent.data.lerobot_folder import LeRobotFolder
from par_agent.data.lerobot_plan import ImportPlan, read_rows
from par_agent.data.media import decode_image, video_frames
from par_agent.data.tables import ADVICE, Table
from par_agent.errors import UserError
from par_agent.policy.transforms import crop_and_resize
from par_agent.utils.files import claimed_folder, inside, only_process, read_content, write_json, writing
from par_agent.utils.interrupts import deferred_interrupts


def import_lerobot(plan: ImportPlan, out: Path) -> int:
    """Writes the planned episodes into a dataset folder; the same call again goes on where it was stopped.

    Returns:
        How many episodes the folder holds.

    Raises:
        UserError: damaged images or videos, unless such episodes are left out; a folder of other settings; a full disk.
        Interrupted: the process was told to end; whole episodes are kept.
    """
    source, request = plan.source, plan.request
    names = ("image_key", "state_key", "action_key", "instruction")
    settings = {name: getattr(request, name) for name in names} | {"control_mode": plan.control_mode}

    with (
        deferred_interrupts() as interrupts,
        writing(out),
        only_process(out / ".lock", f"writes into {out}", within=out),
        claimed_dataset(out, plan.spec),
        claimed_folder(out / "import.json", settings, begun=lambda: bool(episode_paths(out))),
        contextlib.ExitStack() as stack,
    ):
        frames = {
            name: stack.enter_context(contextlib.closing(CameraFrames(source, feature)))
            for name, feature in plan.keys.cameras.items()
        }
        for place, number in enumerate(tqdm(plan.episodes, desc=f"import {out.name}", unit="episode")):
            interrupts.check()
            path = episode_path(out, place)
            if path.exists():
                continue
            try:
                write_episode(path, _episode(plan, number, frames))
            except UserError as error:
                if not request.skip_corrupt:
                    raise UserError(f"{error}; or leave such episodes out: --skip-corrupt") from None
                tqdm.write(f"left out: {error}")
        if not episode_paths(out):
            raise UserError(f"no episode of {source.folder} is left: none of their images can be read")
        summary = summarise(out)
        write_json(out / "dataset.json", summary)
    return int(summary["num_episodes"])


def _episode(plan: ImportPlan, number: int, frames: dict[str, CameraFrames]) -> Episode:
    """One episode as it is stored."""
    source, spec = plan.source, plan.spec
    images = tuple(feature for feature in plan.keys.cameras.values() if feature.dtype == "image")
    rows = read_rows(source, plan.keys, plan.request, number, images)
    steps = frame_steps(len(rows.state) - 1, spec.stride, spec.phase)
    if lerobot.IS_NEW in rows.table:
        told = np.flatnonzero(rows.table.values(lerobot.IS_NEW, bool))
        if not np.array_equal(told, steps):
            raise rows.table.damaged(
                f"it has frames at rows {told.tolist()}; {lerobot.EXPORT_RECORD} says {steps.tolist()}"
            )
    taken = {camera: reader.take(number, rows.table, steps) for camera, reader in frames.items()}
    sizes = image_size_attributes(taken)
    if source.export_record is None:
        taken = {
            camera: np.stack([crop_and_resize(image, spec.crop, spec.size) for image in images])
            for camera, images in taken.items()
        }
    attributes: dict[str, Any] = {
        "env_id": spec.env_id,
        "seed": number,
        "source": source.folder.name,
        "source_episode": number,
        "control_mode": plan.control_mode,
        **(sizes if source.export_record is None else dict(source.export_record["episodes"][number])),
        "instruction": rows.instruction,
    }
    actions = None if rows.action is None else rows.action[:-1]
    return Episode(taken, steps, rows.state, actions, attributes, rows.extra)


class _Picture(TypedDict, total=False):
    """An image in a row: a file's bytes, or its path."""

    bytes: Any
    path: str | None


class CameraFrames:
    """Frames of one camera; videos are read once, from beginning to end. Close it after use."""

    def __init__(self, source: LeRobotFolder, feature: Feature) -> None:
        self._source, self._feature = source, feature
        self._path: Path | None = None
        self._stream: Generator[np.ndarray, None, None] | None = None
        self._next = 0

    def take(self, number: int, table: Table, rows: np.ndarray) -> np.ndarray:
        """Frames (N, H, W, 3) uint8 of ``rows``, ascending, of episode ``number``, whose rows are ``table``."""
        where = f"{self._feature.name} of {self._source.name(number)}"
        if self._feature.dtype == "image":
            pictures = table.values(self._feature.name, _Picture, rows)
            taken = [self._image(one, f"row {row} of {where}") for one, row in zip(pictures, rows, strict=True)]
        else:
            path, first = self._source.video(number, self._feature.name)
            taken = [self._frame(path, first + int(row), where) for row in rows]
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
