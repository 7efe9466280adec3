"""Reads a LeRobotDataset v3.0 into a rendered dataset, whatever tool wrote it.

The K rows of an episode become K - 1 control steps: what the last row's action led to was not observed. Frames are
taken every ``stride`` rows, and at the end. What :mod:`par_agent.data.lerobot_export` wrote is read back as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from tqdm import tqdm

from par_agent.data import lerobot
from par_agent.data.conventions import joint_targets
from par_agent.data.episodes import Episode, frame_steps, write_episode
from par_agent.data.media import decode_image, video_frames
from par_agent.data.rendering import ADDED_FIELDS, RenderSpec, episode_path, summarise
from par_agent.data.tables import Table
from par_agent.errors import UserError
from par_agent.files import cannot_write, claim_folder, inside, only_process, read_content, read_object, write_json
from par_agent.json_fields import check
from par_agent.tasks import UNKNOWN_CONTROLLER
from par_agent.transforms import crop_and_resize

DEFAULT_STRIDE = 8


@dataclass(frozen=True)
class LeRobotRequest:
    """What of a LeRobot dataset to take, and how."""

    stride: int | None = None
    """Rows between stored frames; the chunk length, or a divisor of it for more starting points. 8 if not given."""
    cameras: tuple[str, ...] = ()
    """Cameras, without `observation.images.`; all if not given."""
    crop: tuple[int, int, int, int] | None = None
    """Top, left, height, width in pixels of the images."""
    size: tuple[int, int] | None = None
    """Height and width of the stored frames, resized by area averaging."""
    control_mode: str | None = None
    """`pd_joint_pos` where actions are target positions of the joints; by the features' names if not given."""


class _Feature(TypedDict):
    dtype: str


class _Places(TypedDict, total=False):
    video_path: str | None
    robot_type: str | None


class _Info(_Places):
    """What is read of meta/info.json."""

    codebase_version: str
    features: dict[str, _Feature]
    data_path: str
    fps: float


class _Ours(TypedDict):
    """What is read of meta/par_agent.json."""

    spec: dict[str, Any]
    episodes: list[dict[str, str | int | float | bool | tuple[str, ...]]]


class _Picture(TypedDict, total=False):
    bytes: Any
    path: str | None


_Record = TypedDict("_Record", {"episode_index": int, "length": int, "data/chunk_index": int, "data/file_index": int})
"""What is read of every row of meta/episodes."""


