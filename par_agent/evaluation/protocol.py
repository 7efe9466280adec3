"""The frozen initial states of the evaluation protocol: 25 full simulator states per task, stored in the package.

Rollouts start from the stored state, not from a seed, so that every backend and every later version of the simulator
starts in the same place. A test checks that ``env.reset(seed=20241201 + i)`` still gives state ``i``.

A file holds one tensor per actor and articulation, named ``actors/cube``: (states, 13) float32 of position in metres,
quaternion (w, x, y, z), linear and angular velocity; articulations have (states, 13 + 2 * joints), joint positions and
velocities last. A tensor that is equal in all states is stored once, with a leading dimension of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from par_agent.errors import UserError
from par_agent.files import atomic_path
from par_agent.tasks import PROTOCOL_SEED, PROTOCOL_STATES, TaskSpec

if TYPE_CHECKING:
    import torch

STATES_FOLDER = Path(__file__).with_name("states")
"""Where the protocol's states are stored, one file per task."""


@dataclass(frozen=True)
class InitialState:
    """Where a rollout starts."""

    index: int
    """Position in its file: 0..24 for the protocol."""
    env_seed: int
    """Environment seed that made the state."""
    env_state: dict[str, dict[str, torch.Tensor]] = field(repr=False)
    """ManiSkill's own state dictionary: ``{"actors": {name: (1, 13)}, "articulations": {name: (1, n)}}``."""


def protocol_file(spec: TaskSpec) -> Path:
    """File of a task's protocol states; it exists for every task of :data:`par_agent.tasks.TASKS`."""
    return STATES_FOLDER / f"{spec.name}.safetensors"


def check_seeds(first_seed: int, count: int) -> None:
    """Checks that initial states other than the protocol's stay clear of the protocol's seeds.

    Raises:
        UserError: a negative or reserved seed, or no states.
    """
    if count < 1:
        raise UserError(f"number of initial states is {count}; it must be at least 1")
    if first_seed < 0 or first_seed + count > PROTOCOL_SEED:
        raise UserError(
            f"seeds {first_seed} to {first_seed + count - 1} are not allowed: those from {PROTOCOL_SEED} on are "
            "reserved for the protocol (its states are used when no state seed is given); choose others below"
        )


def save_states(path: Path, spec: TaskSpec, states: Sequence[InitialState]) -> None:
    """Writes initial states of consecutive seeds to one file, atomically."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for kind, group in states[0].env_state.items():
        for name in group:
            stacked = torch.cat([state.env_state[kind][name] for state in states])
            same = bool((stacked == stacked[:1]).all())
            tensors[f"{kind}/{name}"] = stacked[:1].clone() if same else stacked
    metadata = {"env_id": spec.env_id, "first_seed": str(states[0].env_seed), "count": str(len(states))}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_states(path: Path, spec: TaskSpec) -> list[InitialState]:
    """Reads the initial states of one file.

    Raises:
        UserError: the file is missing, damaged or of another task.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise UserError(f"no initial states for {spec.name}: {path} does not exist")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): delete it, or restore it from the repository") from None
    if metadata.get("env_id") != spec.env_id:
        raise UserError(f"{path} holds states of {metadata.get('env_id')!r}, not of {spec.env_id!r}")
    first_seed = int(metadata["first_seed"])
    return [InitialState(i, first_seed + i, _state_at(tensors, i)) for i in range(int(metadata["count"]))]


def _state_at(tensors: dict[str, Any], index: int) -> dict[str, dict[str, torch.Tensor]]:
    """State ``index`` of a file's tensors, as the dictionary that ManiSkill takes."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        row = 0 if len(tensor) == 1 else index
        state.setdefault(kind, {})[name] = tensor[row : row + 1].clone()
    return state


def protocol_seeds() -> range:
    """Environment seeds of the protocol."""
    return range(PROTOCOL_SEED, PROTOCOL_SEED + PROTOCOL_STATES)
