"""Rendered datasets on disk: what is written is read back, what is damaged or unfinished is refused; statistics."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from par_agent.cli.render import RenderConfig, main, summarise
from par_agent.data.episodes import RenderedDataset, episode_path, frame_steps, read_episode, write_episode
from par_agent.data.render_spec import RenderSpec
from par_agent.data.statistics import RunningStatistics
from par_agent.errors import UserError
from par_agent.tasks import PROTOCOL_SEED
from rendered import made_up_episode, write_dataset

SPEC = RenderSpec("PickCube-v1", "demos.h5", 1, "Move.", cameras=("render_camera", "base_camera"), stride=4)


def test_an_episode_is_read_back_as_written(tmp_path):
    written = made_up_episode(3, SPEC, (6, 8), 10)
    write_episode(tmp_path / "episode.h5", written)
    found = read_episode(tmp_path / "episode.h5")
    assert sorted(found.frames) == ["base_camera", "render_camera"]
    for camera in found.frames:
        assert found.frames[camera].dtype == np.uint8
        assert np.array_equal(found.frames[camera], written.frames[camera])
    assert found.frame_steps.tolist() == [0, 4, 8, 10] and found.frame_steps.dtype == np.int32
    assert np.array_equal(found.proprioception, written.proprioception) and found.proprioception.dtype == np.float32
    assert np.array_equal(found.actions, written.actions) and found.actions.dtype == np.float32
    assert found.attributes == written.attributes


def test_frames_are_left_out_when_not_asked_for(tmp_path):
    write_episode(tmp_path / "episode.h5", made_up_episode(0, SPEC, (6, 8), 5))
    found = read_episode(tmp_path / "episode.h5", frames=False)
    assert found.frames == {} and len(found.proprioception) == 6


def test_video_has_no_actions(tmp_path):
    spec = RenderSpec("PickCube-v1", "random-motion", 1, "Move.")
    write_episode(tmp_path / "episode.h5", made_up_episode(0, spec, (6, 8), 5))
    assert read_episode(tmp_path / "episode.h5").actions is None


def test_equal_episodes_give_equal_bytes(tmp_path):
    for name in ("a.h5", "b.h5"):
        write_episode(tmp_path / name, made_up_episode(1, SPEC, (32, 32), 9))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_one_frame_is_read_without_the_others(tmp_path):
    write_episode(tmp_path / "episode.h5", made_up_episode(0, SPEC, (6, 8), 10))
    with h5py.File(tmp_path / "episode.h5") as file:
        assert file["frames/render_camera"].chunks == (1, 6, 8, 3)


def test_a_full_disk_leaves_no_file_and_no_half(tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> int:
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_episode(tmp_path / "episode.h5", made_up_episode(0, SPEC, (6, 8), 10))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_episode(tmp_path / "episode.h5", made_up_episode(0, SPEC, (6, 8), 10))
    assert read_episode(tmp_path / "episode.h5").frames


@pytest.mark.parametrize("kept", [0, 0.3, 0.9])
def test_a_truncated_episode_is_refused_with_advice(tmp_path, kept):
    path = tmp_path / "episode.h5"
    write_episode(path, made_up_episode(0, SPEC, (6, 8), 10))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UserError, match=r"episode\.h5 is damaged.*delete it and run `par-agent render` again"):
        read_episode(path)


def test_a_finished_dataset_lists_its_episodes(tmp_path):
    write_dataset(tmp_path, episodes=3, cameras=("render_camera", "base_camera"))
    dataset = RenderedDataset(tmp_path)
    assert len(dataset) == 3 and dataset.has_actions
    assert dataset.cameras == ("render_camera", "base_camera")
    assert dataset.paths == [episode_path(tmp_path, number) for number in range(3)]


def test_a_dataset_of_video_has_no_actions(tmp_path):
    write_dataset(tmp_path, source="random-motion")
    assert not RenderedDataset(tmp_path).has_actions


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "spec.json").unlink(), "is not a rendered dataset"),
        (lambda folder: (folder / "dataset.json").unlink(), "is unfinished"),
        (lambda folder: episode_path(folder, 1).unlink(), "lists 3 episodes but holds 2"),
        (
            lambda folder: (folder / "dataset.json").write_text('{"num_episodes": 3}'),
            r"dataset\.json lacks actions, extra, image_sizes",
        ),
        (lambda folder: (folder / "dataset.json").write_text("{"), "not valid JSON"),
    ],
)
def test_an_incomplete_dataset_is_refused(tmp_path, damage, message):
    write_dataset(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        RenderedDataset(tmp_path)


def test_an_absent_folder_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(UserError, match="par-agent render"):
        RenderedDataset(tmp_path / "absent")


def test_the_summary_of_a_folder_counts_all_its_episodes(tmp_path):
    spec = write_dataset(tmp_path, episodes=4)
    summary = summarise(tmp_path)
    assert summary == json.loads((tmp_path / "dataset.json").read_text())
    episodes = [made_up_episode(number, spec, (16, 24), 10 + number) for number in range(4)]
    assert summary["num_episodes"] == 4
    assert summary["num_steps"] == 10 + 11 + 12 + 13
    assert summary["num_frames"] == sum(len(episode.frame_steps) for episode in episodes) == 4 + 4 + 4 + 5
    assert summary["actions"]


def test_the_summary_of_videos_says_that_there_are_no_actions(tmp_path):
    write_dataset(tmp_path, source="random-motion")
    assert summarise(tmp_path)["actions"] is False


@pytest.mark.parametrize("pieces", [[7], [1, 6], [3, 0, 4], [1] * 7])
def test_running_statistics_do_not_depend_on_the_pieces(pieces):
    rows = np.random.default_rng(0).normal(1000, 1e-3, (7, 2, 3)).astype(np.float32)
    statistics = RunningStatistics()
    for piece in np.split(rows, np.cumsum(pieces)[:-1]):
        statistics.add(piece)
    found = {name: np.array(values) for name, values in statistics.result().items()}
    exact = rows.astype(np.float64)
    for name, expected in {
        "mean": exact.mean(0),
        "std": exact.std(0),
        "min": exact.min(0),
        "max": exact.max(0),
    }.items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_a_constant_feature_has_no_spread():
    statistics = RunningStatistics()
    statistics.add(np.full((1000, 1), 0.1, np.float32))
    assert statistics.result()["std"][0] < 1e-7


def test_statistics_of_nothing_are_an_error():
    statistics = RunningStatistics()
    statistics.add(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="no rows"):
        statistics.result()


@pytest.mark.parametrize(
    ("num_steps", "stride", "phase", "expected"),
    [
        (20, 8, 0, [0, 8, 16, 20]),
        (16, 8, 0, [0, 8, 16]),
        (20, 8, 3, [3, 11, 19, 20]),
        (20, 8, 4, [4, 12, 20]),
        (5, 8, 7, [5]),
        (0, 8, 0, [0]),
        (3, 1, 0, [0, 1, 2, 3]),
    ],
)
def test_frames_are_taken_at_chunk_boundaries_and_at_the_end(num_steps, stride, phase, expected):
    assert frame_steps(num_steps, stride, phase).tolist() == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_episodes": 0}, "num_episodes is 0"),
        ({"stride": 0}, "stride is 0"),
        ({"phase": 4}, "phase is 4; it must be from 0 to stride - 1 = 3"),
        ({"phase": -1}, "phase is -1"),
        ({"cameras": ()}, "cameras is empty"),
        ({"size": (0, 8)}, "size is"),
        ({"motion_steps": -1}, "motion_steps is -1"),
        ({"first_seed": -5}, "first_seed is -5"),
        ({"first_seed": PROTOCOL_SEED}, f"from {PROTOCOL_SEED}"),
        ({"first_seed": PROTOCOL_SEED - 9}, f"from {PROTOCOL_SEED}"),
    ],
)
def test_bad_specs_are_refused(fields, message):
    valid = {"num_episodes": 10, "stride": 4, "first_seed": PROTOCOL_SEED - 10}
    RenderSpec(env_id="PickCube-v1", source="random-motion", instruction="Move.", **valid)
    with pytest.raises(UserError, match=message):
        RenderSpec(env_id="PickCube-v1", source="random-motion", instruction="Move.", **{**valid, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either --trajectory FILE.h5 or --random-motion TASK"),
        ({"trajectory": Path("a.h5"), "random_motion": "PickCube"}, "either --trajectory"),
        ({"random_motion": "PickCub"}, "'PickCub'.*PickCube"),
        ({"random_motion": "PickCube", "num": 0}, "num is 0"),
        ({"random_motion": "PickCube", "workers": 0}, "workers is 0"),
        ({"trajectory": Path("absent.h5")}, r"no trajectory file at absent\.h5"),
    ],
)
def test_bad_commands_are_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        main(RenderConfig(out=tmp_path / "out", **fields))
    assert not (tmp_path / "out").exists()
