"""What the features of a LeRobotDataset mean: which are cameras, which are the robot's state and its actions.

Tools call them differently: ``observation.images.wrist``, ``observation.state`` and ``action`` in LeRobot's own data
sets, ``wrist_image``, ``state`` and ``actions`` in others. What names do not tell is given with an option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from par_agent.data import lerobot
from par_agent.data.conventions import joint_targets
from par_agent.errors import UserError
from par_agent.tasks import UNKNOWN_CONTROLLER
from par_agent.utils.checked import Length, Offset, Pixels

STATES, ACTIONS, SUCCESSES = (lerobot.STATE, "state"), (lerobot.ACTION, "actions"), ("next.success", "success")
"""Usual names of state, actions and success."""
NONE = "none"
"""Key of actions of a dataset that has none."""
CONTROL_MODES = (
    "pd_joint_pos",
    "pd_joint_delta_pos",
    "pd_joint_target_delta_pos",
    "pd_joint_vel",
    "pd_ee_pose",
    "pd_ee_delta_pos",
    "pd_ee_delta_pose",
    "pd_ee_target_delta_pos",
    "pd_ee_target_delta_pose",
    UNKNOWN_CONTROLLER,
)
"""What actions may be: ManiSkill's controllers, or something else."""
COUNTERS = {"timestamp", "frame_index", "episode_index", "index", "task_index", lerobot.DONE, lerobot.IS_NEW}
"""Features that every dataset has and that are not reported as unused."""


@dataclass(frozen=True, kw_only=True)
class LeRobotRequest:
    """Which parts of a LeRobot dataset to read, and how."""

    episodes: str | None = None
    """Episodes to read, by number, such as 0-99,120. Default: all."""
    include_failures: bool = False
    """Reads also episodes in which the feature `next.success` or `success` is never true."""
    skip_corrupt: bool = False
    """Leaves out episodes that cannot be read, and names each."""
    stride: Length | None = None
    """Rows between stored frames: the chunk length, or a divisor of it for more starting points. Default: 8."""
    cameras: tuple[str, ...] = ()
    """Cameras by name, without `observation.images.`. Default: all colour cameras."""
    crop: tuple[Offset, Offset, Pixels, Pixels] | None = None
    """Top, left, height and width of the crop, in pixels of the images."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width of the stored frames, resized by area averaging."""
    instruction: tuple[str, ...] = ()
    """Language instruction of all episodes, or several wordings of it. Default: the dataset's tasks."""
    control_mode: str | None = None
    """Meaning of an action. `pd_joint_pos`: target positions of the joints in the state, in the same order; they are
    learned relative to the measured joint positions. Another of ManiSkill's controllers, for example
    `pd_ee_delta_pose`, or `unknown`: actions are learned unchanged. Default: derived from the features' names."""
    image_key: tuple[str, ...] = ()
    """Features of the cameras, each as `NAME=FEATURE` or `FEATURE`, for example `wrist=wrist_image`."""
    state_key: tuple[str, ...] = ()
    """Feature of the joint positions, or several to concatenate. Default: `observation.state` or `state`."""
    action_key: tuple[str, ...] = ()
    """Feature of the actions, or several to concatenate. Default: `action` or `actions`. `none`: reads videos without
    actions."""


