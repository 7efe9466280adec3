"""The frozen initial states of the evaluation protocol: 25 full simulator states per task, stored in the package.

Beside them is a second file per task, of 125 states: the same 25 and 100 further ones, for ``--states 125``. Their
seeds follow the protocol's, in the range that training and development never use.

Rollouts start from the stored state, not from a seed, so that every backend and every later version of the simulator
starts in the same place. A test checks that ``env.reset(seed=20241201 + i)`` still gives state ``i``.

A file holds one tensor per actor and articulation, named ``actors/cube``: (states, 13) float32 of position in metres,
quaternion (w, x, y, z), linear and angular velocity; articulations have (states, 13 + 2 * joints), joint positions and
velocities last. A tensor that is equal in all states is stored once, with a leading dimension of 1. The file
``checksums.json`` beside them holds the SHA-256 of each; a file that is not in it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from par_agent.errors import UserError
from par_agent.simulation.environment import InitialState
from par_agent.tasks import ALL_STATES, PROTOCOL_SEED, PROTOCOL_STATES, TaskSpec
from par_agent.utils.files import read_object, write_json
from par_agent.utils.hashes import hash_bytes, hash_file

if TYPE_CHECKING:
    import numpy as np
    import torch

STATES_FOLDER = Path(__file__).with_name("states")
"""Where the protocol's states are stored, two files per task."""
CHECKSUMS = "checksums.json"
"""Name of the file with the SHA-256 of each file of states beside it, by name."""
SHA256_DIGITS = 64
POSE = 13
"""Numbers of a position, a quaternion and two velocities."""


def protocol_file(spec: TaskSpec, states: int = PROTOCOL_STATES) -> Path:
    """File of a task's protocol states; of these and the further ones where more are asked for.

    Both exist for every task of :data:`par_agent.tasks.TASKS`.
    """
    further = f"-{ALL_STATES}" if states > PROTOCOL_STATES else ""
    return STATES_FOLDER / f"{spec.name}{further}.safetensors"


def check_seeds(first_seed: int, count: int) -> None:
    """Raises UserError for initial states of negative seeds or the protocol's, or for none at all."""
    if count < 1:
        raise UserError(f"number of initial states is {count}; it must be at least 1")
    if first_seed < 0 or first_seed + count > PROTOCOL_SEED:
        raise UserError(
            f"seeds {first_seed} to {first_seed + count - 1} are not allowed: those from {PROTOCOL_SEED} on are "
            "reserved for the protocol (its states are used when no state seed is given); choose others below"
        )


def save_states(path: Path, spec: TaskSpec, states: Sequence[InitialState]) -> None:
    """Writes initial states of consecutive seeds to one file, and its checksum beside it, each atomically."""
    import torch

    from par_agent.modeling.weights import write_tensors

    tensors = {}
    for kind, group in states[0].env_state.items():
        for name in group:
            stacked = torch.cat([state.env_state[kind][name] for state in states])
            same = bool((stacked == stacked[:1]).all())
            tensors[f"{kind}/{name}"] = stacked[:1].clone() if same else stacked
    _check_tensors(path, {name: tensor.numpy() for name, tensor in tensors.items()}, len(states))
    metadata = {"env_id": spec.env_id, "first_seed": str(states[0].env_seed), "count": str(len(states))}
    write_tensors(path, tensors, metadata)
    checksums = path.with_name(CHECKSUMS)
    known = read_object(checksums) if checksums.exists() else {}
    write_json(checksums, dict(sorted({**known, path.name: hash_file(path, SHA256_DIGITS)}.items())))


def is_complete(path: Path) -> bool:
    """Whether a file of initial states was written to its end: it has a checksum, right or wrong."""
    checksums = path.with_name(CHECKSUMS)
    return path.exists() and checksums.exists() and path.name in read_object(checksums)


