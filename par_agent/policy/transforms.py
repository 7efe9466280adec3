"""Transforms pixels, joint positions and actions on their way into and out of the model.

One :class:`Transforms` object serves training and the policy, and is saved in the checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from par_agent.errors import UserError

Crop = tuple[int, int, int, int]
Cameras = str | tuple[str, ...]
"""Name of one camera, or of several, whose frames stand side by side in this order."""
Extra = tuple[tuple[str, int], ...]
"""Names of entries of ManiSkill's ``obs["extra"]``, and how many numbers each has."""


def camera_names(cameras: Cameras) -> tuple[str, ...]:
    """The names, also of one."""
    return (cameras,) if isinstance(cameras, str) else cameras


def extra_size(extra: Extra) -> int:
    """How many numbers all extra observations have together."""
    return sum(size for _, size in extra)


def pixels(size: tuple[int, ...] | None) -> str:
    """A size in messages, for example 512x512."""
    return "x".join(map(str, size or ()))


def check_crop(crop: Crop, size: tuple[int, int]) -> None:
    """Checks that a crop (top, left, height, width) lies inside an image of a size (height, width)."""
    top, left, height, width = crop
    inside = top + height <= size[0] and left + width <= size[1]
    if min(top, left) < 0 or min(height, width) < 1 or not inside:
        raise UserError(f"crop (top, left, height, width) = {crop} does not lie inside the {pixels(size)} image")


def crop_and_resize(image: np.ndarray, crop: Crop | None, size: tuple[int, int] | None) -> np.ndarray:
    """Crops (top, left, height, width) and resizes (height, width) an image (H, W, 3) uint8.

    Shrinking averages areas, enlarging interpolates linearly.
    """
    if crop is not None:
        top, left, height, width = crop
        check_crop(crop, (image.shape[0], image.shape[1]))
        image = image[top : top + height, left : left + width]
    if size is not None and image.shape[:2] != tuple(size):
        import cv2

        shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
        image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.ascontiguousarray(image)


def beside(frames: Sequence[np.ndarray], cameras: Sequence[str]) -> np.ndarray:
    """Puts the frames (B, H, W, 3) of several cameras, named for the message, side by side: (B, H, K W, 3)."""
    if len({one.shape[1:3] for one in frames}) > 1:
        found = ", ".join(f"{name}: {pixels(one.shape[1:3])}" for name, one in zip(cameras, frames, strict=True))
        raise UserError(f"frames of cameras that are read together need one size ({found}): crop or resize them alike")
    return frames[0] if len(frames) == 1 else np.concatenate(frames, 2)


