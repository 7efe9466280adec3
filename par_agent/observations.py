"""What a policy reads out of ManiSkill's observations, and whether it fits a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from par_agent.errors import UserError
from par_agent.tasks import UNKNOWN_CONTROLLER, check_camera
from par_agent.transforms import Transforms

if TYPE_CHECKING:
    from par_agent.tasks import TaskSpec

LARGEST = 1e6
"""Joint positions and extra observations are smaller than this; what is not was not measured."""


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor, array or list of numbers as a tensor, also an array that torch does not take as it lies in memory.

    Raises:
        UserError: it holds no numbers; ``name`` says whose value it is.
    """
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        given = repr(value)
        raise UserError(
            f"{name} is {given[:60]}{'...' * (len(given) > 60)} ({type(value).__name__}); expected a tensor, an array "
            "or a list of numbers"
        ) from None


def check_task(transforms: Transforms, spec: TaskSpec, track: str = "paper") -> None:
    """Compares a checkpoint's conventions with a task's, as a track shows it.

    Raises:
        UserError: another camera, image size, number of joints or controller.
    """
    check_camera("this checkpoint", transforms.camera, spec, track)
    size = transforms.image_size
    if transforms.camera == spec.camera and size is not None and size != tuple(spec.image_size):
        raise UserError(
            f"this checkpoint was trained on {size[0]}x{size[1]} images of {spec.camera}; task {spec.name} has "
            f"{spec.image_size[0]}x{spec.image_size[1]}"
        )
    if transforms.joint_count != spec.joint_count:
        raise UserError(
            f"this checkpoint reads {transforms.joint_count} joint positions; the robot of {spec.name} has "
            f"{spec.joint_count}"
        )
    if transforms.control_mode not in (UNKNOWN_CONTROLLER, spec.control_mode):
        raise UserError(
            f"this checkpoint commands {transforms.control_mode}; task {spec.name} takes {spec.control_mode}: give its "
            "environment the checkpoint's control mode"
        )


def proprioception(obs: dict[str, Any], transforms: Transforms) -> Tensor:
    """Joint positions and the checkpoint's extra observations (B, P) float32, on the observation's device.

    An extra observation that the task does not have is zero.

    Raises:
        UserError: there are no joint positions, or none of ``obs["extra"]`` at all, or other sizes or types; or no
            environment, or numbers that nothing can measure, with the environments named.
    """
    joints = joint_positions(obs, transforms.joint_count)
    if not transforms.extra:
        return joints
    found = _lookup(obs, ("extra",), 'make the environment with obs_mode="rgb" (extra observations are in it)')
    parts = [joints]
    for name, size in transforms.extra:
        where = f'obs["extra"][{name!r}]'
        value = as_tensor(found[name], where) if name in found else joints.new_zeros(len(joints), size)
        if value.numel() != len(joints) * size or value.is_complex():
            raise UserError(
                f"{where} is {value.dtype} of shape {tuple(value.shape)}; expected real numbers of shape "
                f"({len(joints)}, {size}), as the checkpoint was trained with"
            )
        parts.append(_measured(value.reshape(len(joints), size).to(joints), where))
    return torch.cat(parts, 1)


def joint_positions(obs: dict[str, Any], size: int) -> Tensor:
    """Joint positions (B, size) float32, radians, on the observation's device.

    Raises:
        UserError: there are none, another number of them, or other than finite floating point numbers.
    """
    value = _lookup(obs, ("agent", "qpos"), 'make the environment with obs_mode="rgb" (joint positions are in it)')
    where = 'obs["agent"]["qpos"]'
    value = as_tensor(value, where)
    batched = value[None] if value.ndim == 1 else value
    if batched.ndim != 2 or batched.shape[1] != size or not len(batched):
        raise UserError(
            f"{where} has shape {tuple(value.shape)}; expected (num_envs, {size}), at least one environment: this "
            f"checkpoint is for a robot with {size} joints"
        )
    if not batched.is_floating_point():
        raise UserError(f"{where} is {value.dtype}; expected floating point numbers: radians, and metres for fingers")
    return _measured(batched.detach().to(torch.float32), where)


def _measured(values: Tensor, where: str) -> Tensor:
    """The same values (B, n).

    Raises:
        UserError: NaN, infinity or numbers of :data:`LARGEST` and more.
    """
    wrong = ~(values.abs() < LARGEST).all(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise UserError(
            f"{where} of environments {wrong.nonzero()[:, 0].tolist()} holds NaN, infinity or numbers beyond "
            f"{LARGEST:.0e} (environment {row}: {values[row].tolist()}): the simulation has come apart, or another "
            "value was put there; reset these environments"
        )
    return values


def camera_images(obs: dict[str, Any], camera: str, batch: int) -> Tensor:
    """A camera's images (batch, H, W, 3) uint8.

    Raises:
        UserError: there are none, or of another shape or type.
    """
    fix = f'make the environment with obs_mode="rgb" and a sensor camera {camera!r}'
    if camera == "render_camera":
        fix = "wrap the environment in par_agent.evaluation.RenderCameraObservation"
    value = as_tensor(_lookup(obs, ("sensor_data", camera, "rgb"), fix), f'obs["sensor_data"][{camera!r}]["rgb"]')
    batched = value[None] if value.ndim == 3 else value
    if batched.ndim != 4 or batched.shape[3] != 3 or len(batched) != batch or batched.dtype != torch.uint8:
        raise UserError(
            f'obs["sensor_data"][{camera!r}]["rgb"] is {value.dtype} of shape {tuple(value.shape)}; expected '
            f"torch.uint8 of shape ({batch}, height, width, 3): {fix}"
        )
    return batched


def _lookup(obs: Any, keys: tuple[str, ...], fix: str) -> Any:
    value, path = obs, "obs"
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise UserError(f'{path} has no "{key}" (it holds: {found}); {fix}')
        value, path = value[key], f'{path}["{key}"]'
    return value
