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


@dataclass(frozen=True)
class Recording:
    """One episode of ``T`` control steps that was recorded with what the robot saw."""

    episode_id: int
    """Number of the episode in its file."""
    seed: int
    """Environment seed of the initial state."""
    actions: np.ndarray
    """(T, A) float32, in the units of the controller."""
    positions: np.ndarray
    """(T + 1, P) float32 joint positions in radians (gripper fingers in metres)."""
    images: dict[str, np.ndarray]
    """Camera -> (K, H, W, 3) uint8 RGB of the steps asked for."""
    extra: dict[str, np.ndarray]
    """Name -> (T + 1, n) float32 extra observations."""


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
            self.options: dict[str, Any] = dict(self.metadata["env_info"]["env_kwargs"])
            """Options that the environment was made with, for example its robot."""
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

    def num_steps(self, index: int) -> int:
        """Control steps of episode number ``index``.

        Raises:
            UserError: the episode's data is damaged.
        """
        return len(self._group(index)["actions"])

    def read_recording(
        self, index: int, cameras: tuple[str, ...], steps: np.ndarray, extra: tuple[str, ...] = ()
    ) -> Recording:
        """Reads episode number ``index`` as it was observed, with the images of control steps ``steps``, ascending, and
        those of the extra observations that it has.

        Raises:
            UserError: the episode's data is damaged, or was recorded without images of these cameras.
        """
        info, group = self.episodes[index], self._group(index)
        where = f"{self.path}:traj_{info['episode_id']}"
        available = list(group["obs/sensor_data"]) if "obs/sensor_data" in group else []
        absent = [camera for camera in cameras if f"obs/sensor_data/{camera}/rgb" not in group]
        if absent:
            raise UserError(
                f"{where} holds no images of {absent[0]!r}; it holds {', '.join(available) or 'none at all'}: name its "
                "cameras with --cameras, or record them with mani_skill.trajectory.replay_trajectory -o rgb"
            )
        try:
            images = {camera: group[f"obs/sensor_data/{camera}/rgb"][steps] for camera in cameras}
            positions, actions = np.asarray(group["obs/agent/qpos"]), np.asarray(group["actions"])
            observed = {name: np.asarray(group[f"obs/extra/{name}"]) for name in extra if f"obs/extra/{name}" in group}
            seed = info["episode_seed"]
        except (OSError, KeyError, RuntimeError, IndexError, TypeError) as error:
            raise UserError(f"{where} is damaged ({error}); copy or make the file again") from None
        if len(positions) != len(actions) + 1:
            raise UserError(
                f"{where} holds {len(actions)} actions and {len(positions)} observations; expected one more: record it "
                "again"
            )
        rows = {name: values.reshape(len(positions), -1).astype(np.float32) for name, values in observed.items()}
        return Recording(info["episode_id"], seed, actions, positions, images, rows)

    def _group(self, index: int) -> h5py.Group:
        name = f"traj_{self.episodes[index]['episode_id']}"
        try:
            group = self._file[name]
            _ = group["actions"]
        except (OSError, KeyError, RuntimeError) as error:
            raise UserError(f"{self.path}:{name} is damaged ({error}); copy or make the file again") from None
        return group

    def close(self) -> None:
        """Closes the underlying HDF5 file."""
        self._file.close()

    def __enter__(self) -> TrajectoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
