"""On-disk format of rendered episodes: one folder a dataset, one HDF5 file an episode.

::

    dataset/
      spec.json                    what was asked for (a RenderSpec); written first, compared when rendering resumes
      dataset.json                 counts, sizes; written last: without it, it is unfinished
      episodes/episode_000000.h5   attributes: instruction (or several wordings of it), env_id, seed, source,
                                   source_episode, control_mode, image_size.<camera>, "512x512" for example: height and
                                   width of the camera's whole image, of which the frames are cut, and appearance: JSON
                                   of what was drawn for it, the cameras' poses (x, y, z, quaternion) among it
        frames/<camera>            (N, H, W, 3) uint8 RGB, compressed losslessly (gzip), one chunk a frame
        frame_steps                (N,) int32, the control step before which each frame was taken, ascending
        proprioception             (E + 1, P) float32, joint positions at every step: radians, gripper fingers in metres
        extra/<name>               (E + 1, n) float32, an entry of ManiSkill's obs["extra"] at every step, if asked for
        actions                    (E, A) float32, in the controller's units; absent in action-free (video) episodes

Letters of shapes: see :mod:`par_agent.modeling`. Frames exist only at chunk boundaries; joint positions and actions
exist at every control step, so that any frame can start a chunk of any length. A file that is damaged, or whose arrays
do not fit one another, is a UserError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import h5py
import numpy as np
from tqdm import tqdm

from par_agent.data.render_spec import ADDED_FIELDS, RenderSpec
from par_agent.errors import UserError
from par_agent.utils.files import atomic_path, claimed_folder, read_object
from par_agent.utils.hdf5 import HDF5Reader, file_image, number_fault, open_in_memory
from par_agent.utils.json_fields import check

ADVICE = "delete it and run `par-agent render` again, or train without it: --skip-corrupt"
"""What the user can do where an episode file is damaged."""


class _Seed(TypedDict):
    seed: int


class Attributes(_Seed, total=False):
    """Attributes that an episode file may have."""

    instruction: str | tuple[str, ...]
    env_id: str
    source: str
    source_episode: int
    control_mode: str
    appearance: str


class _Summary(TypedDict):
    """What is read of dataset.json."""

    num_episodes: int
    actions: bool
    extra: dict[str, int]
    image_sizes: dict[str, tuple[int, int]]


IMAGES = (None, None, None, 3)
"""Shape of a camera's frames."""


@dataclass(frozen=True)
class Episode:
    """One rendered episode of ``E`` control steps and ``N`` frames."""

    frames: dict[str, np.ndarray]
    """Camera name -> (N, H, W, 3) uint8 RGB."""
    frame_steps: np.ndarray
    """(N,) int32 control step of each frame."""
    proprioception: np.ndarray
    """(E + 1, P) float32 joint positions."""
    actions: np.ndarray | None
    """(E, A) float32, or None for action-free video."""
    attributes: dict[str, Any]
    """instruction (a text, or a tuple of wordings), env_id, seed, source, source_episode, control_mode, and those of
    :func:`image_size_attributes`."""
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    """Name -> (E + 1, n) float32 extra observations."""

    @property
    def instructions(self) -> tuple[str, ...]:
        """Wordings of the instruction, those without words left out; training draws one a window."""
        given = self.attributes.get("instruction", "")
        return tuple(text for text in ((given,) if isinstance(given, str) else given) if text.strip())

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width of each camera's whole image, before it was cropped; cameras of unknown size are missing."""
        sizes = {}
        for name, value in self.attributes.items():
            if name.startswith(IMAGE_SIZE):
                found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", str(value))
                if found is None:
                    raise UserError(f"attribute {name} is {value!r}; expected a size such as '512x512'")
                sizes[name.removeprefix(IMAGE_SIZE)] = int(found[1]), int(found[2])
        return sizes


IMAGE_SIZE = "image_size."
"""Beginning of the names of attributes that hold the size of a camera's whole image."""


