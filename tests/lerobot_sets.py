"""Small LeRobot datasets as other tools write them, in the layouts of v2.1 and v3.0."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from par_agent.data.episodes import RenderedDataset
from par_agent.data.lerobot_features import LeRobotRequest
from par_agent.data.lerobot_folder import LeRobotFolder
from par_agent.data.lerobot_import import import_lerobot
from par_agent.data.lerobot_plan import plan_import
from par_agent.errors import UserError

SIZE = (16, 24)
"""Height and width of images."""
TASKS = ("Pick the cup.", "Put it down.")
JOINTS = ["shoulder", "elbow", "gripper"]
TOP = "observation.images.top"

Png = Callable[[int, int], bytes]
"""Makes the image file of a row of an episode."""


def pixels(episode: int, row: int) -> np.ndarray:
    """What the camera shows: (16, 24, 3) uint8, another one in every row of every episode."""
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:, :, 0], image[:, :12, 1], image[:4, :, 2] = 20 * episode, 10 * row, 200
    return image


def png(image: np.ndarray, mode: str | None = None) -> bytes:
    """An image file of an array, in one of Pillow's modes."""
    picture = Image.fromarray(image)
    picture = picture if mode is None else picture.convert(mode, palette=Image.Palette.ADAPTIVE)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def image_feature(**changes: Any) -> dict[str, Any]:
    """Description of an image."""
    feature = {"dtype": "image", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]}
    return feature | changes


def vector(size: int, names: Any) -> dict[str, Any]:
    """Description of numbers."""
    return {"dtype": "float32", "shape": [size], "names": names}


@dataclass
class LeRobotSet:
    """A dataset to write; every test changes what it is about."""

    lengths: list[int] = field(default_factory=lambda: [6, 7, 9])
    """Rows of the episodes."""
    features: dict[str, Any] = field(default_factory=lambda: {TOP: image_feature()})
    """Those besides the counters; an image is of :func:`pixels`, numbers need ``columns``."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Feature -> its values in the rows of all episodes, one after another."""
    images: dict[str, Png] = field(default_factory=dict)
    """Feature -> its images, if they are others."""
    info: dict[str, Any] = field(default_factory=dict)
    """Changes of meta/info.json; None removes an entry."""
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Changes of the table of episodes."""
    tasks: tuple[Any, ...] = TASKS[:1]
    """Table of tasks."""
    file_of: Callable[[int, int], int] = lambda episode, row: 0
    """v3.0: the number of the file that has a row."""

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        state = np.concatenate([generator.normal(0, 1, (n, 3)).cumsum(0) for n in self.lengths]).astype(np.float32)
        usual = {"observation.state": state, "action": state + np.float32(0.01)}
        if not {"state", "observation.state"} & set(self.columns):
            self.features = {name: vector(3, JOINTS) for name in usual} | self.features
            self.columns = {name: values.tolist() for name, values in usual.items()} | self.columns

    def episode(self, name: str, number: int) -> np.ndarray:
        """Values of a feature in the rows of an episode."""
        ends = np.cumsum([0, *self.lengths])
        return np.asarray(self.columns[name][ends[number] : ends[number + 1]])

    def write(self, folder: Path, version: str = "v2.1") -> Path:
        """Writes all files; returns the folder."""
        (folder / "meta").mkdir(parents=True)
        rows = self._rows()
        counters = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "task_index": "int64"}
        features = self.features | {
            name: {"dtype": kind, "shape": [1], "names": None} for name, kind in counters.items()
        }
        info = {"codebase_version": version, "robot_type": "so101", "fps": 10, "chunks_size": 2, "features": features}
        write = self._write_v3 if version == "v3.0" else self._write_v2
        info |= write(folder, rows) | self.info
        (folder / "meta/info.json").write_text(json.dumps({k: v for k, v in info.items() if v is not None}))
        return folder

    def _rows(self) -> list[dict[str, Any]]:
        rows = [(episode, row) for episode, length in enumerate(self.lengths) for row in range(length)]
        table = []
        for index, (episode, row) in enumerate(rows):
            values = {"timestamp": row / 10, "frame_index": row, "episode_index": episode, "task_index": 0}
            for name, feature in self.features.items():
                if feature["dtype"] == "image":
                    make = self.images.get(name, lambda e, r: png(pixels(e, r)))
                    values[name] = {"bytes": make(episode, row), "path": f"frame_{row:06d}.png"}
            table.append(values | {name: column[index] for name, column in self.columns.items()})
        return table

    def _records(self) -> list[dict[str, Any]]:
        found = [
            {"episode_index": n, "tasks": list(self.tasks), "length": length} for n, length in enumerate(self.lengths)
        ]
        return [record | self.records.get(number, {}) for number, record in enumerate(found)]

    def _write_v2(self, folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
        for number in range(len(self.lengths)):
            path = folder / f"data/chunk-{number // 2:03d}/episode_{number:06d}.parquet"
            write_table(path, [row for row in rows if row["episode_index"] == number])
        for name, entries in (
            ("tasks", [{"task_index": n, "task": task} for n, task in enumerate(self.tasks)]),
            ("episodes", self._records()),
        ):
            (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return {
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        }

    def _write_v3(self, folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
        files: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            files.setdefault(self.file_of(row["episode_index"], row["frame_index"]), []).append(row)
        for number, content in files.items():
            write_table(folder / f"data/chunk-000/file-{number:03d}.parquet", content)
        place = {"data/chunk_index": 0, "data/file_index": 0}
        write_table(folder / "meta/episodes/chunk-000/file-000.parquet", [place | record for record in self._records()])
        tasks = [{"task": task, "task_index": number} for number, task in enumerate(self.tasks)]
        write_table(folder / "meta/tasks.parquet", tasks)
        return {
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        }


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """A Parquet file of rows."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    if rows:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def bring(folder: Path, **request: Any) -> RenderedDataset:
    """Imports a dataset; returns what became of it."""
    out = folder.with_name(f"{folder.name}-imported")
    import_lerobot(plan_import(LeRobotFolder(folder), LeRobotRequest(**{"stride": 4, **request})), out)
    return RenderedDataset(out)


def refused(folder: Path, message: str, **request: Any) -> None:
    """Checks that an import is refused before anything is written."""
    with pytest.raises(UserError, match=message):
        bring(folder, **request)
    assert not folder.with_name(f"{folder.name}-imported").exists()
