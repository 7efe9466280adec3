"""Reads ManiSkill's observations for a policy, and checks that a policy fits a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from par_agent.errors import UserError
from par_agent.policy.transforms import Transforms, pixels
from par_agent.tasks import UNKNOWN_CONTROLLER, TaskSpec, check_cameras, find_task
from par_agent.utils.json_fields import short

MAX_OBSERVATION = 1e6
"""Larger joint positions and extra observations are refused."""

AGE = "age"
"""Key beside a camera's ``rgb``: (B,) int32, how many control steps old the image is; optional."""


def as_tensor(value: Any, name: str) -> Tensor:
    """Converts a tensor, array (in any memory layout) or list of numbers to a tensor; ``name`` is for errors."""
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        given = f"{short(value)} ({type(value).__name__})"
        raise UserError(f"{name} is {given}; expected a tensor, an array or a list of numbers") from None


def check_task(transforms: Transforms, spec: TaskSpec, track: str = "paper") -> None:
    """Compares a checkpoint's conventions with a task's, as a track shows it."""
    check_cameras("this checkpoint", transforms.cameras, spec, track)
    size = tuple(spec.image_size) if transforms.cameras == (spec.camera,) else None
    _check(transforms, f"task {spec.name}", size, spec.joint_count, spec.action_size, spec.control_mode)


def simulations_of(env: Any) -> list[Any]:
    """ManiSkill's own environment inside of wrappers; of Gymnasium's vector environments, those of all rows."""
    base = getattr(env, "base_env", env.unwrapped)
    if inner := getattr(base, "envs", None):
        return [simulation for one in inner for simulation in simulations_of(one)]
    return [base]


def check_environment(transforms: Transforms, env: Any) -> list[TaskSpec | None]:
    """Compares a checkpoint's conventions with ManiSkill environments, wrapped or not.

    Returns:
        The tasks of those that :func:`simulations_of` finds; None for one that is not known.
    """
    return [_check_simulation(transforms, base) for base in simulations_of(env)]


def _check_simulation(transforms: Transforms, base: Any) -> TaskSpec | None:
    robot = getattr(getattr(base, "agent", None), "robot", None)
    if robot is None:
        raise UserError(
            f"expected a ManiSkill environment of one robot, got {type(base).__name__} (those in other "
            "processes cannot be looked into: check one like them here)"
        )
    name = type(base).__name__ if base.spec is None else base.spec.id
    sensors, render_cameras = base.scene.sensors, base.scene.human_render_cameras
    shown, seen = {**sensors, **render_cameras}, quoted(transforms.cameras)
    if len(transforms.cameras) > 1:
        shown = sensors  # the render camera stands alone
    if not set(transforms.cameras) <= set(shown):
        known = ", ".join([*render_cameras, *sensors]) or "none"
        together = f", and shows {', '.join(sensors) or 'none'} together" if shown is sensors else ""
        raise UserError(f"this checkpoint sees through {seen}; {name} has the cameras {known}{together}")
    if transforms.cameras[0] in sensors and not base.obs_mode_struct.visual.rgb:
        raise UserError(
            f"this checkpoint sees through {seen}; {name} observes no images (obs_mode {base.obs_mode!r}): make it "
            'with obs_mode="rgb"'
        )
    actions = base.single_action_space.shape
    for size in {(shown[camera].config.height, shown[camera].config.width) for camera in transforms.cameras}:
        _check(transforms, name, size, robot.max_dof, actions[0], base.control_mode)
    return find_task(name.rpartition("/")[2])


