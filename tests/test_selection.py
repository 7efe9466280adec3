"""Which episodes of a trajectory file become training data: `par-agent render` with files that hold bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from par_agent.cli import main
from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.selection import format_numbers, parse_numbers
from par_agent.errors import UserError
from par_agent.tasks import PROTOCOL_SEED
from recordings import run_in_this_process


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("par_agent.cli.render.open_runner", run_in_this_process)


def write(folder: Path, successes: str) -> Path:
    """A file of one episode per letter: y ends in success, n does not, ? tells nothing; seeds and ids from 10."""
    path, episodes = folder / "trajectory.h5", []
    with h5py.File(path, "w") as file:
        for number, letter in enumerate(successes, start=10):
            group = file.create_group(f"traj_{number}")
            group["actions"] = np.full((6, 8), number / 100, np.float32)
            group["obs/agent/qpos"] = np.zeros((7, 9), np.float32)
            group["obs/sensor_data/base_camera/rgb"] = np.full((7, 8, 8, 3), number, np.uint8)
            entry = {"episode_id": number, "episode_seed": number, "elapsed_steps": 6, "control_mode": "pd_joint_pos"}
            episodes.append(entry | ({} if letter == "?" else {"success": letter == "y"}))
    document = {"env_info": {"env_id": "PushCube-v1", "env_kwargs": {}}, "episodes": episodes}
    path.with_suffix(".json").write_text(json.dumps(document))
    return path


def edit(path: Path, number: int, **entry: Any) -> None:
    """Changes what the JSON tells of an episode."""
    document = json.loads(path.with_suffix(".json").read_text())
    document["episodes"][number - 10].update(entry)
    path.with_suffix(".json").write_text(json.dumps(document))


def render(path: Path, *options: str) -> int:
    command = ["--recorded-images", "--cameras", "base_camera", "--stride", "4", "--workers", "1", *options]
    return main(["render", "--trajectory", str(path), "--out", str(path.parent / "out"), *command])


def rendered(path: Path) -> list[int]:
    """Numbers of the source's episodes in the dataset; the frames are of these."""
    dataset, numbers = RenderedDataset(path.parent / "out"), []
    for file in dataset.paths:
        episode = read_episode(file)
        numbers.append(int(episode.attributes["source_episode"]))
        assert (episode.frames["base_camera"] == numbers[-1]).all() and episode.attributes["seed"] == numbers[-1]
    return numbers


def test_failed_episodes_are_left_out_and_counted_unless_asked_for(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, "yny?n")
    assert render(path) == 0 and rendered(path) == [10, 12, 13]
    note = "left out 2 of 5 episodes that did not succeed; --include-failures keeps them"
    assert note in capsys.readouterr().out
    assert render(path, "--include-failures") == 2, "another dataset"
    assert "source_episodes: 10,12-13 there, None asked for" in capsys.readouterr().err
    assert render(path) == 0 and rendered(path) == [10, 12, 13], "the same command again"
    (tmp_path / "all").mkdir()
    path = write(tmp_path / "all", "yny?n")
    assert render(path, "--include-failures") == 0 and rendered(path) == [10, 11, 12, 13, 14]
    assert RenderedDataset(tmp_path / "all" / "out").spec.source_episodes is None


def test_success_in_the_arrays_counts_where_the_json_is_silent(tmp_path: Path) -> None:
    path = write(tmp_path, "??")
    with h5py.File(path, "a") as file:
        file["traj_10/success"] = np.array([False] * 5 + [True])
        file["traj_11/success"] = np.array([True] * 5 + [False])
    assert render(path) == 0 and rendered(path) == [10]


def test_a_file_of_failures_alone_is_refused_with_the_way_to_keep_them(tmp_path: Path, capsys: Any) -> None:
    assert render(write(tmp_path, "nn")) == 2
    message = capsys.readouterr().err
    assert "is left: left out 2 of 2 episodes that did not succeed; --include-failures keeps them" in message
    assert not (tmp_path / "out").exists()


def test_episodes_are_picked_by_number_in_the_order_given(tmp_path: Path) -> None:
    path = write(tmp_path, "yyyyny")
    assert render(path, "--episodes", "15,10-11,14") == 0 and rendered(path) == [15, 10, 11]
    assert RenderedDataset(tmp_path / "out").spec.source_episodes == "15,10-11"