def image_size_attributes(images: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Attributes with the sizes of the cameras' whole images (..., H, W, 3), before they are cropped and resized."""
    return {f"{IMAGE_SIZE}{camera}": f"{rows.shape[-3]}x{rows.shape[-2]}" for camera, rows in images.items()}


def write_episode(path: Path, episode: Episode) -> None:
    """Writes one episode file atomically; equal episodes give equal bytes.

    Frames that are not (N, H, W, 3) uint8, and numbers that are no robot's, are refused.
    """
    for camera, frames in episode.frames.items():
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise UserError(
                f"{path} would hold frames of {camera} of shape {frames.shape} and type {frames.dtype}; expected "
                "RGB, (frames, height, width, 3) uint8"
            )
    numbers = {"proprioception": episode.proprioception, "actions": episode.actions, **episode.extra}
    for name, values in numbers.items():
        if values is not None and (fault := number_fault(values)):
            about = episode.attributes
            origin = f"episode {about.get('source_episode')} of {about.get('source')}"
            raise UserError(f"{path} would hold {fault}, among the {name} of {origin}: leave that episode out")
    with open_in_memory() as file:
        for name, value in episode.attributes.items():
            file.attrs[name] = np.array(value, h5py.string_dtype()) if isinstance(value, tuple) else value
        for camera, frames in episode.frames.items():
            file.create_dataset(
                f"frames/{camera}", data=frames, chunks=(1, *frames.shape[1:]), compression="gzip", compression_opts=1
            )
        arrays = {"frame_steps": episode.frame_steps.astype(np.int32), "proprioception": episode.proprioception}
        arrays |= {f"extra/{name}": values for name, values in episode.extra.items()}
        arrays |= {} if episode.actions is None else {"actions": episode.actions}
        for name, values in arrays.items():
            kind = np.int32 if name == "frame_steps" else np.float32
            file.create_dataset(name, data=values.astype(kind), fletcher32=values.size > 0)  # a checksum
        image = file_image(file)
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)


def read_episode(path: Path, *, frames: bool = True) -> Episode:
    """Reads one episode file; ``frames=False`` skips the images."""
    return _read(path, frames)[0]


def _read(path: Path, frames: bool) -> tuple[Episode, dict[str, tuple[int, ...]]]:
    """An episode, with its images or without, and the shape of each camera's images."""
    with HDF5Reader(path, ADVICE) as file:
        cameras = {camera: f"frames/{camera}" for camera in file.names("frames")}
        shapes = {camera: file.check(name, np.uint8, IMAGES) for camera, name in cameras.items()}
        extra = file.names("extra") if "extra" in file else []
        episode = Episode(
            {camera: file.array(name, np.uint8, IMAGES) for camera, name in cameras.items()} if frames else {},
            file.array("frame_steps", np.int32, (None,)),
            file.array("proprioception", np.float32, (None, None)),
            file.array("actions", np.float32, (None, None)) if "actions" in file else None,
            file.attributes(),
            {name: file.array(f"extra/{name}", np.float32, (None, None)) for name in extra},
        )
    if problem := _problem(episode, shapes):
        raise damaged_episode(path, problem)
    return episode, shapes


def read_frames(path: Path, camera: str, numbers: np.ndarray) -> np.ndarray:
    """Reads only frames ``numbers`` (ascending) of one camera: (n, H, W, 3) uint8 RGB."""
    with HDF5Reader(path, ADVICE) as file:
        return file.array(f"frames/{camera}", np.uint8, IMAGES, rows=numbers)


