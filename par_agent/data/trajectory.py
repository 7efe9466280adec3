"""Reader for ManiSkill's trajectory format: an ``.h5`` file with a ``.json`` of the same stem beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from par_agent.errors import UserError
from par_agent.files import read_json

StateDict = dict[str, dict[str, np.ndarray]]
"""``{"actors": {name: (T + 1, 13)}, "articulations": {name: (T + 1, 13 + 2 * dof)}}``, float32.

A row is position (3, metres), quaternion (4, w first), linear and angular velocity (6), then joint positions and
velocities."""


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode of ``T`` control steps."""

    episode_id: int
    """Number of the episode in its file."""
    seed: int
    """Environment seed of the initial state."""
    actions: np.ndarray
    """(T, A) float32, in the units of the controller."""
    states: StateDict
    """Simulator states before every step and after the last one."""

    @property
    def num_steps(self) -> int:
        """Control steps ``T``."""
        return len(self.actions)

    def joint_positions(self, robot: str) -> np.ndarray:
        """Joint positions (T + 1, dof) float32 in radians (gripper fingers in metres) of articulation ``robot``."""
        state = self.states["articulations"][robot]
        dof = (state.shape[1] - 13) // 2
        return state[:, 13 : 13 + dof]


class TrajectoryFile:
    """Random access to the episodes of a ManiSkill trajectory file.

    Raises:
        UserError: the file, its JSON, or the simulator states in it are missing, or the file is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(
                f"no trajectory file at {self.path}; expected ManiSkill's .h5 (make one with `par-agent demos`)"
            )
        self.metadata: dict[str, Any] = read_json(self.path.with_suffix(".json"))
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read ({error}); it may be truncated: copy or make it again"
            ) from None
        try:
            self.env_id: str = self.metadata["env_info"]["env_id"]
            """Gymnasium id of the environment that recorded the file."""
            self.control_mode: str = self.metadata["env_info"]["env_kwargs"]["control_mode"]
            """ManiSkill control mode of the stored actions."""
            self.episodes: list[dict[str, Any]] = self.metadata["episodes"]
            """ManiSkill's description of each episode."""
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path.with_suffix('.json')} lacks {error}; expected the JSON that ManiSkill writes beside an .h5"
            ) from None
        absent = [e["episode_id"] for e in self.episodes if f"traj_{e['episode_id']}" not in self._file]
        if absent:
            raise UserError(f"{self.path} lacks episodes {absent[:5]} that its JSON lists; copy or make it again")

    def __len__(self) -> int:
        return len(self.episodes)

    def read(self, index: int) -> Demonstration:
        """Reads episode number ``index`` of the JSON's list.

        Raises:
            UserError: the episode's data is damaged, or was recorded without simulator states.
        """
        info = self.episodes[index]
        name = f"traj_{info['episode_id']}"
        try:
            group = self._file[name]
            if "env_states" not in group:
                raise UserError(f"{self.path}:{name} holds no env_states; record it with record_env_state=True")
            states = {
                kind: {actor: np.asarray(values) for actor, values in group["env_states"][kind].items()}
                for kind in group["env_states"]
            }
            actions = np.asarray(group["actions"])
            seed = info["episode_seed"]
        except (OSError, KeyError, RuntimeError) as error:
            raise UserError(f"{self.path}:{name} is damaged ({error}); copy or make the file again") from None
        lengths = {len(rows) for group in states.values() for rows in group.values()}
        if lengths != {len(actions) + 1}:
            raise UserError(
                f"{self.path}:{name} holds {len(actions)} actions and {sorted(lengths)} simulator states; expected one "
                "state more than actions: make the file again"
            )
        return Demonstration(info["episode_id"], seed, actions, states)

    def close(self) -> None:
        """Closes the underlying HDF5 file."""
        self._file.close()

    def __enter__(self) -> TrajectoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
