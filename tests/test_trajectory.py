"""Reading ManiSkill's trajectory files, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from par_agent.data.trajectory import EpisodeInfo, TrajectoryFile
from par_agent.errors import UserError

STEPS = (5, 3)


def arrays(number: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(number)
    steps = STEPS[number]
    return {
        "actions": generator.normal(size=(steps, 8)).astype(np.float32),
        "env_states/actors/cube": generator.normal(size=(steps + 1, 13)).astype(np.float32),
        "env_states/articulations/panda": generator.normal(size=(steps + 1, 13 + 2 * 9)).astype(np.float32),
    }


def write(
    folder: Path,
    replace: dict[str, np.ndarray | None] | None = None,
    entry: dict[str, Any] | None = None,
    env_kwargs: Any = None,
) -> Path:
    """Two episodes with ids 0 and 4.

    Args:
        replace: changes or removes (None) arrays of the second.
        entry: changes or removes (...) what the JSON tells of the second.
        env_kwargs: of the environment.
    """
    path = folder / "trajectory.h5"
    with h5py.File(path, "w") as file:
        for number, name in enumerate(("traj_0", "traj_4")):
            content = arrays(number)
            if number == 1:
                content |= replace or {}
            for key, value in content.items():
                if value is not None:
                    file[f"{name}/{key}"] = value
    episodes = [
        {"episode_id": i, "episode_seed": 70 + i, "elapsed_steps": n} for i, n in zip((0, 4), STEPS, strict=True)
    ]
    episodes[1] = {name: value for name, value in (episodes[1] | (entry or {})).items() if value is not ...}
    environment = {"env_id": "PushCube-v1", "env_kwargs": env_kwargs or {"control_mode": "pd_joint_pos"}}
    path.with_suffix(".json").write_text(json.dumps({"env_info": environment, "episodes": episodes}))
    return path


def test_episodes_are_read_by_the_numbers_that_the_json_gives_them(tmp_path):
    with TrajectoryFile(write(tmp_path)) as file:
        assert (file.env_id, file.episodes, len(file)) == ("PushCube-v1", [0, 4], 2)
        episode = file.read(4)
    expected = arrays(1)
    assert episode.info == EpisodeInfo(4, 74, "pd_joint_pos") and episode.num_steps == 3
    assert np.array_equal(episode.actions, expected["actions"])
    assert np.array_equal(episode.states["actors"]["cube"], expected["env_states/actors/cube"])
    assert np.array_equal(episode.joint_positions("panda"), expected["env_states/articulations/panda"][:, 13:22])


def test_joint_velocities_are_not_taken_for_positions(tmp_path):
    rows = np.zeros((4, 31), np.float32)
    rows[:, 22:] = 9
    with TrajectoryFile(write(tmp_path, {"env_states/articulations/panda": rows})) as file:
        assert not file.read(4).joint_positions("panda").any()


def test_an_absent_file_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(UserError, match=r"no trajectory file at .*absent\.h5.*par-agent demos"):
        TrajectoryFile(tmp_path / "absent.h5")


def test_an_absent_json_is_named(tmp_path):
    path = write(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"trajectory\.json does not exist"):
        TrajectoryFile(path)


@pytest.mark.parametrize("content", [b"", b'{"episodes": [', b"\x89HDF\xff"])
def test_a_damaged_json_is_named(tmp_path, content):
    path = write(tmp_path)
    path.with_suffix(".json").write_bytes(content)
    with pytest.raises(UserError, match=r"trajectory\.json is not valid JSON"):
        TrajectoryFile(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[]", r"is \[\]; expected an object"),
        ('{"episodes": []}', "lacks env_info"),
        ('{"env_info": {"env_id": "a", "env_kwargs": {}}}', "lacks episodes"),
        ('{"env_info": null, "episodes": []}', "env_info is None; expected an object"),
        ('{"env_info": {"env_id": 3, "env_kwargs": {}}, "episodes": []}', "env_id is 3; expected a string"),
        ('{"env_info": {"env_id": "a", "env_kwargs": {}}, "episodes": [{}]}', r"episodes\[0\] lacks episode_id"),
        (
            '{"env_info": {"env_id": "a", "env_kwargs": {"sensor_configs": 3}}, "episodes": []}',
            "sensor_configs is 3; exp",
        ),
    ],
)
def test_another_json_is_refused(tmp_path, content, fault):
    path = write(tmp_path)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(UserError, match=rf"trajectory\.json.*{fault}.*expected the JSON that ManiSkill writes"):
        TrajectoryFile(path)


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_advice(tmp_path, kept):
    path = write(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"trajectory\.h5 is damaged .*copy or make it again"):
        TrajectoryFile(path)


def test_episodes_that_only_the_json_lists_are_named(tmp_path):
    path = write(tmp_path)
    with h5py.File(path, "a") as file:
        del file["traj_4"]
    with TrajectoryFile(path) as file:
        file.read(0)
        with pytest.raises(UserError, match=r"trajectory\.h5 lacks traj_4, which its JSON lists"):
            file.read(4)


def test_an_episode_that_the_json_lists_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"trajectory\.json lists an episode_id twice"):
        TrajectoryFile(write(tmp_path, entry={"episode_id": 0}))


def test_damage_inside_an_episode_is_named_when_it_is_read(tmp_path):
    compressed = tmp_path / "compressed.h5"
    path = write(tmp_path)
    with h5py.File(path) as source, h5py.File(compressed, "w") as target:
        for name in source:
            source.copy(name, target)
        del target["traj_4/actions"]
        target.create_dataset("traj_4/actions", data=arrays(1)["actions"], compression="gzip", fletcher32=True)
        chunk = target["traj_4/actions"].id.get_chunk_info(0)
    content = bytearray(compressed.read_bytes())
    content[chunk.byte_offset + 8] ^= 0xFF
    path.write_bytes(content)
    with TrajectoryFile(path) as file:
        file.read(0)
        with pytest.raises(UserError, match=r"trajectory\.h5 is damaged \(traj_4/actions: .*copy or make it again"):
            file.read(4)


def changed(array: str, row: int, value: float, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """One number of an array changed, in the last column."""
    values = arrays(1)[array].astype(dtype)
    values[row, -1] = value
    return {array: values}


ACTIONS, CUBE, PANDA = "actions", "env_states/actors/cube", "env_states/articulations/panda"


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({ACTIONS: None}, "traj_4/actions is missing"),
        ({ACTIONS: np.zeros((0, 8), np.float32)}, "traj_4 holds no actions; the episode is empty"),
        (changed(ACTIONS, 2, np.nan), "traj_4/actions hold NaN or infinity in row 2: nan"),
        (changed(ACTIONS, 1, np.inf), "traj_4/actions hold NaN or infinity in row 1: inf"),
        (changed(ACTIONS, 1, 0, bool), "traj_4/actions is stored as bool; expected float32 or float64"),
        (changed(ACTIONS, 1, 0, complex), "traj_4/actions is stored as complex128"),
        (changed(PANDA, 3, 1e30), r"traj_4/env_states/articulations/panda hold numbers too large in row 3: 1.*e\+30"),
        (changed(PANDA, 0, -np.inf), "panda hold NaN or infinity in row 0: -inf"),
        (changed(CUBE, 1, 0, complex), "cube is stored as complex128"),
        ({CUBE: arrays(1)[CUBE][:-1]}, r"cube has the shape \(3, 13\); expected \(4, 13\)"),
        ({CUBE: arrays(1)[CUBE][:, :12]}, r"cube has the shape \(4, 12\); expected \(4, 13\)"),
        ({CUBE: None, PANDA: None}, "traj_4 holds no env_states; record it with record_env_state=True"),
        (
            {CUBE: None, PANDA: None, "env_states": np.zeros((4, 44), np.float32)},
            "env_states is an array; expected a gr",
        ),
    ],
)
def test_arrays_that_cannot_be_are_refused_with_file_episode_and_row(tmp_path, replace, message):
    with TrajectoryFile(write(tmp_path, replace)) as file:
        file.read(0)
        with pytest.raises(UserError, match=rf"trajectory\.h5.*{message}"):
            file.read(4)


@pytest.mark.parametrize(
    ("entry", "seed"),
    [
        ({"episode_seed": ..., "reset_kwargs": {"seed": 9}}, 9),
        ({"episode_seed": ..., "reset_kwargs": {"seed": [9], "options": None}}, 9),
        ({"episode_seed": [9], "reset_kwargs": {"seed": 9}}, 9),
        ({"reset_kwargs": None}, 74),
        ({"reset_kwargs": {"seed": [73, 74, 75]}}, 74),
    ],
)
def test_the_seed_is_where_maniskill_writes_it(tmp_path, entry, seed):
    with TrajectoryFile(write(tmp_path, entry=entry)) as file:
        assert file.read(4).info.seed == seed


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"episode_seed": ...}, "the seed of episode 4 is missing, there and in its reset_kwargs; write the env"),
        ({"episode_seed": [3, 4, 5]}, "the seed of episode 4 is one of 3, those of all parallel environments; write"),
        ({"reset_kwargs": {"seed": 5}}, "the seed of episode 4 is 74 in episode_seed and 5 in reset_kwargs"),
        ({"episode_seed": -1}, "the seed of episode 4 is -1"),
        ({"episode_seed": "x"}, "the seed of episode 4 is x"),
        ({"episode_seed": 1.5}, "the seed of episode 4 is 1.5"),
        ({"episode_seed": True}, "the seed of episode 4 is True"),
        ({"control_mode": 3}, "episode 4.control_mode is 3; expected a string or null"),
        (
            {"elapsed_steps": 5},
            "traj_4 holds 3 actions, its JSON tells of 5 steps; the two files do not belong together",
        ),
        ({"reset_kwargs": []}, r"episode 4.reset_kwargs is \[\]; expected an object"),
    ],
)
def test_what_the_json_tells_wrongly_of_an_episode_is_named_and_the_others_are_read(tmp_path, entry, message):
    with TrajectoryFile(write(tmp_path, entry=entry)) as file:
        file.read(0)
        with pytest.raises(UserError, match=rf"trajectory\.(json|h5).*{message}"):
            file.read(4)


def test_the_control_mode_is_the_episodes_or_else_the_environments(tmp_path):
    entry = {"control_mode": "pd_ee_delta_pose"}
    with TrajectoryFile(write(tmp_path, entry=entry)) as file:
        assert [file.info(number).control_mode for number in (0, 4)] == ["pd_joint_pos", "pd_ee_delta_pose"]
    with TrajectoryFile(write(tmp_path, entry=entry, env_kwargs={"obs_mode": "rgb"})) as file:
        assert file.info(4).control_mode == "pd_ee_delta_pose"
        with pytest.raises(UserError, match="the control mode of episode 0 is missing; write it into the episode as"):
            file.info(0)


@pytest.mark.parametrize(
    ("told", "array", "expected"),
    [
        (..., None, None),
        (None, None, None),
        (True, None, True),
        ([False], None, False),
        (..., [False, True, False], False),
        (..., [False, False, True], True),
        (False, [False, False, True], False),
        (True, [False, True, False], False),
    ],
)
def test_success_is_what_json_and_array_tell_of_the_end(tmp_path, told, array, expected):
    replace = None if array is None else {"success": np.array(array)}
    with TrajectoryFile(write(tmp_path, replace, {"success": told})) as file:
        assert file.succeeded(4) is expected and file.succeeded(0) is None


@pytest.mark.parametrize("told", ["yes", 1, [True, False]])
def test_success_of_another_type_is_refused(tmp_path, told):
    with (
        TrajectoryFile(write(tmp_path, entry={"success": told})) as file,
        pytest.raises(UserError, match=r"episode 4\.success is .*; expected true or false or null"),
    ):
        file.succeeded(4)
