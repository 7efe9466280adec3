"""LeRobot datasets of other tools: v2.1 as v3.0, with images of any kind, whatever they call things."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lerobot_sets import SIZE, TASKS, TOP, LeRobotSet, bring, image_feature, pixels, png, refused, vector
from par_agent.cli import main
from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.lerobot_features import Feature, LeRobotRequest, choose_keys
from par_agent.data.lerobot_folder import LeRobotFolder
from par_agent.data.lerobot_plan import plan_import
from par_agent.errors import UserError

pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'par-agent[lerobot]'")

VERSIONS = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


# Layouts


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_what_a_dataset_holds_is_read_in_every_layout(tmp_path: Path, version: str) -> None:
    made = LeRobotSet()
    dataset = bring(made.write(tmp_path / "set", version))
    assert len(dataset) == 3 and dataset.spec.env_id == "so101" and dataset.cameras == ("top",)
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
    refused(folder, r"episode_000000\.mp4 has 20 frames a second; expected 10, one each row")


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


def test_videos_of_16_bits_are_refused_by_name(tmp_path: Path) -> None:
    import imageio_ffmpeg

    folder = LeRobotSet(lengths=[6], features={TOP: image_feature(dtype="video", shape=[*SIZE, 1])}).write(
        tmp_path / "set"
    )
    path = folder / f"videos/chunk-000/{TOP}/episode_000000.mkv"
    path.parent.mkdir(parents=True)
    options = {
        "pix_fmt_in": "gray16le",
        "pix_fmt_out": "gray16le",
        "codec": "ffv1",
        "quality": None,
        "macro_block_size": 1,
    }
    writer = imageio_ffmpeg.write_frames(str(path), SIZE[::-1], fps=10, **options)
    writer.send(None)
    for _ in range(6):
        writer.send(np.full(SIZE, 3000, np.uint16).tobytes())
    writer.close()
    path.rename(path.with_suffix(".mp4"))
    refused(folder, r"episode_000000\.mp4 has more than 8 bits a channel, as depth has")


def test_images_of_16_bits_are_refused_by_name(tmp_path: Path) -> None:
    deep = png(np.full(SIZE, 3000, np.uint16))
    made = LeRobotSet(features={TOP: image_feature(shape=[*SIZE, 1])}, images={TOP: lambda e, r: deep})
    refused(
        made.write(tmp_path / "set"), r"row 0 of observation\.images\.top of episode 0 of .*more than 8 bits a chann"
    )


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


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([3, 16, 24], ["channels", "height", "width"]),
        ([3, 16, 24], None),
        ([24, 16, 3], ["width", "height", "channel"]),
        ([16, 24, 3], ["rows", "columns", "colours"]),
    ],
)
def test_the_order_of_an_images_axes_is_what_their_names_say(
    tmp_path: Path, shape: list[int], names: list[str] | None
) -> None:
    folder = LeRobotSet(features={TOP: image_feature(shape=shape, names=names)}).write(tmp_path / "set")
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
    assert choose_keys(features, "it", LeRobotRequest()).called_like_joints == expected


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
    assert RenderedDataset(tmp_path / "out").spec.source_episodes == "0,2"


# Instructions


def test_every_episode_has_the_instruction_of_its_rows(tmp_path: Path) -> None:
    tasks = [0] * 6 + [1] * 7 + [0] * 9
    dataset = bring(LeRobotSet(tasks=TASKS, columns={"task_index": tasks}).write(tmp_path / "set", "v3.0"))
    assert [read_episode(path).instructions[0] for path in dataset.paths] == [TASKS[0], TASKS[1], TASKS[0]]
    assert dataset.spec.instruction == ""


def test_an_episode_whose_task_changes_is_refused_by_name_unless_an_instruction_is_given(tmp_path: Path) -> None:
    folder = LeRobotSet(tasks=TASKS, columns={"task_index": [0] * 9 + [1] * 13}).write(tmp_path / "set")
    message = rf"episode 1 of .*: its task changes at row 3, from '{TASKS[0]}' to '{TASKS[1]}'"
    refused(folder, message)
    dataset = bring(folder, skip_corrupt=True)
    assert len(dataset) == 2 and dataset.spec.source_episodes == "0,2"
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