@dataclass(frozen=True, eq=False)
class Feature:
    """One feature as meta/info.json describes it."""

    name: str
    """Its column, or its folder of videos."""
    dtype: str
    """``image``, ``video`` or the type of its numbers."""
    shape: tuple[int, ...]
    """Sizes of a row's value."""
    names: Any
    """Names of the numbers or of an image's dimensions, in one of several forms; None: there are none."""
    info: dict[str, Any]
    """Description of a video; empty for other features."""

    @classmethod
    def read(cls, name: str, content: dict[str, Any]) -> Feature:
        """Reads a feature's JSON; ``dtype`` and ``shape`` have been checked."""
        info = content.get("info") or content.get("video_info")
        known = info if isinstance(info, dict) else {}
        return cls(name, content["dtype"], tuple(content["shape"]), content.get("names"), known)

    @property
    def is_image(self) -> bool:
        """Whether it is a camera's."""
        return self.dtype in ("image", "video")

    @property
    def is_depth(self) -> bool:
        """Whether it shows distances, not colours."""
        flagged = any(self.info.get(key) is True for key in ("video.is_depth_map", "is_depth_map"))
        return flagged or (re.search(r"(^|[^a-z])depth", self.name.lower()) is not None and 3 not in self.shape)

    @property
    def camera(self) -> str:
        """What the camera is called here."""
        return re.sub(r"[^\w.-]", "_", re.sub(r"^observation[./](images[./])?", "", self.name))

    @property
    def image_size(self) -> tuple[int, int, int]:
        """Height, width and channels of an image; the description may have them in another order."""
        shape = self.shape if len(self.shape) == 3 else (*self.shape, 1)
        first = [str(name)[:1].lower() for name in self.names] if isinstance(self.names, list | tuple) else []
        if sorted(first) == ["c", "h", "w"] and len(shape) == 3:
            height, width, channels = (shape[first.index(letter)] for letter in "hwc")
        elif len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
            channels, height, width = shape
        elif len(shape) == 3:
            height, width, channels = shape
        else:
            height = width = channels = 0
        if min(height, width) < 1 or channels not in (1, 3, 4):
            raise UserError(
                f"the feature {self.name} has the shape {list(self.shape)}; expected height, width and 1, 3 or 4 "
                "channels"
            )
        return height, width, channels

    @property
    def size(self) -> int:
        """Numbers a row; those of several dimensions are refused."""
        sizes = [size for size in self.shape if size != 1]
        if len(sizes) > 1 or 0 in sizes:
            raise UserError(
                f"the feature {self.name} has the shape {list(self.shape)}; expected one dimension, a row's numbers"
            )
        return sizes[0] if sizes else 1

    @property
    def number_names(self) -> list[str]:
        """What its numbers are called, one name each; empty where that is not said."""
        names = self.names
        if isinstance(names, dict) and all(type(value) is int for value in names.values()):
            names = sorted(names, key=lambda name: names[name])  # {"x": 0, "y": 1}
        flat = list(_flat(names))
        return flat if len(flat) == self.size else []


def _flat(names: Any) -> Iterable[str]:
    """Names in lists of lists, or in an object of lists such as ``{"motors": [...]}``."""
    for name in names.values() if isinstance(names, dict) else names if isinstance(names, list | tuple) else ():
        if isinstance(name, str):
            yield name
        else:
            yield from _flat(name)


@dataclass(frozen=True)
class Keys:
    """Which features are what."""

    cameras: dict[str, Feature]
    """By the camera's name here."""
    state: tuple[Feature, ...]
    """The robot's state, one after another."""
    action: tuple[Feature, ...]
    """Its actions; empty for a video."""
    extra: dict[str, Feature]
    """Extra observations by name."""
    success: Feature | None
    """Whether the task is done."""
    unused: tuple[Feature, ...]
    """All others, but for those that every dataset has."""

    @property
    def state_size(self) -> int:
        """Numbers of the state."""
        return sum(feature.size for feature in self.state)

    @property
    def action_size(self) -> int:
        """Numbers of an action."""
        return sum(feature.size for feature in self.action)

    @property
    def called_like_joints(self) -> bool:
        """Whether the numbers of an action are called like the joints whose targets they would be, pose aside."""
        joints, actions = ([n for f in features for n in f.number_names] for features in (self.state, self.action))
        if (len(joints), len(actions)) != (self.state_size, self.action_size) or len(actions) < 2:
            return False
        if {"x", "y", "z"} <= {word for name in actions for word in re.split("[^a-z]+", name.lower())}:
            return False  # the hand's pose, or its change
        targets = joint_targets("pd_joint_pos", len(actions), len(joints))
        return any(targets) and all(joints[n] == actions[n] for n, target in enumerate(targets) if target)


