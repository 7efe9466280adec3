"""Writes a rendered dataset as a LeRobotDataset v3.0, which LeRobot and the tools around it read.

A row is a control step. Its image is the newest frame at that step: a dataset that was rendered with a stride has rows
that show an older frame again, marked by ``frame_is_new``. An episode of E control steps has E + 1 rows, since the
robot is observed once more at its end; the last row repeats the last action.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import imageio.v2
import imageio.v3
import numpy as np
from tqdm import tqdm

from par_agent.data import lerobot
from par_agent.data.conventions import joint_targets
from par_agent.data.episodes import Episode, RenderedDataset
from par_agent.data.statistics import RunningStatistics
from par_agent.errors import UserError
from par_agent.utils.files import only_process, write_json, writing
from par_agent.utils.interrupts import deferred_interrupts

QUALITY = 18
"""Constant rate factor of the videos; lower is better, 0 loses nothing but colour resolution."""
VIDEO_MEGABYTES = 200
"""What the format's description says of video files; tools that append to them look at it."""
PIXEL_STEP = 4
"""Statistics of images look at every this many-th row and column."""


def export_lerobot(dataset: RenderedDataset, out: Path, *, fps: int = 20, images: bool = False) -> None:
    """Writes the dataset's episodes into a new folder.

    Args:
        dataset: a rendered dataset, with or without actions.
        out: folder to make; it has this name only when it is complete.
        fps: control steps a second.
        images: stores frames as PNG images in the data files, exactly, instead of as videos.

    Raises:
        UserError: the folder exists or another process writes it, pyarrow is not installed, frames that a video cannot
            hold, or a full disk.
        Interrupted: the process was told to end; nothing is left.
    """
    if fps < 1:
        raise UserError(f"fps is {fps}; it must be at least 1 control step a second")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out, or move it away")
    if dataset.spec.phase:
        raise UserError(f"{dataset.folder} was rendered with --phase {dataset.spec.phase}; render it with --phase 0")
    lerobot.pyarrow_module("")
    unfinished = out.with_name(f".{out.name}.unfinished")
    with (
        deferred_interrupts() as interrupts,
        writing(out),
        only_process(out.with_name(f".{out.name}.lock"), f"writes {out}"),
    ):
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            writer = _Writer(dataset, unfinished, fps, images)
            try:
                for path in tqdm(dataset.paths, desc=f"export {dataset.folder.name}", unit="episode"):
                    interrupts.check()
                    writer.add(dataset.read(path))
            finally:
                writer.close()
            writer.write_meta()
            unfinished.replace(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


class _Writer:
    """An export while it goes on."""

    def __init__(self, dataset: RenderedDataset, folder: Path, fps: int, images: bool) -> None:
        self.dataset, self.folder, self.fps, self.images = dataset, folder, fps, images
        first = dataset.read(dataset.paths[0])
        self.features = _features(first, fps, images)
        self.data = _DataFiles(folder, self.features)
        shown = () if images else first.frames
        self.videos = {camera: _VideoFiles(folder, camera, fps, dataset.spec.stride) for camera in shown}
        self.tasks: dict[str, int] = {}
        self.episodes: list[dict[str, Any]] = []
        self.attributes: list[dict[str, Any]] = []
        self.total = {name: RunningStatistics() for name in self.features}
        self.rows = 0

    def add(self, episode: Episode) -> None:
        number, tasks = len(self.episodes), episode.instructions or ("",)
        for text in tasks:
            self.tasks.setdefault(text, len(self.tasks))
        task = self.tasks[tasks[0]]
        rows = len(episode.proprioception)
        shown = np.searchsorted(episode.frame_steps, np.arange(rows), side="right") - 1
        columns: dict[str, Any] = self._columns(episode, number, task)
        record = {
            "episode_index": number,
            "tasks": list(tasks),
            "length": rows,
            "dataset_from_index": self.rows,
            "dataset_to_index": self.rows + rows,
            **_place("meta/episodes", 0),
        }
        pixels = {f"{lerobot.IMAGES}{camera}": _pixels(frames) for camera, frames in episode.frames.items()}
        statistics = self._statistics({**columns, **pixels}, rows)
        if self.images:
            columns |= {f"{lerobot.IMAGES}{camera}": _png(frames, shown) for camera, frames in episode.frames.items()}
        record |= self.data.write(columns)
        for camera, video in self.videos.items():
            record |= video.write(episode.frames[camera][shown])
        self.episodes.append(record | statistics)
        plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in episode.attributes.items()}
        self.attributes.append(plain)
        self.rows += rows

    def _columns(self, episode: Episode, number: int, task: int) -> dict[str, np.ndarray]:
        """Values of all features but images, a row each."""
        rows = np.arange(len(episode.proprioception))
        columns = {lerobot.STATE: episode.proprioception}
        if episode.actions is not None:
            columns[lerobot.ACTION] = episode.actions[np.minimum(rows, len(episode.actions) - 1)]
        columns |= {f"{lerobot.EXTRA}{name}": values for name, values in episode.extra.items()}
        return {
            **columns,
            lerobot.IS_NEW: np.isin(rows, episode.frame_steps),
            lerobot.DONE: rows == rows[-1],
            "timestamp": (rows / self.fps).astype(np.float32),
            "frame_index": rows,
            "episode_index": np.full(len(rows), number),
            "index": self.rows + rows,
            "task_index": np.full(len(rows), task),
        }

    def _statistics(self, values: dict[str, np.ndarray], rows: int) -> dict[str, Any]:
        """Adds an episode to the totals; returns its own statistics as columns of its record."""
        record = {}
        for name, array in values.items():
            own = RunningStatistics()
            for statistics in (own, self.total[name]):
                statistics.add(array.reshape(len(array), -1))
            for measure, value in _measures(own, rows, name).items():
                record[f"stats/{name}/{measure}"] = value
        return record

    def close(self) -> None:
        self.data.close()
        for video in self.videos.values():
            video.close()

    def write_meta(self) -> None:
        arrow, parquet = lerobot.pyarrow_module(""), lerobot.pyarrow_module("parquet")
        info = {
            "codebase_version": lerobot.VERSION,
            "robot_type": None,
            "total_episodes": len(self.episodes),
            "total_frames": self.rows,
            "total_tasks": len(self.tasks),
            "chunks_size": lerobot.FILES_PER_CHUNK,
            "data_files_size_in_mb": lerobot.DATA_MEGABYTES,
            "video_files_size_in_mb": VIDEO_MEGABYTES,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": lerobot.DATA,
            "video_path": lerobot.VIDEO if self.videos else None,
            "features": self.features,
        }
        totals = {name: _measures(statistics, self.rows, name) for name, statistics in self.total.items()}
        write_json(self.folder / lerobot.INFO, info)
        write_json(self.folder / lerobot.STATS, totals)
        write_json(
            self.folder / lerobot.EXPORT_RECORD, {"spec": self.dataset.spec.to_json(), "episodes": self.attributes}
        )
        parquet.write_table(_tasks_table(self.tasks), self.folder / lerobot.TASKS, write_page_checksum=True)
        path = self.folder / lerobot.numbered(lerobot.EPISODES, 0)
        path.parent.mkdir(parents=True)
        parquet.write_table(arrow.Table.from_pylist(self.episodes), path, write_page_checksum=True)


