"""Reading ManiSkill's trajectory files, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from par_agent.data.trajectory import TrajectoryFile
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


def write(folder: Path, replace: dict[str, np.ndarray | None] | None = None) -> Path:
    """Two episodes with ids 0 and 4; `replace` changes or removes (None) arrays of the second."""
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
    environment = {"env_id": "PushCube-v1", "env_kwargs": {"control_mode": "pd_joint_pos"}}
    path.with_suffix(".json").write_text(json.dumps({"env_info": environment, "episodes": episodes}))
    return path


def test_episodes_are_read_by_their_place_in_the_json(tmp_path):
    with TrajectoryFile(write(tmp_path)) as file:
        assert (file.env_id, file.control_mode, len(file)) == ("PushCube-v1", "pd_joint_pos", 2)
        episode = file.read(1)
    expected = arrays(1)
    assert (episode.episode_id, episode.seed, episode.num_steps) == (4, 74, 3)
    assert np.array_equal(episode.actions, expected["actions"])
    assert np.array_equal(episode.states["actors"]["cube"], expected["env_states/actors/cube"])
    assert np.array_equal(episode.joint_positions("panda"), expected["env_states/articulations/panda"][:, 13:22])


def test_joint_velocities_are_not_taken_for_positions(tmp_path):
    rows = np.zeros((4, 31), np.float32)
    rows[:, 22:] = 9
    with TrajectoryFile(write(tmp_path, {"env_states/articulations/panda": rows})) as file:
        assert not file.read(1).joint_positions("panda").any()


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


@pytest.mark.parametrize("content", ['{"episodes": []}', '{"env_info": {"env_id": "a", "env_kwargs": {}}}', "[]"])
def test_another_json_is_refused(tmp_path, content):
    path = write(tmp_path)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(UserError, match=r"trajectory\.json lacks .*expected the JSON that ManiSkill writes"):
        TrajectoryFile(path)


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused_with_advice(tmp_path, kept):
    path = write(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match=r"trajectory\.h5 cannot be read .*truncated: copy or make it again"):
        TrajectoryFile(path)


def test_episodes_that_only_the_json_lists_are_named(tmp_path):
    path = write(tmp_path)
    with h5py.File(path, "a") as file:
        del file["traj_4"]
    with pytest.raises(UserError, match=r"lacks episodes \[4\]"):
        TrajectoryFile(path)


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
        with pytest.raises(UserError, match=r"trajectory\.h5:traj_4 is damaged.*copy or make the file again"):
            file.read(1)


def test_an_episode_without_actions_is_damaged(tmp_path):
    with (
        TrajectoryFile(write(tmp_path, {"actions": None})) as file,
        pytest.raises(UserError, match=r"traj_4 is damaged"),
    ):
        file.read(1)


def test_a_recording_without_simulator_states_says_how_to_record_them(tmp_path):
    states = {"env_states/actors/cube": None, "env_states/articulations/panda": None}
    with (
        TrajectoryFile(write(tmp_path, states)) as file,
        pytest.raises(UserError, match=r"traj_4 holds no env_states.*record_env_state=True"),
    ):
        file.read(1)


def test_states_that_do_not_match_the_actions_are_refused(tmp_path):
    short = arrays(1)["env_states/actors/cube"][:-1]
    with (
        TrajectoryFile(write(tmp_path, {"env_states/actors/cube": short})) as file,
        pytest.raises(UserError, match=r"3 actions and \[3, 4\] simulator states"),
    ):
        file.read(1)