def _check(
    transforms: Transforms, name: str, size: tuple[int, ...] | None, joints: int, action_size: int, control_mode: str
) -> None:
    """Compares a checkpoint's conventions with those of ``name``; ``size``: height and width of its camera's images."""
    wanted = transforms.image_size
    if None not in (size, wanted) and size != wanted:
        raise UserError(
            f"this checkpoint was trained on {pixels(wanted)} images of {', '.join(transforms.cameras)}; {name} has "
            f"{pixels(size)}: give that camera the checkpoint's resolution"
        )
    if transforms.joint_count != joints:
        raise UserError(
            f"this checkpoint reads {transforms.joint_count} joint positions; the robot of {name} has {joints}"
        )
    if transforms.control_mode not in (UNKNOWN_CONTROLLER, control_mode):
        raise UserError(
            f"this checkpoint commands {transforms.control_mode}; {name} takes {control_mode}: give its environment "
            f"the checkpoint's control mode (control_mode={transforms.control_mode!r})"
        )
    if transforms.action_size != action_size:
        raise UserError(
            f"this checkpoint gives {transforms.action_size} numbers per action; {name} takes {action_size}"
        )


def proprioception(obs: dict[str, Any], transforms: Transforms) -> Tensor:
    """Joint positions and the checkpoint's extra observations (B, P) float32, on the observation's device.

    An extra observation that the task does not have is zero.
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
    """Joint positions (B, size) float32, radians, on the observation's device."""
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
    """The same values (B, n), none of which is NaN, infinite, or :data:`MAX_OBSERVATION` and more."""
    wrong = ~(values.abs() < MAX_OBSERVATION).all(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise UserError(
            f"{where} of environments {wrong.nonzero()[:, 0].tolist()} holds NaN, infinity or numbers beyond "
            f"{MAX_OBSERVATION:.0e} (environment {row}: {values[row].tolist()}): the simulation has diverged, or "
            "another value was put there; reset these environments"
        )
    return values


def read_frames(obs: dict[str, Any], transforms: Transforms, batch: int, rows: Tensor | None = None) -> Tensor:
    """The frames (B, H, W, 3) uint8 of an observation of ``batch`` environments, or of its ``rows`` (B,): cropped and
    resized as the model sees them, several cameras side by side."""
    images = [_camera_images(obs, camera, batch, transforms.cameras) for camera in transforms.cameras]
    return transforms.frames(*(images if rows is None else (shown[rows.to("cpu")] for shown in images)))


def _camera_images(obs: dict[str, Any], camera: str, batch: int, needed: Sequence[str]) -> Tensor:
    """A camera's images (batch, H, W, 3) uint8, one of those ``needed``; those that are older than the joint positions
    are refused."""
    cameras = f"a sensor camera {camera!r}" if len(needed) == 1 else f"the sensor cameras {quoted(needed)}"
    fix = f'make the environment with obs_mode="rgb" and {cameras}'
    if camera == "render_camera":
        fix = "make the environment with par_agent.make_env"
    value = as_tensor(_lookup(obs, ("sensor_data", camera, "rgb"), fix), f'obs["sensor_data"][{camera!r}]["rgb"]')
    age = as_tensor(obs["sensor_data"][camera].get(AGE, 0), AGE)
    if bool((age > 0).any()):
        raise UserError(
            f"the image of {camera} is {int(age.max())} control steps old: the environment rendered none, because the "
            "policy that it was wrapped with was not about to look; act with that policy, and reset both together"
        )
    batched = value[None] if value.ndim == 3 else value
    if batched.ndim != 4 or batched.shape[3] != 3 or len(batched) != batch or batched.dtype != torch.uint8:
        raise UserError(
            f'obs["sensor_data"][{camera!r}]["rgb"] is {value.dtype} of shape {tuple(value.shape)}; expected '
            f"torch.uint8 of shape ({batch}, height, width, 3): {fix}"
        )
    return batched


def quoted(names: Sequence[str]) -> str:
    """Names in messages."""
    return ", ".join(map(repr, names))


def _lookup(obs: Any, keys: tuple[str, ...], fix: str) -> Any:
    value, path = obs, "obs"
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise UserError(f'{path} has no "{key}" (it holds: {found}); {fix}')
        value, path = value[key], f'{path}["{key}"]'
    return value
