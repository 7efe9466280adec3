"""Reads an existing LeRobotDataset, v2.0 to v3.0: what it says of itself, and where its episodes are.

:mod:`par_agent.data.lerobot` shows the files of v3.0. Those of v2.0 and v2.1 are::

    meta/info.json                                sizes, frames a second, features
    meta/tasks.jsonl                              {"task_index": 0, "task": "..."} a line
    meta/episodes.jsonl                           {"episode_index": 0, "length": 120, "tasks": ["..."]} a line
    data/chunk-000/episode_000000.parquet         one row a control step, one episode a file
    videos/chunk-000/<feature>/episode_000000.mp4 the frames of those rows

Their table of episodes is brought into the form of v3.0 when the folder is opened. Nothing in these files is taken on
trust: every method raises a UserError that names the file, the key, and the episode where there is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import numpy as np

from par_agent.data import lerobot
from par_agent.data.episodes import IMAGE_SIZE, Attributes
from par_agent.data.lerobot_features import Feature
from par_agent.data.tables import ADVICE, Table
from par_agent.errors import UserError, user_errors
from par_agent.utils.files import inside, naming, read_content, read_object
from par_agent.utils.json_fields import check, parse_json


class _Feature(TypedDict):
    """What is needed of a feature's description."""

    dtype: str
    shape: list[int]


class _Info(TypedDict):
    """What is needed of meta/info.json."""

    fps: float
    data_path: str
    features: dict[str, _Feature]


