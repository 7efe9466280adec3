"""LeRobot datasets: what is exported has the format's files and comes back equal; foreign ones can be imported."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from par_agent.cli import main
from par_agent.data import lerobot
from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.index import EpisodeIndex
from par_agent.data.lerobot_export import export_lerobot
from par_agent.data.lerobot_features import LeRobotRequest
from par_agent.data.lerobot_folder import LeRobotFolder
from par_agent.data.lerobot_import import import_lerobot
from par_agent.data.lerobot_plan import plan_import
from par_agent.errors import UserError
from rendered import write_dataset

parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'par-agent[lerobot]'")

CAMERAS = ("render_camera", "base_camera")


def bring(folder: Path, out: Path, **request: Any) -> int:
    """Imports a LeRobot dataset; returns how many episodes there are then."""
    return import_lerobot(plan_import(LeRobotFolder(folder), LeRobotRequest(**request)), out)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> RenderedDataset:
    """Five episodes of 10 to 14 control steps with two cameras, frames of 32x48 pixels every 4 steps."""
    folder = tmp_path_factory.mktemp("rendered") / "PickCube"
    write_dataset(folder, episodes=5, size=(32, 48), image_size=(64, 96), cameras=CAMERAS)
    return RenderedDataset(folder)


@pytest.fixture(scope="module", params=["videos", "images"])
def exported(request: pytest.FixtureRequest, rendered: RenderedDataset) -> Path:
    out = rendered.folder.with_name(f"lerobot-{request.param}")
    words = ["--images"] if request.param == "images" else []
    assert main(["export-lerobot", "--data", str(rendered.folder), "--out", str(out), *words]) == 0
    return out


def test_what_is_exported_comes_back(rendered: RenderedDataset, exported: Path, tmp_path: Path) -> None:
    assert main(["import-lerobot", str(exported), "--out", str(tmp_path / "back")]) == 0
    back = RenderedDataset(tmp_path / "back")
    assert back.spec == dataclasses.replace(rendered.spec, recorded=False) and len(back) == 5
    assert back.summary == rendered.summary and back.image_size("base_camera") == (64, 96)
    for path, original in zip(back.paths, rendered.paths, strict=True):
        a, b = read_episode(path), read_episode(original)
        for name in ("actions", "proprioception", "frame_steps"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
            assert getattr(a, name).dtype == getattr(b, name).dtype
        assert a.attributes == b.attributes and list(a.frames) == list(b.frames)
        for camera in CAMERAS:
            assert a.frames[camera].shape == b.frames[camera].shape
            error = np.abs(a.frames[camera].astype(int) - b.frames[camera])
            assert error.max() == 0 if exported.name.endswith("images") else error.mean() < 4


def test_rows_are_control_steps_with_the_newest_frame(rendered: RenderedDataset, exported: Path) -> None:
    table = parquet.read_table(exported / lerobot.numbered(lerobot.DATA, 0)).to_pylist()
    assert len(table) == sum(range(11, 16)) and [row["index"] for row in table] == list(range(len(table)))
    rows = [row for row in table if row["episode_index"] == 2]
    episode = read_episode(rendered.paths[2])
    assert [row["frame_index"] for row in rows] == list(range(13))
    np.testing.assert_array_equal([row["observation.state"] for row in rows], episode.proprioception)
    np.testing.assert_array_equal([row["action"] for row in rows], episode.actions[[*range(12), 11]])
    assert [step for step, row in enumerate(rows) if row["frame_is_new"]] == episode.frame_steps.tolist()
    assert [row["next.done"] for row in rows] == [False] * 12 + [True]
    assert rows[3]["timestamp"] == pytest.approx(3 / 20)


def test_meta_files_describe_what_is_there(exported: Path) -> None:
    info = json.loads((exported / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and info["splits"] == {"train": "0:5"}
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (5, 65, 1)
    features = info["features"]
    assert features["action"] == {
        "dtype": "float32",
        "shape": [8],
        "names": [*(f"joint_{n}" for n in range(7)), "command_7"],
    }
    assert features["observation.state"]["shape"] == [9]
    kind = "image" if exported.name.endswith("images") else "video"
    assert features["observation.images.base_camera"]["dtype"] == kind
    assert features["observation.images.base_camera"]["shape"] == [32, 48, 3]
    columns = set(parquet.read_schema(exported / lerobot.numbered(lerobot.DATA, 0)).names)
    assert columns == {name for name, feature in features.items() if feature["dtype"] != "video"}
    statistics = json.loads((exported / "meta/stats.json").read_text())
    assert statistics.keys() == features.keys()
    for name, measures in statistics.items():
        assert measures.keys() == {"mean", "std", "min", "max", "count"} and measures["count"] == [65]
        shape = (3, 1, 1) if name.startswith("observation.images") else tuple(features[name]["shape"])
        assert np.shape(measures["mean"]) == shape
    episodes = parquet.read_table(exported / lerobot.numbered(lerobot.EPISODES, 0)).to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"]) for e in episodes] == [
        (0, 11),
        (11, 23),
        (23, 36),
        (36, 50),
        (50, 65),
    ]
    assert all(e["tasks"] == ["Move the square."] and e["data/file_index"] == 0 for e in episodes)
    np.testing.assert_allclose(np.mean([e["stats/action/count"] for e in episodes]), 13)
    if kind == "video":
        key = "videos/observation.images.base_camera"
        assert [e[f"{key}/from_timestamp"] for e in episodes] == pytest.approx([0, 0.55, 1.15, 1.8, 2.5])
        assert episodes[-1][f"{key}/to_timestamp"] == pytest.approx(65 / 20)


def test_tasks_have_the_index_that_pandas_looks_for(exported: Path) -> None:
    pandas = pytest.importorskip("pandas")
    tasks = pandas.read_parquet(exported / "meta/tasks.parquet")
    assert tasks.index.tolist() == ["Move the square."] and tasks.task_index.tolist() == [0]
    assert tasks.index.name == "task"


def test_images_that_are_shown_again_are_stored_once(rendered: RenderedDataset, tmp_path: Path) -> None:
    export_lerobot(rendered, tmp_path / "out", images=True)
    path = tmp_path / "out" / lerobot.numbered(lerobot.DATA, 0)
    rows = parquet.read_table(path, columns=["observation.images.base_camera"])[0].to_pylist()
    assert len({row["bytes"] for row in rows}) < len(rows) / 2
    column = next(
        parquet.ParquetFile(path).metadata.row_group(0).column(n)
        for n in range(20)
        if "base_camera.bytes" in parquet.ParquetFile(path).metadata.row_group(0).column(n).path_in_schema
    )
    first = [row["bytes"] for row in rows[:11]]
    assert column.total_uncompressed_size < 1.3 * sum(map(len, set(first))) + 500


def test_many_episodes_go_into_several_files(
    rendered: RenderedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot, "DATA_MEGABYTES", 0)
    monkeypatch.setattr(lerobot, "VIDEO_ROWS", 0)
    monkeypatch.setattr(lerobot, "FILES_PER_CHUNK", 2)
    export_lerobot(rendered, tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out/data").rglob("*.parquet"))
    assert found == [f"data/chunk-{n // 2:03d}/file-{n % 2:03d}.parquet" for n in range(5)]
    assert len(list((tmp_path / "out/videos/observation.images.base_camera").rglob("*.mp4"))) == 5
    bring(tmp_path / "out", tmp_path / "back")
    assert RenderedDataset(tmp_path / "back").summary == rendered.summary


def foreign(exported: Path, folder: Path, **changes: object) -> Path:
    """The export as if another tool had written it."""
    shutil.copytree(exported, folder)
    (folder / lerobot.EXPORT_RECORD).unlink()
    info = json.loads((folder / lerobot.INFO).read_text())
    (folder / lerobot.INFO).write_text(json.dumps(info | {"robot_type": "so101"} | changes))
    return folder


def test_a_foreign_dataset_becomes_training_data(exported: Path, rendered: RenderedDataset, tmp_path: Path) -> None:
    source = foreign(exported, tmp_path / "foreign")
    bring(source, tmp_path / "out", stride=5, cameras=("base_camera",), crop=(0, 8, 32, 32), size=(16, 16))
    dataset = RenderedDataset(tmp_path / "out")
    assert (dataset.spec.env_id, dataset.spec.instruction) == ("so101", "Move the square.")
    assert dataset.cameras == ("base_camera",) and dataset.spec.crop == (0, 8, 32, 32)
    found, original = read_episode(dataset.paths[3]), read_episode(rendered.paths[3])
    assert found.frame_steps.tolist() == [0, 5, 10, 13]
    assert found.frames["base_camera"].shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(found.actions, original.actions)
    assert found.attributes["control_mode"] == "pd_joint_pos"
    assert EpisodeIndex(dataset, 5).action_size == 8
    assert dataset.image_size("base_camera") == (32, 48)


def test_an_import_goes_on_where_it_was_stopped(exported: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for out in (whole, stopped):
        bring(exported, out)
    for name in ("dataset.json", "episodes/episode_000001.h5", "episodes/episode_000003.h5"):
        (stopped / name).unlink()
    bring(exported, stopped)
    for path in whole.rglob("*.*"):
        assert path.read_bytes() == (stopped / path.relative_to(whole)).read_bytes(), path


def test_action_free_video_is_exported_and_imported(tmp_path: Path) -> None:
    write_dataset(tmp_path / "video", source="random-motion", episodes=2)
    export_lerobot(RenderedDataset(tmp_path / "video"), tmp_path / "out")
    assert "action" not in json.loads((tmp_path / "out/meta/info.json").read_text())["features"]
    bring(tmp_path / "out", tmp_path / "back")
    assert not RenderedDataset(tmp_path / "back").has_actions


def test_several_wordings_come_back(tmp_path: Path) -> None:
    texts = ("Move the square.", "Shift the square.")
    write_dataset(tmp_path / "data", episodes=2, instruction=texts)
    export_lerobot(RenderedDataset(tmp_path / "data"), tmp_path / "out")
    episodes = parquet.read_table(tmp_path / "out" / lerobot.numbered(lerobot.EPISODES, 0))
    assert episodes["tasks"].to_pylist() == [list(texts)] * 2
    bring(tmp_path / "out", tmp_path / "back")
    back = RenderedDataset(tmp_path / "back")
    assert [read_episode(path).instructions for path in back.paths] == [texts] * 2
    assert back.spec.instruction == texts


def test_extra_observations_come_back(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", episodes=2, extra=("goal_pos",))
    original = RenderedDataset(tmp_path / "data")
    export_lerobot(original, tmp_path / "out")
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["features"]["observation.extra.goal_pos"]["names"] == ["goal_pos_0", "goal_pos_1", "goal_pos_2"]
    bring(tmp_path / "out", tmp_path / "back")
    back = RenderedDataset(tmp_path / "back")
    assert back.extra == original.extra == {"goal_pos": 3}
    for a, b in zip(back.paths, original.paths, strict=True):
        np.testing.assert_array_equal(read_episode(a).extra["goal_pos"], read_episode(b).extra["goal_pos"])
        assert read_episode(a).extra["goal_pos"].any()


def test_bad_exports_are_refused_and_leave_nothing(rendered: RenderedDataset, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists; choose another --out"):
        export_lerobot(rendered, tmp_path / "there")
    with pytest.raises(UserError, match="fps is 0"):
        export_lerobot(rendered, tmp_path / "out", fps=0)
    write_dataset(tmp_path / "odd", size=(15, 24))
    with pytest.raises(UserError, match="15x24 pixels; videos need even sizes: give --images"):
        export_lerobot(RenderedDataset(tmp_path / "odd"), tmp_path / "out")
    write_dataset(tmp_path / "late", phase=2)
    with pytest.raises(UserError, match="was rendered with --phase 2"):
        export_lerobot(RenderedDataset(tmp_path / "late"), tmp_path / "out")
    write_dataset(tmp_path / "damaged")
    (tmp_path / "damaged/episodes/episode_000001.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"episode_000001\.h5 is damaged"):
        export_lerobot(RenderedDataset(tmp_path / "damaged"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "late", "odd", "there"]


def test_bad_imports_are_explained(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"nowhere is not a LeRobot dataset \(no meta/info\.json\)"):
        LeRobotFolder(Path("nowhere"))
    with pytest.raises(UserError, match=r"has the format v1\.6; expected v2\.0 to v3\.0: convert it"):
        LeRobotFolder(foreign(exported, tmp_path / "old", codebase_version="v1.6"))
    source = foreign(exported, tmp_path / "foreign")
    with pytest.raises(UserError, match="has no camera 'wrist'; it has base_camera, render_camera"):
        bring(source, out, cameras=("wrist",))
    for change in ({"size": (8, 8)}, {"stride": 4}, {"control_mode": "pd_joint_pos"}, {"action_key": ("action",)}):
        with pytest.raises(UserError, match="knows its frames and actions: leave --crop, --size, --stride, --control"):
            bring(exported, out, **change)
    assert not out.exists()
    path = source / lerobot.numbered(lerobot.DATA, 0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"file-000\.parquet is damaged"):
        bring(source, out)
    assert not out.exists()


def test_picked_episodes_of_an_export_keep_what_belongs_to_them(
    exported: Path, rendered: RenderedDataset, tmp_path: Path
) -> None:
    assert bring(exported, tmp_path / "out", episodes="1,3-4") == 3
    dataset = RenderedDataset(tmp_path / "out")
    assert dataset.spec.source_episodes == "1,3-4"
    for path, number in zip(dataset.paths, (1, 3, 4), strict=True):
        a, b = read_episode(path), read_episode(rendered.paths[number])
        assert a.attributes == b.attributes and np.array_equal(a.actions, b.actions)


def test_an_export_that_was_changed_later_is_refused(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "changed")
    record = json.loads((tmp_path / "changed" / lerobot.EXPORT_RECORD).read_text())
    (tmp_path / "changed" / lerobot.EXPORT_RECORD).write_text(json.dumps(record | {"episodes": record["episodes"][:3]}))
    with pytest.raises(UserError, match=r"par_agent\.json describes 3 episodes, the dataset has episode 4: .*delete"):
        LeRobotFolder(tmp_path / "changed")
    record["spec"]["cameras"] = ["hand_camera"]
    (tmp_path / "changed" / lerobot.EXPORT_RECORD).write_text(json.dumps(record))
    with pytest.raises(UserError, match="lacks its camera 'hand_camera'; copy or export the dataset again"):
        bring(tmp_path / "changed", tmp_path / "out")


def test_a_truncated_video_is_named(rendered: RenderedDataset, tmp_path: Path) -> None:
    export_lerobot(rendered, tmp_path / "lerobot")
    path = tmp_path / "lerobot" / lerobot.numbered(lerobot.VIDEO, 0, video_key="observation.images.base_camera")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"file-000\.mp4 is damaged|file-000\.mp4 ends before its frame"):
        bring(tmp_path / "lerobot", tmp_path / "out")


def test_without_pyarrow_the_error_names_the_extra(rendered: RenderedDataset, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['pyarrow'] = None; from par_agent.cli import main; "
        f"sys.exit(main(['export-lerobot', '--data', {str(rendered.folder)!r}, '--out', {str(tmp_path / 'out')!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "pip install 'par-agent[lerobot]'" in result.stderr
    assert not list(tmp_path.iterdir())