class _Files:
    """Numbered files of several episodes each, by a pattern of :mod:`par_agent.data.lerobot`; the last one is open."""

    def __init__(self, folder: Path, pattern: str, **names: str) -> None:
        self._folder, self._pattern, self._names = folder, pattern, names
        self._number, self._path = -1, folder
        self._writer: Any = None

    def _begin(self) -> Path:
        """The path of the next file."""
        self.close()
        self._number += 1
        self._path = self._folder / lerobot.numbered(self._pattern, self._number, **self._names)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._path

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _DataFiles(_Files):
    """Parquet files of rows, one row group an episode."""

    def __init__(self, folder: Path, features: dict[str, dict[str, Any]]) -> None:
        super().__init__(folder, lerobot.DATA)
        arrow, columns = lerobot.pyarrow_module(""), []
        plain = {"float32": arrow.float32(), "int64": arrow.int64(), "bool": arrow.bool_()}
        plain["image"] = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        for name, feature in features.items():
            if feature["dtype"] != "video":
                kind, size = plain[feature["dtype"]], feature["shape"][0]
                vector = size > 1 and feature["dtype"] != "image"
                columns.append((name, arrow.list_(kind, size) if vector else kind))
        self._schema = arrow.schema(columns)

    def write(self, columns: dict[str, Any]) -> dict[str, int]:
        """Appends an episode; returns where it is."""
        arrow, parquet = lerobot.pyarrow_module(""), lerobot.pyarrow_module("parquet")
        if self._writer is None or self._path.stat().st_size > lerobot.DATA_MEGABYTES * 2**20:
            # A dictionary holds an image once that several rows show.
            self._writer = parquet.ParquetWriter(
                self._begin(), self._schema, dictionary_pagesize_limit=2**28, write_page_checksum=True
            )
        arrays = [_array(arrow, columns[field.name], field.type) for field in self._schema]
        self._writer.write_table(arrow.Table.from_arrays(arrays, schema=self._schema))
        return _place("data", self._number)