@dataclass(frozen=True)
class Transforms:
    """Conventions that a checkpoint was trained with.

    Where the controller takes target positions of joints, these are predicted relative to the positions measured at the
    chunk's start; all other commands, a gripper's among them, are predicted as they are.
    Letters of shapes: see :mod:`par_agent.modeling`.
    """

    camera: Cameras
    """Camera of the frames, ``render_camera`` or a sensor camera, or several sensor cameras."""
    image_size: tuple[int, int] | None
    """Height and width of each camera's full image, where known; checked at inference."""
    crop: Crop | None
    """Top, left, height and width cut out of each camera's image; None keeps all of it."""
    size: tuple[int, int] | None
    """Height and width that the crop is resized to; None keeps it."""
    relative: tuple[bool, ...]
    """(A,) which numbers of an action are relative to the joint position of the same index."""
    proprioception_mean: tuple[float, ...]
    """(P,) radians for joints."""
    proprioception_std: tuple[float, ...]
    """(P,) radians for joints."""
    action_mean: tuple[tuple[float, ...], ...]
    """(L + K, A) mean of the (relative) actions, per position: the chunk's, then those of the foresight."""
    action_std: tuple[tuple[float, ...], ...]
    """(L + K, A) their standard deviation."""
    extra: Extra = ()
    """Extra observations that are read with the joint positions; zeros in tasks that do not have them."""
    control_mode: str = "pd_joint_pos"
    """ManiSkill's name of the controller that takes the actions, or ``unknown``."""

    def __post_init__(self) -> None:
        rows = {len(row) for row in (*self.action_mean, *self.action_std)}
        if rows != {self.action_size} or len(self.action_mean) != len(self.action_std):
            raise UserError(
                f"action_mean and action_std need rows of {self.action_size} numbers, as many as relative has, and "
                "the same number of rows"
            )
        if len(self.proprioception_mean) != len(self.proprioception_std):
            raise UserError("proprioception_mean and proprioception_std differ in length")
        if any(value <= 0 for row in (self.proprioception_std, *self.action_std) for value in row):
            raise UserError("proprioception_std and action_std must be above 0 everywhere")
        if any(self.relative[max(self.joint_count, 0) :]):
            raise UserError(
                f"relative marks numbers past the {self.joint_count} joint positions that they would be relative to"
            )

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras that are read."""
        return camera_names(self.camera)

    @property
    def targets(self) -> int:
        """Actions that are predicted together, ``L + K``."""
        return len(self.action_mean)

    @property
    def action_size(self) -> int:
        """Numbers per action, ``A``."""
        return len(self.relative)

    @property
    def proprioception_size(self) -> int:
        """Numbers of proprioception, ``P``."""
        return len(self.proprioception_mean)

    @property
    def joint_count(self) -> int:
        """Joint positions among the numbers of proprioception."""
        return self.proprioception_size - extra_size(self.extra)

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """Height and width of one camera's frames; None where the camera decides them and is not known."""
        if self.size is None and self.crop is not None:
            return self.crop[2], self.crop[3]
        return self.size or self.image_size

    def frames(self, *images: Tensor) -> Tensor:
        """Crops and resizes the images (B, H, W, 3) uint8 of each camera to the frames (B, H', K W', 3) uint8 that the
        VAE reads, those of ``K`` cameras side by side."""
        frames = []
        for camera, shown in zip(self.cameras, images, strict=True):
            if self.image_size is not None and tuple(shown.shape[1:3]) != tuple(self.image_size):
                raise UserError(
                    f"{camera} gives images of {pixels(shown.shape[1:3])} pixels; this checkpoint was trained with "
                    f"{pixels(self.image_size)}: give the environment's camera that resolution"
                )
            frames.append(np.stack([crop_and_resize(image, self.crop, self.size) for image in shown.cpu().numpy()]))
        return torch.from_numpy(beside(frames, self.cameras)).to(images[0].device)

    def normalise_proprioception(self, positions: Tensor) -> Tensor:
        """Normalises joint positions in radians and extra observations (..., P) to zero mean and unit variance."""
        mean, std = self._statistics("proprioception", positions)
        return (positions - mean) / std

    def normalise_actions(self, actions: Tensor, positions: Tensor) -> Tensor:
        """Chunks (..., L, A), or all targets (..., L + K, A), in the controller's units to the model's, given the joint
        positions (..., P) at their start."""
        mean, std = (values[: actions.shape[-2]] for values in self._statistics("action", actions))
        return (actions - self._base(positions) - mean) / std

    def denormalise_actions(self, chunks: Tensor, positions: Tensor) -> Tensor:
        """Inverse of :meth:`normalise_actions`."""
        mean, std = (values[: chunks.shape[-2]] for values in self._statistics("action", chunks))
        return chunks * std + mean + self._base(positions)

    def commanded_positions(self, actions: Tensor, positions: Tensor) -> Tensor:
        """Joint positions (..., P) after chunks (..., L, A) in the controller's units, as far as they command them.

        Joints that an action moves relative to their position end at its last target; others stay at ``positions``.
        """
        shared = min(self.action_size, self.joint_count)
        joints = self._tensors["relative"][:shared].to(positions.device).bool()
        moved = torch.where(joints, actions[..., -1, :shared], positions[..., :shared])
        return torch.cat([moved, positions[..., shared:]], -1)

    def with_camera_of(self, other: Transforms) -> Transforms:
        """These transforms of joints and actions, with ``other``'s cameras and extra observations."""
        joints = self.joint_count
        return dataclasses.replace(
            other,
            control_mode=self.control_mode,
            relative=self.relative,
            proprioception_mean=self.proprioception_mean[:joints] + other.proprioception_mean[joints:],
            proprioception_std=self.proprioception_std[:joints] + other.proprioception_std[joints:],
            action_mean=self.action_mean,
            action_std=self.action_std,
        )

    def with_foresight_of(self, other: Transforms, chunk_length: int) -> Transforms:
        """These transforms, with ``other``'s statistics of the actions past the chunk."""
        return dataclasses.replace(
            self,
            action_mean=self.action_mean[:chunk_length] + other.action_mean[chunk_length:],
            action_std=self.action_std[:chunk_length] + other.action_std[chunk_length:],
        )

    def _base(self, positions: Tensor) -> Tensor:
        """What relative numbers are relative to: (..., 1, A)."""
        shared = positions[..., : self.action_size]
        base = shared * self._tensors["relative"][: shared.shape[-1]].to(positions)
        return F.pad(base, (0, self.action_size - shared.shape[-1]))[..., None, :]

    def _statistics(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, with the device and dtype of ``like``."""
        return self._tensors[f"{name}_mean"].to(like), self._tensors[f"{name}_std"].to(like)

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """The statistics, and which numbers are relative, as float32."""
        names = ("relative", "proprioception_mean", "proprioception_std", "action_mean", "action_std")
        return {name: torch.tensor(getattr(self, name), dtype=torch.float32) for name in names}
