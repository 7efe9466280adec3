"""Reader for ManiSkill's trajectory format: an ``.h5`` file with a ``.json`` of the same stem beside it.

What is missing, damaged or not as ManiSkill writes it is a UserError that names file, entry and what was expected.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from par_agent.data.episodes import Episode, frame_steps
from par_agent.errors import UserError
from par_agent.simulation.recorded_environment import StateDict
from par_agent.utils.files import read_json
from par_agent.utils.hdf5 import FLOATS, HDF5Reader
from par_agent.utils.json_fields import check

POSE = 13
"""Numbers in a state before the joints'."""


class _EnvOptions(TypedDict, total=False):
    """Types of some options of an environment."""

    control_mode: str | None
    sensor_configs: dict[str, Any] | None
    human_render_camera_configs: dict[str, Any] | None


class _EnvInfo(TypedDict):
    env_id: str
    env_kwargs: _EnvOptions


class _Entry(TypedDict):
    episode_id: int


class _Document(TypedDict):
    """What is needed of a trajectory file's JSON before any of its episodes is read."""

    env_info: _EnvInfo
    episodes: list[_Entry]


class _Details(TypedDict, total=False):
    """Fields that the JSON may have for an episode."""

    control_mode: str | None
    elapsed_steps: int
    reset_kwargs: dict[str, Any] | None
    success: bool | None


@dataclass(frozen=True)
class EpisodeInfo:
    """Description of an episode, without its arrays."""

    episode_id: int
    """Number of the episode in its file."""
    seed: int
    """Environment seed of the initial state."""
    control_mode: str
    """ManiSkill control mode of the actions."""


@dataclass(frozen=True)
class Demonstration:
    """One recorded episode of ``E`` control steps, at least 1."""

    info: EpisodeInfo
    actions: np.ndarray
    """(E, A) float32, in the units of the controller."""
    states: StateDict
    """Simulator states before every step and after the last one."""

    @property
    def num_steps(self) -> int:
        """Control steps ``E``."""
        return len(self.actions)

    def joint_positions(self, robot: str) -> np.ndarray:
        """Joint positions (E + 1, dof) float32 in radians (gripper fingers in metres) of articulation ``robot``."""
        state = self.states["articulations"][robot]
        dof = (state.shape[1] - POSE) // 2
        return state[:, POSE : POSE + dof]


