"""Faults of LeRobot datasets: each is named with its file, feature and episode, and costs no other episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lerobot_sets import TOP, LeRobotSet, bring, image_feature, pixels, png, refused, write_table
from par_agent.data.episodes import read_episode
from par_agent.errors import UserError

pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: pip install 'par-agent[lerobot]'")

VERSIONS = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


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
    assert dataset.spec.source_episodes == "0,5" and dataset.summary["num_steps"] == 10


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
    assert dataset.spec.source_episodes == "0,2" and len(dataset) == 2
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
        ({"fps": "30"}, r"info\.json\.fps is '30'; expected a finite number"),
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