class _VideoFiles(_Files):
    """Videos of one camera; a frame is shown for ``hold`` rows."""

    def __init__(self, folder: Path, camera: str, fps: int, hold: int) -> None:
        super().__init__(folder, lerobot.VIDEO, video_key=f"{lerobot.IMAGES}{camera}")
        self._place, self._fps, self._frames = f"videos/{lerobot.IMAGES}{camera}", fps, 0
        group = str(max(2, hold))  # so that a frame is decoded without many others
        output = ["-crf", str(QUALITY), "-g", group, "-bf", "0", "-preset", "veryfast"]
        self._options: dict[str, Any] = {"fps": fps, "codec": "libx264", "macro_block_size": 2, "output_params": output}

    def write(self, frames: np.ndarray) -> dict[str, Any]:
        """Appends an episode's frames (rows, H, W, 3); returns where they are."""
        if self._writer is None or self._frames > lerobot.VIDEO_ROWS:
            self._writer = imageio.v2.get_writer(self._begin(), format="ffmpeg", **self._options)
            self._frames = 0
        for frame in frames:
            self._writer.append_data(frame)
        begin, self._frames = self._frames, self._frames + len(frames)
        times = {"from_timestamp": begin / self._fps, "to_timestamp": self._frames / self._fps}
        return _place(self._place, self._number) | {f"{self._place}/{name}": time for name, time in times.items()}


def _place(prefix: str, number: int) -> dict[str, Any]:
    """Columns that say in which file an episode is."""
    chunk, file = divmod(number, lerobot.FILES_PER_CHUNK)
    return {f"{prefix}/chunk_index": chunk, f"{prefix}/file_index": file}


def _features(episode: Episode, fps: int, images: bool) -> dict[str, dict[str, Any]]:
    """What a row has; a number of an action is called as the joint is whose target it is."""
    joints = [f"joint_{number}" for number in range(episode.proprioception.shape[1])]
    features = {lerobot.STATE: lerobot.vector(joints)}
    if episode.actions is not None:
        size = episode.actions.shape[1]
        targets = joint_targets(str(episode.attributes.get("control_mode", "")), size, len(joints))
        names = [joints[n] if target else f"command_{n}" for n, target in enumerate(targets)]
        features[lerobot.ACTION] = lerobot.vector(names)
    for name, values in episode.extra.items():
        features[f"{lerobot.EXTRA}{name}"] = lerobot.vector([f"{name}_{number}" for number in range(values.shape[1])])
    for camera, frames in episode.frames.items():
        height, width = frames.shape[1:3]
        if not images and (height % 2 or width % 2):
            raise UserError(f"{camera} has frames of {height}x{width} pixels; videos need even sizes: give --images")
        features[f"{lerobot.IMAGES}{camera}"] = lerobot.image(height, width, fps, video=not images)
    kinds = {lerobot.IS_NEW: "bool", lerobot.DONE: "bool", "timestamp": "float32"}
    kinds |= dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    return features | {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in kinds.items()}


def _array(arrow: Any, values: Any, kind: Any) -> Any:
    """A column of Arrow."""
    if arrow.types.is_fixed_size_list(kind):
        return arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel(), kind.value_type), kind.list_size)
    flat = values.ravel() if isinstance(values, np.ndarray) else values
    return arrow.array(flat, kind)


def _png(frames: np.ndarray, shown: np.ndarray) -> list[dict[str, Any]]:
    """The frame of every row as a PNG file, as Hugging Face's image feature stores it."""
    files = [imageio.v3.imwrite("<bytes>", frame, extension=".png") for frame in frames]
    return [{"bytes": files[number], "path": None} for number in shown]


def _pixels(frames: np.ndarray) -> np.ndarray:
    """Colours (n, 3) float32 in [0, 1] of some of the frames' pixels."""
    return frames[:, ::PIXEL_STEP, ::PIXEL_STEP].reshape(-1, 3).astype(np.float32) / 255


def _measures(statistics: RunningStatistics, rows: int, name: str) -> dict[str, Any]:
    """Mean, std, min, max and count; those of an image have its channels as their first axis of three."""
    measures = statistics.result()
    if name.startswith(lerobot.IMAGES):
        measures = {measure: [[[value]] for value in values] for measure, values in measures.items()}
    return {**measures, "count": [rows]}


def _tasks_table(tasks: dict[str, int]) -> Any:
    """The table of instructions, with the index that pandas looks for."""
    arrow = lerobot.pyarrow_module("")
    columns = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
    described = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, kind, numpy in columns
    ]
    metadata = {"index_columns": ["task"], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
    table = arrow.table({"task_index": list(tasks.values()), "task": list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(metadata)})