def test_num_takes_the_first_that_can_be_used(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, "nynyyn")
    assert render(path, "--num", "3") == 0 and rendered(path) == [11, 13, 14]
    (tmp_path / "out" / "dataset.json").unlink()
    assert render(path, "--num", "4") == 2
    message = capsys.readouterr().err
    assert "--num 4 asks for more episodes than the 3 in" in message and "left out 3 of 6 episodes that did" in message


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1-2-3", "1,1", "0-3,2", "99999999"])
def test_numbers_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"episodes are .*(expected numbers and ranges such as 0-99,120|named twice)"):
        parse_numbers(text)


@pytest.mark.parametrize("numbers", [(0,), (0, 1, 2), (5, 3, 4), (2, 0, 1, 9)])
def test_numbers_read_back_are_those_written(numbers: tuple[int, ...]) -> None:
    assert parse_numbers(format_numbers(numbers)) == numbers


def test_episodes_that_are_not_there_are_named_with_those_that_are(tmp_path: Path, capsys: Any) -> None:
    assert render(write(tmp_path, "yyy"), "--episodes", "9-13") == 2
    assert "has no episode 9,13; it has 10-12" in capsys.readouterr().err


def spoil(path: Path) -> None:
    """Makes six of eight episodes unusable, each in its own way."""
    with h5py.File(path, "a") as file:
        file["traj_10/actions"][3, 2] = np.nan
        del file["traj_11/actions"], file["traj_12"], file["traj_15/obs/sensor_data/base_camera/rgb"]
        file["traj_11/actions"] = np.zeros((0, 8), np.float32)
        file["traj_15/obs/sensor_data/base_camera/rgb"] = np.zeros((7, 8, 8, 3), np.int16)
    edit(path, 13, episode_seed=PROTOCOL_SEED)
    edit(path, 14, episode_seed=[1, 2, 3])


def test_one_bad_episode_is_an_error_before_anything_is_written(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, "yyyyyyyy")
    spoil(path)
    for number, message in (
        (10, "traj_10/actions hold NaN or infinity in row 3: nan"),
        (11, "traj_11 holds no actions; the episode is empty"),
        (12, "lacks traj_12, which its JSON lists"),
        (13, f"episode 13 starts from seed {PROTOCOL_SEED}, which the evaluation protocol reserves"),
        (14, "the seed of episode 14 is one of 3"),
        (15, "traj_15/obs/sensor_data/base_camera/rgb is stored as int16; expected uint8"),
    ):
        assert render(path, "--episodes", f"16,{number}") == 2
        found = capsys.readouterr().err
        assert message in found and "or leave such episodes out: --skip-corrupt" in found and str(path.stem) in found
    assert not (tmp_path / "out").exists()


def test_bad_episodes_are_skipped_and_named_and_the_same_command_resumes(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, "yyyyyyyy")
    spoil(path)
    assert render(path, "--skip-corrupt") == 0 and rendered(path) == [16, 17]
    output = capsys.readouterr()
    assert "left out 6 of 8 episodes that cannot be used" in output.out
    assert (output.out + output.err).count("left out: ") == 6
    (tmp_path / "out" / "episodes" / "episode_000000.h5").unlink()
    (tmp_path / "out" / "dataset.json").unlink()
    assert render(path, "--skip-corrupt") == 0 and rendered(path) == [16, 17]


def test_actions_of_two_controllers_are_not_mixed(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, "yy")
    edit(path, 11, control_mode="pd_ee_delta_pose")
    assert render(path) == 2
    assert "actions of pd_ee_delta_pose and pd_joint_pos; a dataset holds one controller's" in capsys.readouterr().err
    assert render(path, "--episodes", "11") == 0
    assert (
        "control mode pd_ee_delta_pose: actions as recorded; the protocol's is pd_joint_pos" in capsys.readouterr().out
    )


def test_episodes_that_the_json_does_not_list_are_counted(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, "yy")
    with h5py.File(path, "a") as file:
        file.copy("traj_11", "traj_12")
    assert render(path) == 0 and rendered(path) == [10, 11]
    assert "left out 1 episodes that the JSON does not list: traj_12" in capsys.readouterr().out


def test_a_file_of_images_without_states_offers_its_images(tmp_path: Path, capsys: Any) -> None:
    assert main(["render", "--trajectory", str(write(tmp_path, "y")), "--out", str(tmp_path / "out")]) == 2
    assert "record_env_state=True, or take its images: --recorded-images" in capsys.readouterr().err


def test_choices_of_episodes_are_refused_for_random_motion(tmp_path: Path, capsys: Any) -> None:
    for option in (("--episodes", "0"), ("--include-failures",), ("--skip-corrupt",)):
        assert main(["render", "--random-motion", "PushCube", "--out", str(tmp_path / "out"), *option]) == 2
        assert "are for a trajectory file; give --trajectory FILE.h5" in capsys.readouterr().err