class LeRobotFolder:
    """An existing LeRobotDataset.

    Raises:
        UserError: no such dataset, another version, a description that lacks something, or pyarrow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, path = folder, folder / lerobot.INFO
        lerobot.pyarrow_module("")
        if not path.is_file():
            raise UserError(f"{folder} is not a LeRobot dataset (no {lerobot.INFO})")
        self.info = read_object(inside(folder, lerobot.INFO))
        self.version = str(self.info.get("codebase_version"))
        """Of its format."""
        if not self.version.startswith(("v2.", "v3.")):
            raise UserError(
                f"{folder} has the format {self.version}; expected v2.0 to v3.0: convert it with LeRobot's own scripts"
            )
        self._is_v2 = self.version.startswith("v2.")
        check(str(path), self.info, _Info)
        check(f"{path}.robot_type", self.info.get("robot_type"), str | None)
        self.fps = float(self.info["fps"])
        """Rows a second."""
        with naming(path):
            self.features = [Feature.read(name, content) for name, content in self.info["features"].items()]
        if self.fps <= 0:
            raise UserError(f"{path}: fps is {self.fps:g}; it must be above 0")
        self.unreadable: list[UserError] = []
        """What is wrong with those rows of the table of episodes that are not in :attr:`records`."""
        self.records = self._read_episodes()
        """Rows of that table, in the form of v3.0, by the episode's number, ascending."""
        self.export_record: _ExportRecord | None = None
        """What this package's export adds; None: another tool wrote the dataset."""
        if (folder / lerobot.EXPORT_RECORD).is_file():
            self.export_record = self._read_export_record(inside(folder, lerobot.EXPORT_RECORD))

    def _read_episodes(self) -> dict[int, dict[str, Any]]:
        records: dict[int, dict[str, Any]] = {}
        places = ["data", *(f"videos/{feature.name}" for feature in self.features if feature.dtype == "video")]
        per_chunk = self.info.get("chunks_size", lerobot.FILES_PER_CHUNK) if self._is_v2 else 1
        per_chunk = max(1, whole_number(per_chunk, f"{self.folder / lerobot.INFO}: chunks_size"))
        for row in self._lines("episodes") if self._is_v2 else self._episodes():
            try:
                if isinstance(row, UserError):
                    raise row
                number = whole_number(row.get("episode_index"), f"episode_index of an episode of {self.folder}")
            except UserError as error:
                self.unreadable.append(error)
                continue
            if number in records:
                raise UserError(f"{self.folder} lists an episode twice in its table of episodes; {ADVICE}")
            records[number] = row
            for place in places if self._is_v2 else ():  # every episode has its own files
                row |= {f"{place}/chunk_index": number // per_chunk, f"{place}/file_index": number}
                row[f"{place}/from_timestamp"] = 0.0
        return dict(sorted(records.items()))

    def _lines(self, name: str) -> Iterator[dict[str, Any] | UserError]:
        """Rows of a table of v2.x, or why some cannot be read."""
        path = inside(self.folder, f"meta/{name}.jsonl")
        for number, line in enumerate(read_content(path).splitlines(), 1):
            if line.strip():
                try:
                    row = parse_json(line, f"line {number} of {path}")
                    check(f"line {number} of {path}", row, dict)
                    yield row
                except UserError as error:
                    yield error

    def _episodes(self) -> Iterator[dict[str, Any] | UserError]:
        """Rows of the table of episodes of v3.0, or why some cannot be read."""
        for path in sorted((self.folder / "meta/episodes").rglob("*.parquet")):
            try:
                yield from Table(inside(self.folder, str(path.relative_to(self.folder)))).records()
            except UserError as error:
                yield error

    def _read_export_record(self, path: Path) -> _ExportRecord:
        record = read_object(path, _ExportRecord)
        names = {name for about in record["episodes"] for name in about if not name.startswith(IMAGE_SIZE)}
        if unknown := sorted(names - set(get_type_hints(Attributes))):
            raise UserError(f"{path} tells {unknown[0]!r} of an episode, which is not known; {ADVICE}")
        stats = self.folder / lerobot.STATS
        if stats.is_file() and (
            lost := sorted(set(read_object(inside(self.folder, lerobot.STATS))) - set(self.info["features"]))
        ):
            raise UserError(f"{self.folder / lerobot.INFO} lacks the feature {lost[0]}, which {stats} has; {ADVICE}")
        if len(record["episodes"]) <= max(self.records, default=-1):
            raise UserError(
                f"{path} describes {len(record['episodes'])} episodes, the dataset has episode {max(self.records)}: it "
                "was changed since par_agent exported it; delete that file to read it as any other dataset"
            )
        return record

    @cached_property
    def tasks(self) -> dict[int, str]:
        """Instructions by the index that rows have."""
        where = f"the table of tasks of {self.folder}"
        tasks: dict[int, str] = {}
        for row in self._lines("tasks") if self._is_v2 else Table(inside(self.folder, lerobot.TASKS)).records():
            if isinstance(row, UserError):
                raise row
            number = whole_number(row.get("task_index"), f"task_index in {where}")
            text = row.get("task", row.get("__index_level_0__"))  # pandas' name of a nameless index
            check(f"task {number} in {where}", text, str)
            if tasks.setdefault(number, str(text)) != text:
                raise UserError(f"{where} has task {number} twice; {ADVICE}")
        return tasks

    def name(self, number: int) -> str:
        """An episode in messages."""
        return f"episode {number} of {self.folder}"

    def rows(self, number: int, columns: Sequence[str]) -> Table:
        """Columns of an episode's rows, in their order; a row that is missing or there twice is an error."""
        where = self.name(number)
        length = whole_number(self.records[number].get("length"), f"length of {where}")
        if length < 2:
            raise UserError(f"{where} has {length} rows; an episode needs 2 to show what an action leads to")
        table = self._table(number, length, [*dict.fromkeys(["frame_index", *columns])])
        if len(table) != length:
            raise table.damaged(f"it holds {len(table)} rows of {where}, whose table of episodes says {length}")
        if (np.diff(table.matrix("frame_index")[:, 0]) != 1).any():
            raise table.damaged(f"a row of {where} is missing or there twice")
        return table

    def _table(self, number: int, length: int, columns: list[str]) -> Table:
        """An episode's rows: those of the file that should hold them all, and of others where it does not."""
        path = self._file("data_path", number, "data")
        try:
            table = Table(path, columns, number)
        except UserError:
            if others := [file for file in self._holders.get(number, []) if file != path]:
                return Table(others[0], columns, number, others[1:])
            raise
        if len(table) >= length:
            return table
        return Table(path, columns, number, [file for file in self._holders.get(number, []) if file != path])

    def video(self, number: int, feature: str) -> tuple[Path, int]:
        """The video of an episode's camera, and which of its frames is the episode's first."""
        path = self._file("video_path", number, f"videos/{feature}", video_key=feature)
        key = f"videos/{feature}/from_timestamp"
        begin: Any = self.records[number].get(key)
        check(f"{key} of {self.name(number)}", begin, float)
        return path, round(max(0.0, begin) * self.fps)

    def _file(self, key: str, number: int, place: str, **names: int | str) -> Path:
        """A file of an episode, by its template in meta/info.json and the columns of ``place`` in its record."""
        chunk, file = (
            whole_number(self.records[number].get(f"{place}/{column}"), f"{place}/{column} of {self.name(number)}")
            for column in ("chunk_index", "file_index")
        )
        fields = dict(names, chunk_index=chunk, file_index=file, episode_chunk=chunk, episode_index=number)
        template, where = self.info.get(key), self.folder / lerobot.INFO
        check(f"{where}: {key}", template, str)
        with user_errors(f"{where}: {key}: "):
            return inside(self.folder, lerobot.fill(str(template), **fields))

    @cached_property
    def _holders(self) -> dict[int, list[Path]]:
        """Files that hold rows of an episode, whatever the table of episodes says."""
        holders: dict[int, list[Path]] = {}
        for path in sorted((self.folder / "data").rglob("*.parquet")):
            with contextlib.suppress(UserError):
                table = Table(inside(self.folder, str(path.relative_to(self.folder))), ["episode_index"])
                for number in sorted(set(table.values("episode_index", int))):
                    holders.setdefault(number, []).append(path)
        return holders


class _ExportRecord(TypedDict):
    """What :mod:`par_agent.data.lerobot_export` writes beside LeRobot's files."""

    spec: dict[str, Any]
    episodes: list[Attributes]


def whole_number(value: Any, key: str) -> int:
    """A count or an index, which some tools store as a decimal number; ``key`` names it in the message."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or value < 0:
        raise UserError(f"{key} is {value!r}; expected a whole number, 0 or more")
    return value