def _problem(episode: Episode, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The first fault of an episode whose cameras' frames have these shapes; None: it has no fault."""
    steps, total = episode.frame_steps, len(episode.proprioception) - 1
    for name, values in episode.extra.items():
        if len(values) != total + 1:
            return f"{len(values)} rows of {name} and {total + 1} joint positions; expected as many"
    if episode.actions is not None and len(episode.actions) != total:
        return f"{len(episode.actions)} actions and {total + 1} joint positions; expected one position more"
    for camera, (count, *_) in shapes.items():
        if count != len(steps):
            return f"{count} frames of {camera} at {len(steps)} control steps"
    if not len(steps) or steps[0] < 0 or steps[-1] > total or (np.diff(steps) <= 0).any():
        return f"frames at control steps {steps.tolist()} of {total}"
    try:
        check("attributes", episode.attributes, Attributes)
        _ = episode.image_sizes
    except UserError as error:
        return str(error)
    return None if episode.attributes["seed"] >= 0 else "its seed is negative"


def frame_steps(num_steps: int, stride: int, phase: int) -> np.ndarray:
    """Control steps of the stored frames of an episode of ``num_steps`` steps: chunk boundaries and the last state.

    >>> frame_steps(20, 8, 0).tolist()
    [0, 8, 16, 20]
    """
    steps = list(range(phase, num_steps + 1, stride))
    return np.array(steps if steps and steps[-1] == num_steps else [*steps, num_steps], dtype=np.int32)


def episode_path(folder: Path, number: int) -> Path:
    """File of episode ``number`` of a dataset folder."""
    return folder / "episodes" / f"episode_{number:06d}.h5"


def episode_paths(folder: Path) -> list[Path]:
    """Files of the episodes that a dataset folder holds by now, in order."""
    return sorted((folder / "episodes").glob("episode_*.h5"))


def claimed_dataset(folder: Path, spec: RenderSpec) -> AbstractContextManager[None]:
    """While the block runs, the folder holds ``spec``; one that was begun with another is refused."""
    return claimed_folder(
        folder / "spec.json", spec.to_json(), begun=lambda: bool(episode_paths(folder)), added=ADDED_FIELDS
    )


def summarise(folder: Path) -> dict[str, Any]:
    """What the episodes that a folder holds have in common, and their counts (the content of dataset.json)."""
    summary: dict[str, Any] = {"num_episodes": 0, "num_frames": 0, "num_steps": 0}
    summary |= {"actions": False, "extra": {}, "image_sizes": {}}
    sizes: dict[str, tuple[int, int]] = summary["image_sizes"]
    for path in episode_paths(folder):
        episode = read_episode(path, frames=False)
        summary["num_episodes"] += 1
        summary["num_frames"] += len(episode.frame_steps)
        summary["num_steps"] += len(episode.proprioception) - 1
        summary["actions"] |= episode.actions is not None
        summary["extra"] |= {name: values.shape[1] for name, values in episode.extra.items()}
        for camera, size in episode.image_sizes.items():
            if sizes.setdefault(camera, size) != size:
                raise UserError(
                    f"{path}: images of {camera} were {size[0]}x{size[1]}, those of earlier episodes "
                    f"{sizes[camera][0]}x{sizes[camera][1]}: make a dataset of each"
                )
    return summary


def damaged_episode(path: Path, error: Exception | str) -> UserError:
    """The error of an episode file that cannot be read."""
    return UserError(f"{path} is damaged ({error}); {ADVICE}")


def open_datasets(folders: Sequence[Path], *, skip_corrupt: bool = False) -> list[RenderedDataset]:
    """Opens the datasets of a training run, each given once; see :class:`RenderedDataset`."""
    places = [folder.resolve() for folder in folders]
    if twice := [folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise UserError(f"the dataset {twice[0]} is given twice; name each once")
    return [RenderedDataset(folder, skip_corrupt=skip_corrupt) for folder in folders]


class RenderedDataset:
    """A finished folder of rendered episodes.

    Args:
        folder: made by `par-agent render`.
        skip_corrupt: reads every episode once, frames included, and leaves out those that are damaged.

    Raises:
        UserError: the folder does not exist, is unfinished, or lacks (intact) episodes.
    """

    def __init__(self, folder: Path | str, *, skip_corrupt: bool = False) -> None:
        self.folder = Path(folder)
        if not (self.folder / "spec.json").is_file():
            raise UserError(f"{self.folder} is not a rendered dataset (no spec.json); make one with `par-agent render`")
        if not (self.folder / "dataset.json").is_file():
            raise UserError(f"{self.folder} is unfinished (no dataset.json); run the same `par-agent render` again")
        self.spec = RenderSpec.from_json(read_object(self.folder / "spec.json"), self.folder / "spec.json")
        self.summary = read_object(self.folder / "dataset.json", _Summary)
        self.cameras = self.spec.cameras
        """Names of the cameras that were rendered."""
        self.extra = self.summary["extra"]
        """Extra observations by name, and how many numbers each has."""
        self.has_actions = self.summary["actions"]
        """False for action-free video."""
        self.paths = episode_paths(self.folder)
        if len(self.paths) != self.summary["num_episodes"]:
            raise UserError(
                f"{self.folder} lists {self.summary['num_episodes']} episodes but holds {len(self.paths)}; "
                "run the same `par-agent render` again"
            )
        if not self.paths:
            raise UserError(f"{self.folder} holds no episodes; render a trajectory file with at least one")
        self.skipped: list[Path] = []
        """Files left out because they are damaged."""
        for path in tqdm(self.paths, desc=f"check {self.folder.name}", unit="episode") if skip_corrupt else ():
            try:
                self.read(path)
            except UserError as error:
                self.skipped.append(path)
                tqdm.write(f"left out: {error}")
        self.paths = [path for path in self.paths if path not in self.skipped]
        if not self.paths:
            raise UserError(f"{self.folder}: every one of its {len(self.skipped)} episodes is damaged; render it again")

    def read(self, path: Path, *, frames: bool = True) -> Episode:
        """Reads one of the episodes; ``frames=False`` skips the images."""
        episode, shapes = _read(path, frames)
        if fault := self._mismatch(episode, shapes):
            raise damaged_episode(path, fault)
        return episode

    def _mismatch(self, episode: Episode, shapes: dict[str, tuple[int, ...]]) -> str | None:
        """The first way in which an episode differs from what the dataset says; None: it does not."""
        total = len(episode.proprioception) - 1
        expected = frame_steps(total, self.spec.stride, self.spec.phase)
        if not np.array_equal(episode.frame_steps, expected):
            found = f"frames at control steps {episode.frame_steps.tolist()} of {total}"
            return f"{found}; the dataset's are at {expected.tolist()}"
        for camera in self.cameras:
            if camera not in shapes:
                return f"no frames of {camera}"
            if self.spec.frame_size not in (None, shapes[camera][1:3]):
                found = f"frames of {shapes[camera][1]}x{shapes[camera][2]} pixels"
                return f"{found}; the dataset's are {self.spec.frame_size}"
        for camera, size in episode.image_sizes.items():
            if size != self.image_size(camera):
                return f"its images of {camera} were {size}; the dataset's {self.image_size(camera)}"
        if self.has_actions != (episode.actions is not None):
            return f"it holds {'no ' * self.has_actions}actions, unlike the dataset"
        if self.extra != {name: values.shape[1] for name, values in episode.extra.items()}:
            return f"it holds the extra observations {sorted(episode.extra)}; the dataset's are {self.extra}"
        if episode.attributes.get("env_id", self.spec.env_id) != self.spec.env_id:
            return f"it is of {episode.attributes['env_id']}; the dataset is of {self.spec.env_id}"
        return None

    def check_camera(self, camera: str) -> None:
        """Raises a UserError where the dataset has no such camera."""
        if camera not in self.cameras:
            raise UserError(
                f"{self.folder} holds no camera {camera!r}; it has {', '.join(self.cameras)}: render it again with "
                f"--cameras {camera}"
            )

    def image_size(self, camera: str) -> tuple[int, int] | None:
        """Height and width of a camera's whole image, before it was cropped; None where they are not known."""
        size = self.summary["image_sizes"].get(camera)
        return size and (size[0], size[1])

    def __len__(self) -> int:
        return len(self.paths)