class LeRobotFolder:
    """An existing LeRobotDataset v3.0.

    Raises:
        UserError: no such dataset, another version, no joint positions or images, or pyarrow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / lerobot.INFO).is_file():
            raise UserError(f"{folder} is not a LeRobot dataset (no {lerobot.INFO})")
        self.info = read_object(inside(folder, lerobot.INFO), _Info)
        version = str(self.info.get("codebase_version"))
        if not version.startswith("v3."):
            raise UserError(
                f"{folder} has the format {version}; expected {lerobot.VERSION}: convert it with LeRobot's own "
                "convert_dataset_v21_to_v30"
            )
        self.features = self.info["features"]
        kinds = {name: feature["dtype"] for name, feature in self.features.items()}
        self.cameras = {name.removeprefix(lerobot.IMAGES): name for name in kinds if kinds[name] in ("image", "video")}
        if lerobot.STATE not in kinds or not self.cameras:
            raise UserError(f"{folder} lacks {lerobot.STATE} or images; it has the features {', '.join(kinds)}")
        self.has_actions = lerobot.ACTION in kinds
        self.extra = {name.removeprefix(lerobot.EXTRA): name for name in kinds if name.startswith(lerobot.EXTRA)}
        """Names of the extra observations -> their columns."""
        tasks = Table(inside(folder, lerobot.TASKS))
        texts = tasks.values("task" if "task" in tasks else "__index_level_0__", str)
        self.tasks: dict[int, str] = dict(zip(tasks.values("task_index", int), texts, strict=True))
        """Instruction by its number."""
        if len(self.tasks) < len(texts):
            raise tasks.damaged("a task_index stands twice")
        self.episodes: list[dict[str, Any]] = []
        """Where each episode is, in order."""
        for path in sorted((folder / "meta/episodes").rglob("*.parquet")):
            self.episodes += Table(inside(folder, str(path.relative_to(folder)))).records(_Record)
        self.episodes.sort(key=lambda record: int(record["episode_index"]))
        self.ours: _Ours | None = None
        if (folder / lerobot.OURS).is_file():
            self.ours = read_object(inside(folder, lerobot.OURS), _Ours)
            if len(self.ours["episodes"]) != len(self.episodes):
                raise UserError(
                    f"{folder / lerobot.OURS} describes {len(self.ours['episodes'])} episodes, meta/episodes "
                    f"{len(self.episodes)}; copy or export the dataset again"
                )

    def rows(self, record: dict[str, Any]) -> dict[str, Any]:
        """Columns of an episode: ``state`` (K, P), ``action`` (K, A) or None, ``extra`` (K, n) by name, ``task``, and
        images as PNG files."""
        path = inside(
            self.folder,
            lerobot.fill(
                self.info["data_path"], chunk_index=record["data/chunk_index"], file_index=record["data/file_index"]
            ),
        )
        images = [name for name in self.cameras.values() if self.features[name]["dtype"] == "image"]
        names = [lerobot.STATE, "task_index", "frame_index", *images, *self.extra.values()]
        names += [lerobot.ACTION] * self.has_actions
        table = Table(path, names, record["episode_index"])
        if len(table) != record["length"] or len(table) < 2:
            raise table.damaged(
                f"it holds {len(table)} rows of episode {record['episode_index']}; its table of episodes says "
                f"{record['length']}, and 2 is the least"
            )
        if set(np.diff(table.values("frame_index", int)).tolist()) != {1}:
            raise table.damaged(f"a row of episode {record['episode_index']} is missing or there twice")
        if (task := table.values("task_index", int)[0]) not in self.tasks:
            raise table.damaged(f"its task_index {task} is not in {lerobot.TASKS}")
        return {
            "state": table.matrix(lerobot.STATE),
            "action": table.matrix(lerobot.ACTION) if self.has_actions else None,
            "extra": {name: table.matrix(column) for name, column in self.extra.items()},
            "task": self.tasks[task],
            "images": {name: table.values(name, _Picture) for name in images},
        }

    def control_mode(self) -> str:
        """``pd_joint_pos`` if the numbers of an action are called like the joints whose targets they are."""
        joints, actions = (dict(self.features.get(name, {})).get("names") for name in (lerobot.STATE, lerobot.ACTION))
        if not isinstance(joints, list) or not isinstance(actions, list) or len(actions) < 2:
            return UNKNOWN_CONTROLLER
        targets = joint_targets("pd_joint_pos", len(actions), len(joints))
        same = [joints[n] == actions[n] for n, target in enumerate(targets) if target]
        return "pd_joint_pos" if same and all(same) else UNKNOWN_CONTROLLER


def import_lerobot(source: LeRobotFolder, out: Path, request: LeRobotRequest) -> RenderSpec:
    """Writes every episode into a dataset folder; the same call again goes on where it was stopped.

    Raises:
        UserError: a camera that the dataset lacks, damaged files, a folder of other settings, or a full disk.
    """
    spec = make_spec(source, request)
    if len({record["episode_index"] for record in source.episodes}) != spec.num_episodes:
        raise UserError(f"{source.folder} lists an episode twice in meta/episodes; copy or download it again")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with only_process(out / ".lock", f"writes into {out}"):
            begun = any((out / "episodes").glob("*"))
            claim_folder(out / "spec.json", spec.to_json(), begun=begun, defaults=ADDED_FIELDS)
            frames = {camera: _Frames(source, camera) for camera in spec.cameras}
            try:
                for number, record in enumerate(tqdm(source.episodes, desc=f"import {out.name}", unit="episode")):
                    if not episode_path(out, number).exists():
                        write_episode(
                            episode_path(out, number), _episode(source, record, number, spec, request, frames)
                        )
            finally:
                for reader in frames.values():
                    reader.close()
            write_json(out / "dataset.json", summarise(out))
    except OSError as error:
        raise UserError(cannot_write(out, error)) from error
    return spec


def make_spec(source: LeRobotFolder, request: LeRobotRequest) -> RenderSpec:
    """The spec of the imported dataset: the original one, where this package exported it.

    Raises:
        UserError: no episodes, an unknown camera, or options for what a dataset of this package's own says itself.
    """
    if not source.episodes:
        raise UserError(f"{source.folder} holds no episodes")
    cameras = request.cameras or tuple(source.cameras)
    if unknown := [camera for camera in cameras if camera not in source.cameras]:
        raise UserError(f"{source.folder} has no camera {unknown[0]!r}; it has {', '.join(source.cameras)}")
    if source.ours is not None:
        if any(value is not None for value in (request.crop, request.size, request.stride, request.control_mode)):
            raise UserError(
                f"{source.folder} was exported by par_agent and knows its frames and actions: leave --crop, --size, "
                "--stride and --control-mode out"
            )
        original = RenderSpec.from_json(source.ours["spec"], str(source.folder / lerobot.OURS))
        original = dataclasses.replace(original, cameras=request.cameras or original.cameras)
        if lacking := [camera for camera in original.cameras if camera not in source.cameras]:
            raise UserError(f"{source.folder} lacks its camera {lacking[0]!r}; copy or export the dataset again")
        return original
    stride = DEFAULT_STRIDE if request.stride is None else request.stride
    return RenderSpec(
        env_id=str(source.info.get("robot_type") or "unknown"),
        source=str(source.folder),
        num_episodes=len(source.episodes),
        instruction=next(iter(source.tasks.values()), ""),
        cameras=cameras,
        crop=request.crop,
        size=request.size,
        chunk_length=stride,
        stride=stride,
    )


def _episode(
    source: LeRobotFolder,
    record: dict[str, Any],
    number: int,
    spec: RenderSpec,
    request: LeRobotRequest,
    frames: dict[str, _Frames],
) -> Episode:
    rows = source.rows(record)
    steps = frame_steps(len(rows["state"]) - 1, spec.stride, spec.phase)
    images = {camera: reader.take(record, rows["images"], steps) for camera, reader in frames.items()}
    if source.ours is None:
        images = {
            camera: np.stack([crop_and_resize(image, spec.crop, spec.size) for image in taken])
            for camera, taken in images.items()
        }
    attributes = {
        "env_id": spec.env_id,
        "seed": number,
        "source": source.folder.name,
        "source_episode": int(record["episode_index"]),
        "control_mode": request.control_mode or source.control_mode(),
    }
    if source.ours is not None:
        own = source.ours["episodes"][number]
        attributes |= {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    actions = None if rows["action"] is None else rows["action"][:-1]
    return Episode(images, steps, rows["state"], actions, {"instruction": rows["task"], **attributes}, rows["extra"])


class _Frames:
    """Frames of one camera; videos are read from their beginning to their end, once."""

    def __init__(self, source: LeRobotFolder, camera: str) -> None:
        self._source, self._key = source, source.cameras[camera]
        self._path: Path | None = None
        self._stream: Generator[np.ndarray, None, None] | None = None
        self._next = 0

    def take(self, record: dict[str, Any], columns: dict[str, Any], steps: np.ndarray) -> np.ndarray:
        """Frames (K, H, W, 3) uint8 of rows ``steps``, ascending, of an episode.

        Raises:
            UserError: a video is missing, damaged or too short.
        """
        if self._key in columns:
            return self._stacked([self._image(columns[self._key][int(step)]) for step in steps])
        prefix, info = f"videos/{self._key}", self._source.info
        if not info.get("video_path"):
            raise UserError(f"{self._source.folder / lerobot.INFO} lacks video_path, where the videos are")
        place = {name: f"{prefix}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")}
        for name in place.values():
            kind = float if name.endswith("timestamp") else int
            check(f"{self._source.folder}: {name} of episode {record['episode_index']}", record.get(name), kind)
        chunk, file = record[place["chunk_index"]], record[place["file_index"]]
        name = lerobot.fill(str(info["video_path"]), video_key=self._key, chunk_index=chunk, file_index=file)
        first = round(record[place["from_timestamp"]] * info["fps"])
        path = inside(self._source.folder, name)
        return self._stacked([self._frame(path, first + int(step)) for step in steps])

    def _frame(self, path: Path, number: int) -> np.ndarray:
        if self._stream is None or path != self._path or number < self._next:
            self.close()
            self._path, self._stream, self._next = path, video_frames(path), 0
        frame = None
        while self._next <= number:
            frame = next(self._stream, None)
            if frame is None:
                raise UserError(f"{path} ends before its frame {number}; copy or download the dataset again")
            self._next += 1
        assert frame is not None
        return frame

    def _image(self, picture: dict[str, Any]) -> np.ndarray:
        content, folder = picture.get("bytes"), self._source.folder
        if not content:
            content = read_content(inside(folder, str(picture.get("path"))))
        return decode_image(content, f"an image of {self._key} in {folder}")[..., :3]

    def _stacked(self, images: list[np.ndarray]) -> np.ndarray:
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise UserError(f"images of {self._key} in {self._source.folder} differ in size: {sorted(shapes)}")
        return np.stack(images)

    def close(self) -> None:
        """Ends the process that decodes."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