def choose_keys(features: Sequence[Feature], origin: str, request: LeRobotRequest, *, video: bool = False) -> Keys:
    """Finds cameras, state and actions among a dataset's features, first those that the request names.

    ``origin`` names the dataset in messages; a dataset may lack actions if ``video`` is true. What is not found or
    ambiguous, and images that show no colours, are a UserError.
    """
    known = {feature.name: feature for feature in features}
    views = _cameras(known, origin, request.image_key, request.cameras)
    state = _numbers(known, origin, request.state_key, STATES, "--state-key", "the robot's joint positions, or several")
    action: tuple[Feature, ...] = ()
    if request.action_key != (NONE,) and not (video and not set(known) & set(ACTIONS)):
        action = _numbers(
            known, origin, request.action_key, ACTIONS, "--action-key", f"the actions, or {NONE} of videos"
        )
    extra = {name.removeprefix(lerobot.EXTRA): f for name, f in known.items() if name.startswith(lerobot.EXTRA)}
    success = next((known[name] for name in SUCCESSES if name in known), None)
    used = {*views.values(), *state, *action, *extra.values(), success}
    unused = tuple(feature for feature in features if feature not in used and feature.name not in COUNTERS)
    return Keys(views, state, action, extra, success, unused)


def _named(known: dict[str, Feature], origin: str, names: Iterable[str]) -> tuple[Feature, ...]:
    """Features by their names."""
    found = tuple(names)
    if absent := [name for name in found if name not in known]:
        raise UserError(f"{origin} has no feature {absent[0]!r}; it has {', '.join(known)}")
    return tuple(known[name] for name in found)


def _numbers(
    known: dict[str, Feature], origin: str, given: Sequence[str], usual: tuple[str, ...], option: str, what: str
) -> tuple[Feature, ...]:
    """Features of numbers: those given, or the one that is called as usual."""
    found = _named(known, origin, given or [name for name in known if name in usual])
    if not given and len(found) != 1:
        raise UserError(
            f"{origin} has {'several features' if found else 'no feature'} called {' or '.join(usual)}; it has "
            f"{', '.join(known)}: give {option} with the one that is {what}"
        )
    for feature in found:
        if feature.is_image or feature.dtype in ("bool", "string"):
            raise UserError(f"{origin}: the feature {feature.name} is of type {feature.dtype}; {option} needs numbers")
        _ = feature.size
    return found


def _cameras(
    known: dict[str, Feature], origin: str, image_key: Sequence[str], cameras: Sequence[str]
) -> dict[str, Feature]:
    """Features of images by the camera's name."""
    images = [feature for feature in known.values() if feature.is_image]
    pairs = [(feature.camera, feature) for feature in images if not feature.is_depth]
    if image_key:
        given = [key.rpartition("=") for key in image_key]
        features = _named(known, origin, (feature for *_, feature in given))
        pairs = [(name or feature.camera, feature) for (name, *_), feature in zip(given, features, strict=True)]
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UserError(
            f"{origin} has two cameras of one name ({', '.join(name for name, _ in pairs)}): give --image-key "
            "CAMERA=FEATURE"
        )
    if not found:
        raise UserError(f"{origin} has no images with colours; it has {', '.join(known)}: give --image-key FEATURE")
    depth = {feature.camera: feature for feature in images if feature.is_depth}
    for name in cameras or found:
        feature = found.get(name) or depth.get(name)
        if feature is None:
            raise UserError(f"{origin} has no camera {name!r}; it has {', '.join(found)}")
        if not feature.is_image or feature.is_depth:
            what = "depth" if feature.is_image else f"of type {feature.dtype}"
            raise UserError(f"{origin}: the feature {feature.name} is {what}; cameras have to show colours")
        _ = feature.image_size
    return {name: found[name] for name in cameras or found}
