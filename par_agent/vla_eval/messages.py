"""What a benchmark and a model server tell each other: vla-eval's own conventions for observations and actions.

An observation is ``{"images": {camera: (H, W, 3) uint8}, "state": (joints,) float32 radians, "task_description":
text}`` and, on the ``native`` track, ``"extra": {name: float32}``. The answer is ``{"actions": (A,) or (n, A)}``, one
action or a chunk of n. This package adds three things. An episode starts with ``{"task": {"seeds": [...],
"episode_idx": i}}``, the i-th seed being the policy's. A server whose observation parameters hold ``frame_every: n``
reads images in every n-th observation of an episode only, and ``images`` is empty in the others: a rendered image costs
as much as some fifty control steps. There, too, ``camera`` names the camera that has to be among the images, or lists
several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from par_agent.errors import UserError
from par_agent.utils.json_fields import check

if TYPE_CHECKING:
    from vla_eval.specs import DimSpec

    from par_agent.tasks import TaskSpec


class _Episode(TypedDict, total=False):
    """Which episode a benchmark begins."""

    seeds: tuple[int, ...] | None
    episode_idx: int


def to_message(observation: dict[str, Any], instruction: str) -> dict[str, Any]:
    """The message of a ManiSkill observation of one environment: tensors or arrays with a leading 1."""
    message: dict[str, Any] = {
        "images": {name: _array(camera["rgb"]) for name, camera in observation.get("sensor_data", {}).items()},
        "state": _array(observation["agent"]["qpos"]).astype(np.float32),
        "task_description": instruction,
    }
    if "extra" in observation:
        message["extra"] = {name: _array(value).astype(np.float32) for name, value in observation["extra"].items()}
    return message


def from_message(message: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`to_message`, in arrays; raises UserError where the state is missing or no numbers."""
    check("the observation", message, dict)
    state = message.get("state", message.get("states"))
    if state is None:
        raise UserError("the observation has no state; the benchmark has to send joint positions (send_state: true)")
    with np.errstate(over="ignore"):  # the policy refuses what is not finite
        observation: dict[str, Any] = {"agent": {"qpos": _sent("state", state).astype(np.float32)}}
    if images := _named_arrays(message, "images"):
        observation["sensor_data"] = {name: {"rgb": image} for name, image in images.items()}
    if "extra" in message:
        observation["extra"] = _named_arrays(message, "extra")
    return observation


def read_actions(answer: dict[str, Any], spec: TaskSpec) -> np.ndarray:
    """The actions (n, action_size) float32 of a model server's answer."""
    if not isinstance(answer, dict) or answer.get("actions") is None:
        found = ", ".join(map(str, answer)) if isinstance(answer, dict) else type(answer).__name__
        raise UserError(f'the model server\'s answer has no "actions" (it holds: {found or "nothing"})')
    actions = _numbers("the model server's answer holds actions that are not", answer["actions"], "fiu")
    with np.errstate(over="ignore"):  # it is found below
        actions = actions.astype(np.float32)
    chunk = actions[None] if actions.ndim == 1 else actions
    if chunk.ndim != 2 or not len(chunk) or chunk.shape[1] != spec.action_size:
        raise UserError(
            f"the model server answered with actions of shape {actions.shape}; task {spec.name} takes actions of "
            f"{spec.action_size} numbers ({spec.control_mode}), one or a chunk of them: serve a policy that was "
            "trained for this robot and controller"
        )
    if not np.isfinite(chunk).all():
        raise UserError(f"the model server answered with an action that is not finite: {actions.tolist()}")
    return chunk


def episode_seed(start: dict[str, Any]) -> int | None:
    """The policy's seed in the message that starts an episode; None where the benchmark gave none."""
    check("the message", start, dict)
    task = start.get("task") or {}
    check("the message's task", task, _Episode)
    seeds, index = task.get("seeds"), task.get("episode_idx", 0)
    return seeds[index] if seeds and 0 <= index < len(seeds) else None


def action_interface(size: int, control_mode: str, description: str = "") -> dict[str, DimSpec]:
    """Actions of `size` numbers for a ManiSkill controller; a server that declares none of its own is accepted."""
    from vla_eval.specs import DimSpec

    accepted = frozenset({control_mode, "raw"})
    return {"actions": DimSpec("actions", size, control_mode, accepts=accepted, description=description)}


def observation_interface(joints: int) -> dict[str, DimSpec]:
    """Images, joint positions and the instruction."""
    from vla_eval.specs import IMAGE_RGB, LANGUAGE, DimSpec

    return {"image": IMAGE_RGB, "state": DimSpec("state", joints, "joint_positions"), "language": LANGUAGE}


def _named_arrays(message: dict[str, Any], name: str) -> dict[str, np.ndarray]:
    found = message.get(name) or {}
    check(f"the observation's {name}", found, dict)
    return {entry: _sent(f"{name}/{entry}", value) for entry, value in found.items()}


def _sent(name: str, value: Any) -> np.ndarray:
    """An array of numbers of a message, with a leading 1."""
    return _numbers(f"the observation's {name} is not", value, "fiub")[None]


def _numbers(refusal: str, value: Any, kinds: str) -> np.ndarray:
    """A message's value as an array, of one of numpy's kinds of numbers."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{refusal} an array of numbers: {error}") from None
    if array.dtype.kind not in kinds:
        raise UserError(f"{refusal} an array of numbers: it is of type {array.dtype}")
    return array


def _array(value: Any) -> np.ndarray:
    """A tensor or array with a leading 1, without it."""
    return np.asarray(value.cpu() if hasattr(value, "cpu") else value)[0]