class TrajectoryFile(AbstractContextManager["TrajectoryFile"]):
    """Random access to the episodes of a ManiSkill trajectory file, by the numbers that it gives them."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(
                f"no trajectory file at {self.path}; expected ManiSkill's .h5 (make one with `par-agent demos`)"
            )
        about = self.path.with_suffix(".json")
        document = read_json(about)
        try:
            check(str(about), document, _Document)
        except UserError as error:
            raise UserError(f"{error}; expected the JSON that ManiSkill writes beside an .h5") from None
        self.env_id: str = document["env_info"]["env_id"]
        """Gymnasium id of the environment that recorded the file."""
        self.options: dict[str, Any] = dict(document["env_info"]["env_kwargs"])
        """Options that the environment was made with, for example its robot."""
        self.episodes: list[int] = [entry["episode_id"] for entry in document["episodes"]]
        """Numbers of the episodes, in the JSON's order."""
        self._about = about
        self._entries: dict[int, Any] = dict(zip(self.episodes, document["episodes"], strict=True))
        if len(self._entries) < len(self.episodes):
            raise UserError(f"{about} lists an episode_id twice; make it again")
        self._file = HDF5Reader(self.path)

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def unlisted(self) -> list[str]:
        """Names of entries in the file that its JSON does not list."""
        listed = set(map(self._group, self.episodes))
        return [name for name in self._file.names() if name not in listed]

    def info(self, number: int) -> EpisodeInfo:
        """Description of an episode, from the JSON."""
        details = self._details(number)
        mode = details.get("control_mode") or self.options.get("control_mode")
        if not mode:
            raise UserError(
                f"{self._about}: the control mode of episode {number} is missing; write it into the episode as "
                '"control_mode", for example "pd_joint_pos"'
            )
        return EpisodeInfo(number, self._seed(number, details), mode)

    def succeeded(self, number: int) -> bool | None:
        """Whether an episode was solved after its last step, by its JSON and its array ``success``; None: unknown."""
        told = [self._details(number).get("success")]
        if self._group(number) in self._file and f"{self._group(number)}/success" in self._file:
            told += self._file.array(f"{self._group(number)}/success", np.bool_, (None,))[-1:].tolist()
        known = [value for value in told if value is not None]
        return all(known) if known else None

    def read(self, number: int) -> Demonstration:
        """Reads an episode."""
        info, actions, group = self.info(number), self._actions(number), self._group(number)
        if f"{group}/env_states" not in self._file:
            images = ", or take its images: --recorded-images" if f"{group}/obs/sensor_data" in self._file else ""
            raise UserError(f"{self.path}:{group} holds no env_states; record it with record_env_state=True{images}")
        states: StateDict = {}
        for kind in self._file.names(f"{group}/env_states"):
            width = POSE if kind == "actors" else None
            names = self._file.names(f"{group}/env_states/{kind}")
            states[kind] = {
                name: self._floats(f"{group}/env_states/{kind}/{name}", (len(actions) + 1, width)) for name in names
            }
        for name, rows in states.get("articulations", {}).items():
            if rows.shape[1] < POSE or (rows.shape[1] - POSE) % 2:
                raise UserError(
                    f"{self.path}:{group} holds {rows.shape[1]} numbers per state of {name!r}; expected {POSE}, and a "
                    "position and a velocity of every joint"
                )
        return Demonstration(info, actions, states)

    def read_recording(
        self, number: int, cameras: tuple[str, ...], stride: int, phase: int = 0, extra: tuple[str, ...] = ()
    ) -> Episode:
        """Reads an episode as it was observed: whole images at chunk boundaries, those of the ``extra`` observations
        that it has, and no attributes. Images that repeat older ones are refused.
        """
        actions, group = self._actions(number), self._group(number)
        steps = frame_steps(len(actions), stride, phase)
        sensors = f"{group}/obs/sensor_data"
        available = self._file.names(sensors) if sensors in self._file else []
        absent = [camera for camera in cameras if f"{sensors}/{camera}/rgb" not in self._file]
        if absent:
            raise UserError(
                f"{self.path}:{group} holds no images of {absent[0]!r}; it holds {', '.join(available) or 'none'}: "
                "name its cameras with --cameras, or record them with mani_skill.trajectory.replay_trajectory -o rgb"
            )
        rows = len(actions) + 1
        images = {
            camera: self._file.array(f"{sensors}/{camera}/rgb", np.uint8, (rows, None, None, 3), rows=steps)
            for camera in cameras
        }
        for camera in cameras:
            name = f"{sensors}/{camera}/age"  # above 0 between two looks of a policy, which the environment may skip
            ages = self._file.array(name, np.int32, (rows,), rows=steps) if name in self._file else np.zeros(len(steps))
            if (ages > 0).any():
                raise UserError(
                    f"{self.path}:{name}: the images of control steps {steps[ages > 0].tolist()} repeat older ones, "
                    "since nothing was rendered there: render them from the simulator states, without --recorded-images"
                )
        positions = self._floats(f"{group}/obs/agent/qpos", (rows, None))
        there = [name for name in extra if f"{group}/obs/extra/{name}" in self._file]
        observed = {name: self._observed(f"{group}/obs/extra/{name}", rows) for name in there}
        return Episode(images, steps, positions, actions, {}, observed)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _group(self, number: int) -> str:
        return f"traj_{number}"

    def _details(self, number: int) -> Any:
        """The JSON's entry of an episode, its types checked."""
        entry = self._entries[number]
        success = entry.get("success")
        if isinstance(success, list) and len(success) == 1:
            entry = {**entry, "success": success[0]}
        check(f"{self._about}: episode {number}", entry, _Details)
        return entry

    def _seed(self, number: int, details: Any) -> int:
        seeds: list[Any] = []
        for told in (details.get("episode_seed"), (details.get("reset_kwargs") or {}).get("seed")):
            if told is None or told in seeds or (isinstance(told, list) and seeds and seeds[0] in told):
                continue
            seeds.append(told[0] if isinstance(told, list) and len(told) == 1 else told)
        if not seeds:
            fault = "is missing, there and in its reset_kwargs"
        elif len(seeds) > 1:
            fault = f"is {seeds[0]} in episode_seed and {seeds[1]} in reset_kwargs"
        elif isinstance(seeds[0], list):
            fault = f"is one of {len(seeds[0])}, those of all parallel environments"
        elif type(seeds[0]) is not int or seeds[0] < 0:
            fault = f"is {str(seeds[0])[:60]}"
        else:
            return int(seeds[0])
        raise UserError(
            f"{self._about}: the seed of episode {number} {fault}; write the environment seed of its initial state "
            'into the episode as "episode_seed"'
        )

    def _actions(self, number: int) -> np.ndarray:
        group = self._group(number)
        if group not in self._file:
            raise UserError(f"{self.path} lacks {group}, which its JSON lists; copy or make it again")
        actions = self._floats(f"{group}/actions", (None, None))
        if not actions.size:
            raise UserError(f"{self.path}:{group} holds no actions; the episode is empty")
        told = self._details(number).get("elapsed_steps", len(actions))
        if told != len(actions):
            raise UserError(
                f"{self.path}:{group} holds {len(actions)} actions, its JSON tells of {told} steps; the two files do "
                "not belong together, or are truncated: copy or make them again"
            )
        return actions

    def _floats(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        values = self._file.array(name, FLOATS, shape).astype(np.float32, copy=False)
        if len(values) and not values.size:
            raise self._file.damaged(f"{name} has no numbers in its rows")
        return values

    def _observed(self, name: str, rows: int) -> np.ndarray:
        """An extra observation, a number or an array of any shape a row, as (rows, n) float32."""
        values = self._file.array(name, (*FLOATS, np.bool_, np.int32, np.int64), None)
        if values.shape[:1] != (rows,) or not values.size:
            raise UserError(f"{self.path}:{name} has the shape {values.shape}; expected {rows} rows")
        return values.reshape(rows, -1).astype(np.float32)
