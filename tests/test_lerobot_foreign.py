"""LeRobot datasets of other tools: v2.1 as v3.0, whatever they call things; what cannot be known or read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lerobot_sets import SIZE, TASKS, TOP, LeRobotSet, image_feature, pixels, png, vector, write_table
from par_agent.cli import main
from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.lerobot_features import Feature, choose_keys
from par_agent.data.lerobot_folder import LeRobotFolder
from par_agent.data.lerobot_import import import_lerobot
from par_agent.data.lerobot_plan import LeRobotRequest, plan_import
from par_agent.errors import UserError

pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'par-agent[lerobot]'")

VERSIONS = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


def bring(folder: Path, **request: Any) -> RenderedDataset:
    """Imports a dataset; returns what became of it."""
    out = folder.with_name(f"{folder.name}-imported")
    import_lerobot(plan_import(LeRobotFolder(folder), LeRobotRequest(**{"stride": 4, **request})), out)
    return RenderedDataset(out)


def refused(folder: Path, message: str, **request: Any) -> None:
    """Checks that an import is refused before anything is written."""
    with pytest.raises(UserError, match=message):
        bring(folder, **request)
    assert not folder.with_name(f"{folder.name}-imported").exists()


# Layouts


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_what_a_dataset_holds_is_read_in_every_layout(tmp_path: Path, version: str) -> None:
    made = LeRobotSet()
    dataset = bring(made.write(tmp_path / "set", version))
    assert len(dataset) == 3 and dataset.spec["env_id"] == "so101" and dataset.cameras == ("top",)
    for number, path in enumerate(dataset.paths):
        episode = read_episode(path)
        last = made.lengths[number] - 1
        assert episode.frame_steps.tolist() == sorted({*range(0, last, 4), last})
        np.testing.assert_array_equal(episode.proprioception, made.episode("observation.state", number))
        np.testing.assert_array_equal(episode.actions, made.episode("action", number)[:-1])
        shown = [pixels(number, step) for step in episode.frame_steps]
        np.testing.assert_array_equal(episode.frames["top"], shown)
        assert episode.frames["top"].dtype == np.uint8 and episode.instructions == TASKS[:1]
        assert episode.attributes["control_mode"] == "pd_joint_pos" and episode.attributes["seed"] == number


@VERSIONS
def test_videos_show_each_row_its_own_frame(tmp_path: Path, version: str) -> None:
    video = image_feature(dtype="video", info={"video.fps": 10})
    first = f"videos/{TOP}"
    starts = np.cumsum([0, 6, 7]) / 10
    records = {
        n: {f"{first}/chunk_index": 0, f"{first}/file_index": 0, f"{first}/from_timestamp": start}
        for n, start in enumerate(starts)
    }
    made = LeRobotSet(features={TOP: video}, records=records)
    folder = made.write(tmp_path / "set", version)
    frames = [[pixels(episode, row) for row in range(length)] for episode, length in enumerate(made.lengths)]
    if version == "v3.0":
        write_video(folder / f"videos/{TOP}/chunk-000/file-000.mp4", [frame for shown in frames for frame in shown])
    else:
        for number, shown in enumerate(frames):
            write_video(folder / f"videos/chunk-{number // 2:03d}/{TOP}/episode_{number:06d}.mp4", shown)
    for number, path in enumerate(bring(folder, episodes="0-2").paths):
        episode = read_episode(path)
        shown = np.stack([pixels(number, step) for step in episode.frame_steps]).astype(int)
        assert np.abs(episode.frames["top"] - shown).mean() < 4


def write_video(path: Path, frames: list[np.ndarray], fps: int = 10) -> None:
    import imageio.v2 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    options = ["-crf", "4", "-pix_fmt", "yuv444p"]
    with imageio.get_writer(path, format="ffmpeg", fps=fps, macro_block_size=1, output_params=options) as writer:
        for frame in frames:
            writer.append_data(frame)


def test_a_video_of_another_speed_than_its_rows_is_refused(tmp_path: Path) -> None:
    made = LeRobotSet(lengths=[6], features={TOP: image_feature(dtype="video")})
    folder = made.write(tmp_path / "set")
    path = folder / f"videos/chunk-000/{TOP}/episode_000000.mp4"
    write_video(path, [pixels(0, row) for row in range(12)], fps=20)
    with pytest.raises(UserError, match=r"episode_000000\.mp4 has 20 frames a second; expected 10, one each row"):
        bring(folder)


# Images


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_images_of_any_kind_become_rgb(tmp_path: Path, mode: str) -> None:
    gray = mode in ("L", "LA", "1")
    shape = [*SIZE, 1] if gray else [*SIZE, 3]

    def image(episode: int, row: int) -> np.ndarray:
        plain = pixels(episode, row)
        return np.repeat(np.where(plain[..., 1:2] > 15, 255, 0), 3, 2).astype(np.uint8) if gray else plain

    made = LeRobotSet(features={TOP: image_feature(shape=shape)}, images={TOP: lambda e, r: png(image(e, r), mode)})
    episode = read_episode(bring(made.write(tmp_path / "set")).paths[1])
    assert episode.frames["top"].dtype == np.uint8
    np.testing.assert_array_equal(episode.frames["top"], [image(1, step) for step in episode.frame_steps])


def test_gray_without_a_channel_axis_is_gray(tmp_path: Path) -> None:
    feature = image_feature(shape=[*SIZE], names=["height", "width"])
    made = LeRobotSet(features={TOP: feature}, images={TOP: lambda e, r: png(pixels(e, r)[..., 1])})
    frames = read_episode(bring(made.write(tmp_path / "set")).paths[0]).frames["top"]
    np.testing.assert_array_equal(frames[1], np.repeat(pixels(0, 4)[..., 1:2], 3, 2))


def test_images_of_16_bits_are_refused_by_name(tmp_path: Path) -> None:
    deep = png(np.full(SIZE, 3000, np.uint16))
    made = LeRobotSet(features={TOP: image_feature(shape=[*SIZE, 1])}, images={TOP: lambda e, r: deep})
    with pytest.raises(
        UserError, match=r"row 0 of observation\.images\.top of episode 0 of .*more than 8 bits a chann"
    ):
        bring(made.write(tmp_path / "set"))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("observation.images.depth", {"shape": [*SIZE, 1]}),
        ("observation.images.far", {"shape": [*SIZE, 1], "info": {"video.is_depth_map": True}}),
        ("wrist_depth", {"shape": [*SIZE], "names": ["height", "width"]}),
    ],
)
def test_depth_is_left_out_and_said_so(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    made = LeRobotSet(features={TOP: image_feature(), name: image_feature(**changes)})
    folder = made.write(tmp_path / "set")
    plan = plan_import(LeRobotFolder(folder), LeRobotRequest())
    assert list(plan.keys.cameras) == ["top"] and f"not read: {name}" in str(plan)
    camera = name.rpartition(".")[2]
    for request in ({"cameras": (camera,)}, {"image_key": (f"far={name}",)}):
        refused(folder, rf"the feature {name} is depth; cameras have to show colours", **request)
    assert bring(folder).cameras == ("top",)


@pytest.mark.parametrize("names", [["channels", "height", "width"], ["channel", "height", "width"], None])
def test_images_that_are_described_channels_first_keep_their_size(tmp_path: Path, names: list[str] | None) -> None:
    folder = LeRobotSet(features={TOP: image_feature(shape=[3, *SIZE], names=names)}).write(tmp_path / "set")
    dataset = bring(folder, crop=(0, 8, 16, 16))
    assert read_episode(dataset.paths[0]).frames["top"].shape[1:] == (16, 16, 3)
    refused(folder.rename(tmp_path / "again"), "does not lie inside the 16x24 image", crop=(0, 0, 24, 16))


def test_images_unlike_their_description_are_refused(tmp_path: Path) -> None:
    features = {TOP: image_feature(shape=[24, 16, 3])}
    with pytest.raises(UserError, match=r"top of episode 0 of .* shows 16x24 pixels; meta/info\.json says 24x16"):
        bring(LeRobotSet(features=features).write(tmp_path / "set"))
    odd = LeRobotSet(features={TOP: image_feature(shape=[*SIZE, 7])}).write(tmp_path / "odd")
    refused(
        odd, r"the feature observation\.images\.top has the shape \[16, 24, 7\]; expected height, width and 1, 3 or 4"
    )
    bad = LeRobotSet(images={TOP: lambda e, r: png(pixels(e, r))[: 40 if e == 1 else None]}).write(tmp_path / "bad")
    with pytest.raises(UserError, match=r"row 0 of observation\.images\.top of episode 1 of .* is damaged"):
        bring(bad)
    assert [path.name for path in bring(bad, skip_corrupt=True).paths] == ["episode_000000.h5", "episode_000002.h5"]


# What things are called, and what actions are


@pytest.mark.parametrize(
    ("joints", "actions", "expected"),
    [
        (["a", "b", "c"], ["a", "b", "c"], True),
        (["a", "b", "f1", "f2"], ["a", "b", "gripper"], True),
        ({"motors": ["a", "b"]}, {"motors": ["a", "b"]}, True),
        ([["a", "b"]], {"a": 0, "b": 1}, True),
        ({"b": 1, "a": 0}, ["a", "b"], True),
        ({"arm": ["a"], "hand": ["b"]}, ["a", "b"], True),
        (["a", "b", "c"], ["x", "y", "z"], False),
        (["ee.x", "ee.y", "ee.z"], ["ee.x", "ee.y", "ee.z"], False),
        (["state"], ["actions"], False),
        ({"motors": 3}, {"motors": 3}, False),
        ([1, None], [1, None], False),
        (None, None, False),
    ],
)
def test_joints_are_recognised_however_their_names_are_written(joints: Any, actions: Any, expected: bool) -> None:
    sizes = {4: 4, 3: 3}.get(len(joints or ""), 2), {3: 3}.get(len(actions or ""), 2)
    features = [Feature("image", "image", (8, 8, 3), None, {})]
    for name, size, names in zip(("state", "actions"), sizes, (joints, actions), strict=True):
        features.append(Feature(name, "float32", (size,), names, {}))
    assert choose_keys(features, "it").called_like_joints == expected


def test_actions_of_which_nothing_is_known_are_asked_for(tmp_path: Path) -> None:
    features = {"observation.state": vector(3, ["state"]), "action": vector(3, None), TOP: image_feature()}
    folder = LeRobotSet(features=features).write(tmp_path / "set")
    refused(folder, r"does not tell what its actions are \(action: action, 3 numbers; .*--control-mode pd_joint_pos if")
    refused(folder, r"--control-mode is 'pd_joint_posn'; expected one of pd_joint_pos,", control_mode="pd_joint_posn")
    episode = read_episode(bring(folder, control_mode="pd_ee_delta_pose").paths[0])
    assert episode.attributes["control_mode"] == "pd_ee_delta_pose"
    with pytest.raises(UserError, match=r"begun with other settings .*control_mode: pd_ee_delta_pose there, unknown"):
        bring(folder, control_mode="unknown")


def test_changes_that_are_called_like_joints_are_no_targets(tmp_path: Path) -> None:
    made = LeRobotSet()
    made.columns["action"] = (np.asarray(made.columns["action"]) * 0.01).tolist()
    refused(made.write(tmp_path / "set"), "called like the joints, but are far from where these are.*--control-mode")


def test_more_targets_than_joints_are_refused(tmp_path: Path) -> None:
    features = {"observation.state": vector(2, None), "action": vector(3, None), TOP: image_feature()}
    made = LeRobotSet(features=features)
    made.columns["observation.state"] = [row[:2] for row in made.columns["observation.state"]]
    refused(made.write(tmp_path / "set"), "has 3 numbers an action and 2 of state", control_mode="pd_joint_pos")


@VERSIONS
def test_features_of_other_names_are_found(tmp_path: Path, version: str) -> None:
    made = LeRobotSet(lengths=[6, 6])
    state, action = made.columns["observation.state"], made.columns["action"]
    features = {name: image_feature() for name in ("image", "wrist_image")}
    features |= {"state": vector(3, ["state"]), "actions": vector(3, ["actions"])}
    other = LeRobotSet(lengths=[6, 6], features=features, columns={"state": state, "actions": action})
    folder = other.write(tmp_path / "set", version)
    dataset = bring(folder, control_mode="pd_ee_delta_pose")
    assert dataset.cameras == ("image", "wrist_image")
    np.testing.assert_array_equal(read_episode(dataset.paths[1]).actions, np.float32(action[6:11]))
    folder = folder.rename(tmp_path / "again")
    keys = {"image_key": ("wrist=wrist_image",), "state_key": ("state", "actions"), "action_key": ("actions",)}
    episode = read_episode(bring(folder, control_mode="unknown", **keys).paths[0])
    assert list(episode.frames) == ["wrist"] and episode.proprioception.shape == (6, 6)


@pytest.mark.parametrize(
    ("features", "request_", "message"),
    [
        ({"qpos": vector(3, None)}, {}, r"no feature called observation\.state or state; it has .*qpos.*--state-key"),
        ({"state": vector(3, None)}, {"state_key": ("qpos",)}, r"has no feature 'qpos'; it has state, actions"),
        ({"state": vector(3, None)}, {"state_key": ("image",)}, r"image is of type image; --state-key needs numbers"),
        ({"state": vector(3, None)}, {"image_key": ("state",)}, r"state is of type float32; cameras have to show"),
        ({"state": vector(3, None)}, {"image_key": ("a=image", "a=image")}, r"two cameras of one name \(a, a\)"),
        (
            {"state": vector(3, None), "observation.state": vector(3, None)},
            {},
            r"several features called obs.*--state-k",
        ),
        ({"state": vector(3, None) | {"shape": [2, 3]}}, {}, r"state has the shape \[2, 3\]; expected one dimension"),
        ({"state": {"dtype": "string", "shape": [1]}}, {}, r"state is of type string; --state-key needs numbers"),
    ],
)
def test_features_that_are_not_found_or_do_not_fit_are_named(
    tmp_path: Path, features: dict[str, Any], request_: dict[str, Any], message: str
) -> None:
    features = features | {"actions": vector(3, None), "image": image_feature()}
    made = LeRobotSet(lengths=[6], features=features, columns={"state": [], "actions": []})
    folder = tmp_path / "set"
    (folder / "meta").mkdir(parents=True)
    info = {"codebase_version": "v2.1", "fps": 10, "data_path": "x", "features": made.features}
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 6}\n')
    refused(folder, message, **request_)


def test_a_dataset_without_actions_is_read_when_that_is_said(tmp_path: Path) -> None:
    made = LeRobotSet()
    del made.features["action"], made.columns["action"]
    folder = made.write(tmp_path / "set")
    refused(folder, r"no feature called action or actions; it has .*--action-key with the one .* none of videos")
    assert not bring(folder, action_key=("none",)).has_actions


def test_what_was_understood_is_said_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [n for n, length in enumerate([6, 7, 9]) for _ in range(length)]
    made = LeRobotSet(tasks=("Pick.", "Pick.", "Put."), columns={"task_index": tasks})
    made.features |= {
        "observation.images.depth": image_feature(shape=[*SIZE, 1]),
        "observation.effort": vector(3, None),
    }
    made.columns["observation.effort"] = made.columns["action"]
    folder = made.write(tmp_path / "set")
    assert main(["import-lerobot", str(folder), "--out", str(tmp_path / "out"), "--episodes", "0,2"]) == 0
    said = capsys.readouterr().out
    for line in (
        f"{folder}: LeRobot v2.1, robot so101, 10 rows a second",
        "camera top: observation.images.top, images of 16x24, 3 channels",
        "state: observation.state, 3 numbers (shoulder, elbow, gripper)",
        "action: action, 3 numbers (shoulder, elbow, gripper); pd_joint_pos, 3 joint targets",
        "not read: observation.images.depth, observation.effort",
        "instruction of 1 episodes: 'Pick.'",
        "instruction of 1 episodes: 'Put.'",
        "episodes: 2 of 3, 15 rows; no feature tells success",
        f"2 episodes of {folder}: {tmp_path / 'out'}",
    ):
        assert line in said
    assert RenderedDataset(tmp_path / "out").spec["source_episodes"] == "0,2"


# Instructions


def test_every_episode_has_the_instruction_of_its_rows(tmp_path: Path) -> None:
    tasks = [0] * 6 + [1] * 7 + [0] * 9
    dataset = bring(LeRobotSet(tasks=TASKS, columns={"task_index": tasks}).write(tmp_path / "set", "v3.0"))
    assert [read_episode(path).instructions[0] for path in dataset.paths] == [TASKS[0], TASKS[1], TASKS[0]]
    assert dataset.spec["instruction"] == ""


def test_an_episode_whose_task_changes_is_refused_by_name_unless_an_instruction_is_given(tmp_path: Path) -> None:
    folder = LeRobotSet(tasks=TASKS, columns={"task_index": [0] * 9 + [1] * 13}).write(tmp_path / "set")
    message = rf"episode 1 of .*: its task changes at row 3, from '{TASKS[0]}' to '{TASKS[1]}'"
    refused(folder, message)
    dataset = bring(folder, skip_corrupt=True)
    assert len(dataset) == 2 and dataset.spec["source_episodes"] == "0,2"
    dataset = bring(folder.rename(tmp_path / "again"), instruction=("Tidy up.", "Clear the table."))
    assert [read_episode(path).instructions for path in dataset.paths] == [("Tidy up.", "Clear the table.")] * 3


@pytest.mark.parametrize(
    ("tasks", "index", "message"),
    [
        (TASKS, 5, "episode 0 of .*: its task_index is 5, which the table of tasks lacks: give --instruction TEXT"),
        (("",), 0, "its task 0 has no words: give --instruction TEXT"),
        ((None,), 0, "task 0 in the table of tasks of .* is None; expected a string"),
        (TASKS, None, "episode 0 of .*: task_index holds int64 with 6 gaps|task_index holds null"),
    ],
)
def test_rows_without_a_task_are_refused(tmp_path: Path, tasks: Any, index: Any, message: str) -> None:
    folder = LeRobotSet(lengths=[6], tasks=tasks, columns={"task_index": [index] * 6}).write(tmp_path / "set")
    refused(folder, message)
    assert len(bring(folder, instruction=("Do it.",))) == 1


# Episodes


@VERSIONS
def test_bad_empty_and_one_row_episodes_are_named_and_can_be_left_out(tmp_path: Path, version: str) -> None:
    made = LeRobotSet(lengths=[6, 0, 1, 7, 8, 6], records={4: {"length": 9}})
    made.columns["observation.state"][7 + 3] = [0.0, float("nan"), 0.0]
    folder = made.write(tmp_path / "set", version)
    for number, message in {
        1: "episode 1 of .* has 0 rows; an episode needs 2",
        2: "episode 2 of .* has 1 rows; an episode needs 2",
        3: r"episode 3 of .* \(row 3 of observation\.state holds NaN, infinity or a number too large",
        4: r"\.parquet is damaged \(it holds 8 rows of episode 4 of .*, whose table of episodes says 9",
    }.items():
        refused(folder, f"{message}.*--skip-corrupt", episodes=str(number))
    assert len(bring(folder, episodes="0,5")) == 2
    dataset = bring(folder.rename(tmp_path / "again"), skip_corrupt=True)
    assert dataset.spec["source_episodes"] == "0,5" and dataset.summary["num_steps"] == 10


@pytest.mark.parametrize("file_of", [lambda e, r: int(e > 0), lambda e, r: int((e, r) > (1, 3)), lambda e, r: 1])
def test_rows_that_are_in_another_file_than_the_table_says_are_found(tmp_path: Path, file_of: Any) -> None:
    made = LeRobotSet(file_of=file_of)
    moved, plain = bring(made.write(tmp_path / "moved", "v3.0")), bring(LeRobotSet().write(tmp_path / "set", "v3.0"))
    for a, b in zip(moved.paths, plain.paths, strict=True):
        one, other = read_episode(a), read_episode(b)
        assert np.array_equal(one.actions, other.actions)
        assert np.array_equal(one.frames["top"], other.frames["top"])


@pytest.mark.parametrize("name", ["next.success", "success"])
@pytest.mark.parametrize("kind", ["bool", "float32", "int64"])
def test_failures_are_left_out_unless_they_are_asked_for(
    tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    success = np.array([0] * 5 + [1] + [0] * 7 + [0] * 8 + [1]).astype(kind).tolist()
    made = LeRobotSet(features={TOP: image_feature(), name: {"dtype": kind, "shape": [1]}}, columns={name: success})
    folder = made.write(tmp_path / "set")
    dataset = bring(folder)
    assert dataset.spec["source_episodes"] == "0,2" and len(dataset) == 2
    assert "left out 1 of 3 episodes that did not succeed; --include-failures" in capsys.readouterr().out
    assert len(bring(folder.rename(tmp_path / "again"), include_failures=True)) == 3


def test_a_line_of_the_table_of_episodes_that_is_cut_off_is_named(tmp_path: Path) -> None:
    folder = LeRobotSet().write(tmp_path / "set")
    path = folder / "meta/episodes.jsonl"
    path.write_text(path.read_text()[:-20])
    refused(folder, r"line 3 of .*episodes\.jsonl is not valid JSON.*--skip-corrupt")
    assert len(bring(folder, skip_corrupt=True)) == 2


# Types of metadata


def test_indices_may_be_decimal_numbers(tmp_path: Path) -> None:
    records = {n: {"data/chunk_index": 0.0, "data/file_index": 0.0, "episode_index": float(n)} for n in range(3)}
    made = LeRobotSet(records=records, columns={"task_index": [0.0] * 22})
    assert len(bring(made.write(tmp_path / "set", "v3.0"))) == 3


def test_actions_of_a_second_dimension_of_one_are_read(tmp_path: Path) -> None:
    made = LeRobotSet()
    flat = made.columns["action"]
    made.columns["action"], made.features["action"]["shape"] = [[row] for row in flat], [1, 3]
    episode = read_episode(bring(made.write(tmp_path / "set")).paths[0])
    np.testing.assert_array_equal(episode.actions, np.float32(flat[:5]))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"fps": "30"}, r"info\.json\.fps is '30'; expected a number"),
        ({"fps": 0}, r"info\.json: fps is 0; it must be above 0"),
        ({"fps": None}, r"info\.json lacks fps"),
        ({"chunks_size": "1000"}, r"info\.json: chunks_size is '1000'; expected a whole number"),
        ({"features": []}, r"info\.json\.features is \[\]; expected an object"),
        (
            {"features": {"action": {"dtype": "float32", "shape": "3"}}},
            r"features\.action\.shape is '3'; expected a list",
        ),
        ({"features": {"action": {"shape": [3]}}}, r"features\.action lacks dtype"),
        ({"data_path": None}, r"info\.json lacks data_path"),
        (
            {"data_path": "../other/{episode_index}.parquet"},
            r"refers to '\.\./other/0\.parquet', which lies outside",
        ),
        (
            {"data_path": "/etc/{episode_index}"},
            r"info\.json: data_path: .* refers to '/etc/0', which lies outside of it",
        ),
        (
            {"data_path": "{episode_index.__class__}"},
            r"data_path: the path '{episode_index\.__class__}' is no template",
        ),
        ({"data_path": "{episode_index:999999999d}"}, "data_path: the path .* is no template"),
    ],
)
def test_a_description_of_other_types_is_refused_with_file_and_key(tmp_path: Path, info: Any, message: str) -> None:
    refused(LeRobotSet(info=info).write(tmp_path / "set"), message)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"data/chunk_index": None}, "data/chunk_index of episode 1 of .* is None; expected a whole number"),
        ({"data/file_index": -1}, "data/file_index of episode 1 of .* is -1; expected a whole number"),
        ({"data/file_index": 7, "length": 8}, r"holds 7 rows of episode 1 of .*, whose table of episodes says 8"),
        ({"length": None}, "length of episode 1 of .* is None; expected a whole number"),
        ({"episode_index": None}, "episode_index of an episode of .* is None; expected a whole number"),
    ],
)
def test_an_entry_of_the_table_of_episodes_of_other_types_costs_that_episode_alone(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    folder = LeRobotSet(records={1: record}).write(tmp_path / "set", "v3.0")
    refused(folder, message)
    assert len(bring(folder, skip_corrupt=True)) == 2


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            [[1.0, 2.0, 3.0]] * 8 + [None] + [[1.0, 2.0, 3.0]] * 13,
            r"episode 1 of .* \(rows of action hold \['3', 'None'\] numbers",
        ),
        (
            [[1.0, 2.0, 3.0]] * 8 + [[1.0]] + [[1.0, 2.0, 3.0]] * 13,
            r"episode 1 of .*rows of action hold \['1', '3'\] numbers; expected as many",
        ),
        ([[1.0, None, 3.0]] * 22, r"action holds double with 6 gaps; expected numbers"),
        ([[True, False, True]] * 22, r"action holds bool with 0 gaps; expected numbers"),
        ([["1", "2", "3"]] * 22, r"action holds string with 0 gaps; expected numbers"),
        ([[[1.0, 2.0, 3.0]] * 2] * 22, r"each row of action has the shape \[2, 3\]; expected one dimension"),
        ([[1.0, 2.0]] * 22, r"has 2 numbers a row; meta/info\.json says 3"),
        ([[1.0, 2.0, 1e39]] * 22, r"row 0 of action holds NaN, infinity or a number too large for float32"),
    ],
)
def test_numbers_that_are_none_are_named(tmp_path: Path, column: list[Any], message: str) -> None:
    refused(LeRobotSet(columns={"action": column}).write(tmp_path / "set"), message)


def test_repeated_and_missing_rows_and_columns_are_named(tmp_path: Path) -> None:
    rows = [*range(6), 0, 1, 2, 2, 3, 4, 5, *range(9)]
    refused(
        LeRobotSet(columns={"frame_index": rows}).write(tmp_path / "a"),
        "a row of episode 1 of .* is missing or there twice",
    )
    folder = LeRobotSet().write(tmp_path / "b")
    write_table(folder / "data/chunk-000/episode_000001.parquet", [{"episode_index": 1, "frame_index": 0}] * 7)
    refused(folder, r"episode_000001\.parquet is damaged \(it lacks the column observation\.state")
    (folder / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1")
    refused(folder, r"episode_000001\.parquet is damaged")
    twice = LeRobotSet(records={1: {"episode_index": 0}}).write(tmp_path / "c")
    refused(twice, "lists an episode twice in its table of episodes")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_images_outside_of_the_dataset_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(png(pixels(0, 0)))
    folder = LeRobotSet(lengths=[6]).write(tmp_path / "set")
    import pyarrow.parquet

    path = folder / "data/chunk-000/episode_000000.parquet"
    rows = pyarrow.parquet.read_table(path).to_pylist()
    write_table(path, [row | {TOP: {"bytes": None, "path": name}} for row in rows])
    with pytest.raises(UserError, match=f"refers to '{name}', which lies outside of it"):
        bring(folder)
