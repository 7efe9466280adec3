"""Reads an existing LeRobotDataset, v2.0 to v3.0: what it says of itself, and where its episodes are.

:mod:`par_agent.data.lerobot` shows the files of v3.0. Those of v2.0 and v2.1 are::

    meta/info.json                                sizes, frames a second, features
    meta/tasks.jsonl                              {"task_index": 0, "task": "..."} a line
    meta/episodes.jsonl                           {"episode_index": 0, "length": 120, "tasks": ["..."]} a line
    data/chunk-000/episode_000000.parquet         one row a control step, one episode a file
    videos/chunk-000/<feature>/episode_000000.mp4 the frames of those rows

Nothing in these files is taken on trust: each error names the file, the key, and the episode where there is one.
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
from par_agent.errors import UserError
from par_agent.utils.files import inside, naming, read_content, read_object
from par_agent.utils.json_fields import check
from par_agent.utils.strict_json import parse_json


class _Feature(TypedDict):
    """What is needed of a feature's description."""

    dtype: str
    shape: list[int]


class _Robot(TypedDict, total=False):
    robot_type: str | None


class _Info(_Robot):
    """What is needed of meta/info.json."""

    fps: float
    data_path: str
    features: dict[str, _Feature]


class _Version2:
    """Formats v2.0 and v2.1: tables are lines of JSON, and every episode has its own files."""

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        self._folder = folder
        self._chunk = max(1, whole_number(info.get("chunks_size", 1000), f"{folder / lerobot.INFO}: chunks_size"))

    def tasks(self) -> list[dict[str, Any]]:
        """Rows of the table of tasks: ``task_index``, ``task``."""
        rows = list(self._lines("meta/tasks.jsonl"))
        for row in rows:
            if isinstance(row, UserError):
                raise row
        return rows

    def episodes(self) -> Iterator[dict[str, Any] | UserError]:
        """Rows of the table of episodes, or why some cannot be read."""
        return self._lines("meta/episodes.jsonl")

    def rows(self, record: dict[str, Any], where: str) -> dict[str, int | str]:
        """Fields of ``data_path`` for an episode; ``where`` is for messages."""
        number = record["episode_index"]
        return {"episode_chunk": number // self._chunk, "episode_index": number}

    def frames(self, record: dict[str, Any], feature: str, where: str) -> tuple[dict[str, int | str], float]:
        """Fields of ``video_path`` for an episode, and the second at which the episode begins in that video."""
        return {**self.rows(record, where), "video_key": feature}, 0.0

    def _lines(self, name: str) -> Iterator[Any]:
        path = inside(self._folder, name)
        for number, line in enumerate(read_content(path).splitlines(), 1):
            if line.strip():
                try:
                    row = parse_json(line, f"line {number} of {path}")
                    check(f"line {number} of {path}", row, dict)
                    yield row
                except UserError as error:
                    yield error


class _Version3:
    """Format v3.0, with the methods of v2: tables are Parquet files, and files hold several episodes."""

    def __init__(self, folder: Path, info: dict[str, Any]) -> None:
        self._folder = folder

    def tasks(self) -> list[dict[str, Any]]:
        table = Table(inside(self._folder, lerobot.TASKS))
        text = "task" if "task" in table else "__index_level_0__"  # pandas' name of a nameless index
        return [{**row, "task": row.get(text)} for row in table.records(dict)]

    def episodes(self) -> Iterator[dict[str, Any] | UserError]:
        for path in sorted((self._folder / "meta/episodes").rglob("*.parquet")):
            try:
                yield from Table(inside(self._folder, str(path.relative_to(self._folder)))).records(dict)
            except UserError as error:
                yield error

    def rows(self, record: dict[str, Any], where: str) -> dict[str, int | str]:
        return self._numbers(record, "data", where)

    def frames(self, record: dict[str, Any], feature: str, where: str) -> tuple[dict[str, int | str], float]:
        key = f"videos/{feature}/from_timestamp"
        begin = record.get(key)
        check(f"{key} of {where}", begin, float)
        assert isinstance(begin, int | float)
        return {**self._numbers(record, f"videos/{feature}", where), "video_key": feature}, max(0.0, begin)

    def _numbers(self, record: dict[str, Any], prefix: str, where: str) -> dict[str, int | str]:
        keys = ("chunk_index", "file_index")
        return {key: whole_number(record.get(f"{prefix}/{key}"), f"{prefix}/{key} of {where}") for key in keys}


class LeRobotFolder:
    """An existing LeRobotDataset.

    Raises:
        UserError: no such dataset, another version, a description that lacks something, or pyarrow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lerobot.pyarrow_module("")
        path = folder / lerobot.INFO
        if not path.is_file():
            raise UserError(f"{folder} is not a LeRobot dataset (no {lerobot.INFO})")
        self.info = read_object(inside(folder, lerobot.INFO))
        self.version = str(self.info.get("codebase_version"))
        """Of its format."""
        if not self.version.startswith(("v2.", "v3.")):
            raise UserError(
                f"{folder} has the format {self.version}; expected v2.0 to v3.0: convert it with LeRobot's own scripts"
            )
        check(str(path), self.info, _Info)
        self.fps = float(self.info["fps"])
        """Rows a second."""
        with naming(path):
            self.features = [Feature.read(name, content) for name, content in self.info["features"].items()]
        if self.fps <= 0:
            raise UserError(f"{path}: fps is {self.fps:g}; it must be above 0")
        self._layout: _Version2 | _Version3 = (_Version2 if self.version.startswith("v2.") else _Version3)(
            folder, self.info
        )
        self.records: dict[int, dict[str, Any]] = {}
        """Rows of the table of episodes by the episode's number, ascending."""
        self.unreadable: list[UserError] = []
        """What is wrong with the other rows."""
        self._read_episodes()
        self.export_record: _ExportRecord | None = None
        """What this package's export adds; None: another tool wrote the dataset."""
        if (folder / lerobot.EXPORT_RECORD).is_file():
            self.export_record = self._read_export_record(inside(folder, lerobot.EXPORT_RECORD))

    def _read_episodes(self) -> None:
        found = []
        for row in self._layout.episodes():
            try:
                if isinstance(row, UserError):
                    raise row
                number = whole_number(row.get("episode_index"), f"episode_index of an episode of {self.folder}")
                found.append((number, {**row, "episode_index": number}))
            except UserError as error:
                self.unreadable.append(error)
        self.records = dict(sorted(found, key=lambda pair: pair[0]))
        if len(self.records) < len(found):
            raise UserError(f"{self.folder} lists an episode twice in its table of episodes; {ADVICE}")

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
        """Instructions by the index that rows have.

        Raises:
            UserError: the table is missing or damaged.
        """
        where = f"the table of tasks of {self.folder}"
        tasks: dict[int, str] = {}
        for row in self._layout.tasks():
            number = whole_number(row.get("task_index"), f"task_index in {where}")
            check(f"task {number} in {where}", row.get("task"), str)
            if tasks.setdefault(number, row["task"]) != row["task"]:
                raise UserError(f"{where} has task {number} twice; {ADVICE}")
        return tasks

    def name(self, number: int) -> str:
        """An episode in messages."""
        return f"episode {number} of {self.folder}"

    def rows(self, number: int, columns: Sequence[str]) -> Table:
        """Columns of an episode's rows, in their order.

        Raises:
            UserError: the rows are missing, repeated or damaged.
        """
        record, where = self.records[number], self.name(number)
        length = whole_number(record.get("length"), f"length of {where}")
        if length < 2:
            raise UserError(f"{where} has {length} rows; an episode needs 2 to show what an action leads to")
        path = self._file("data_path", self._layout.rows(record, where))
        table = self._table(number, path, length, [*dict.fromkeys(["frame_index", *columns])])
        if len(table) != length:
            raise table.damaged(f"it holds {len(table)} rows of {where}, whose table of episodes says {length}")
        if (np.diff(table.matrix("frame_index")[:, 0]) != 1).any():
            raise table.damaged(f"a row of {where} is missing or there twice")
        return table

    def _table(self, number: int, path: Path, length: int, columns: list[str]) -> Table:
        """An episode's rows: those of the file that should hold them all, and of others where it does not."""
        table, fault = None, None
        try:
            table = Table(path, columns, number)
        except UserError as error:
            fault = error
        if table is not None and len(table) >= length:
            return table
        others = [file for file in self._holders.get(number, []) if file != path]
        if fault is not None and not others:
            raise fault
        first, *more = others if table is None else [path, *others]
        return Table(first, columns, number, more)

    def video(self, number: int, feature: str) -> tuple[Path, int]:
        """The video of an episode's camera, and which of its frames is the episode's first.

        Raises:
            UserError: the description of the dataset, or of the episode, does not say it.
        """
        values, begin = self._layout.frames(self.records[number], feature, self.name(number))
        return self._file("video_path", values), round(begin * self.fps)

    def _file(self, key: str, values: dict[str, int | str]) -> Path:
        """The path of a file by its template in meta/info.json."""
        template, where = self.info.get(key), self.folder / lerobot.INFO
        check(f"{where}: {key}", template, str)
        try:
            return inside(self.folder, lerobot.fill(str(template), **values))
        except UserError as error:
            raise UserError(f"{where}: {key}: {error}") from None

    @cached_property
    def _holders(self) -> dict[int, list[Path]]:
        """Files that hold rows of an episode, whatever the table of episodes says."""
        holders: dict[int, list[Path]] = {}
        if isinstance(self._layout, _Version2):
            return holders
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
    """A count or an index; some tools store it as a decimal number.

    Raises:
        UserError: it is something else; ``key`` says what it is.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or value < 0:
        raise UserError(f"{key} is {value!r}; expected a whole number, 0 or more")
    return value