def states_checksum(path: Path) -> str:
    """SHA-256 of a file of initial states, from the checksums beside it; raises UserError where it is missing."""
    checksums = path.with_name(CHECKSUMS)
    found = read_object(checksums).get(path.name)
    if not (isinstance(found, str) and len(found) == SHA256_DIGITS):
        raise UserError(
            f"{checksums} has no SHA-256 of {path.name}: restore both, or delete {path} to have it made anew"
        )
    return found


def check_states(path: Path, spec: TaskSpec, seeds: range) -> str:
    """The SHA-256 of a file; raises UserError where it does not hold the states of these seeds, unchanged."""
    checksum = states_checksum(path)
    found, _ = _read(path, spec, checksum)
    if found != seeds:
        raise UserError(
            f"{path} holds states of the seeds {found[0]} to {found[-1]}; expected {seeds[0]} to {seeds[-1]}"
        )
    return checksum


def load_states(
    path: Path, spec: TaskSpec, checksum: str | None = None, content: bytes | None = None
) -> list[InitialState]:
    """Reads the initial states of one file.

    Args:
        path: the file.
        spec: its task.
        checksum: its SHA-256; None: that in the checksums beside it.
        content: its bytes, on a machine that may not have it; None: it is read.
    """
    import torch

    if content is None and not path.exists():
        raise UserError(f"no initial states for {spec.name}: {path} does not exist")
    seeds, arrays = _read(path, spec, checksum or states_checksum(path), content)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return [InitialState(i, seed, _state_at(tensors, i)) for i, seed in enumerate(seeds)]


def _read(
    path: Path, spec: TaskSpec, checksum: str, content: bytes | None = None
) -> tuple[range, dict[str, np.ndarray]]:
    """The environment seeds and tensors of a file of states, checked."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes() if content is None else content
        if hash_bytes(content, SHA256_DIGITS) != checksum:
            raise UserError(
                f"{path} is not the file that its checksum is of: it is damaged or was changed; delete it, or restore "
                "it from the repository"
            )
        arrays = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]  # its header
        first, count = int(metadata["first_seed"]), int(metadata["count"])
    except UserError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, or restore it from the repository") from None
    if metadata.get("env_id") != spec.env_id:
        raise UserError(f"{path} holds states of {metadata.get('env_id')!r}, not of {spec.env_id!r}")
    _check_tensors(path, arrays, count)
    return range(first, first + count), arrays


def _check_tensors(path: Path, arrays: Mapping[str, np.ndarray], count: int) -> None:
    """Raises UserError for arrays that are not ``count`` states, as the module describes them."""
    import numpy as np

    def expect(fits: bool, what: str) -> None:
        if not fits:
            raise UserError(f"{path} holds no initial states: {what}")

    expect(count >= 1 and bool(arrays), f"{count} states of {len(arrays)} objects")
    for name, array in arrays.items():
        kind, _, thing = name.partition("/")
        shape = f"{name} is {array.dtype} {array.shape}"
        expect(kind in ("actors", "articulations") and bool(thing), f"{name!r} is no actor and no articulation")
        expect(array.dtype == np.float32 and array.ndim == 2 and len(array) in (1, count), shape)
        joints = array.shape[1] - POSE
        expect(joints == 0 if kind == "actors" else joints >= 0 and joints % 2 == 0, shape)
        expect(bool(np.isfinite(array).all()), f"{name} has numbers that are not finite")
        lengths = np.linalg.norm(array[:, 3:7], axis=1)
        expect(bool((abs(lengths - 1) < 1e-3).all()), f"{name} has quaternions that are not of length 1")


def _state_at(tensors: dict[str, Any], index: int) -> dict[str, dict[str, torch.Tensor]]:
    """State ``index`` of a file's tensors, as the dictionary that ManiSkill takes."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        row = 0 if len(tensor) == 1 else index
        state.setdefault(kind, {})[name] = tensor[row : row + 1].clone()
    return state


def protocol_seeds(states: int = PROTOCOL_STATES) -> range:
    """Environment seeds of the states in :func:`protocol_file`."""
    return range(PROTOCOL_SEED, PROTOCOL_SEED + (ALL_STATES if states > PROTOCOL_STATES else PROTOCOL_STATES))
