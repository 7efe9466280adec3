"""A run's folder: what was run, and one line per finished rollout that survives a crash at any moment.

<out>/<policy>-<track>-<key>/
    run.json          what the key is the hash of: policy, task specs, track, versions
    rollouts.jsonl    one record per rollout, on disk when the rollout ends
    errors.log        tracebacks of rollouts that ended with an exception
    states/           initial states, if they are not the protocol's
    videos/           MP4s, if asked for
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from par_agent.errors import UserError
from par_agent.files import atomic_path, cannot_write, read_json, write_json

Record = dict[str, Any]
"""One line of rollouts.jsonl: plain numbers, text and None by field name."""

RecordKey = tuple[str, int, int]
"""What identifies a rollout in a run: task, state, policy seed."""


def record_key(record: Record) -> RecordKey:
    """The rollout that a record is of."""
    return record["task"], record["state"], record["policy_seed"]


def check_writable(folder: Path) -> None:
    """Checks that a folder exists or could be made, without making it.

    Raises:
        UserError: it could not.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write results to {folder}: {existing}: {error.strerror}; choose another --out"
        ) from None


def read_records(path: Path) -> list[Record]:
    """Reads the complete lines of a records file; a last line cut off by a crash is left out.

    Raises:
        UserError: a line in the middle is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise UserError(
                f"{path}, line {number} is damaged: delete that line and run the same command again"
            ) from None
    return records


def _lines(records: list[Record]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


class RunFolder:
    """The folder of one run, open for writing by one process at a time. Use it as a context manager.

    Args:
        path: the folder; made on entering.
        identity: what the run is; has to equal what the folder already holds.

    Raises:
        UserError: (on entering) the folder belongs to another run, or another process writes to it.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self._identity = identity
        self._file: IO[bytes] | None = None
        self.records: list[Record] = []
        """All records on disk."""

    @property
    def records_file(self) -> Path:
        """File of the records."""
        return self.path / "rollouts.jsonl"

    def __enter__(self) -> RunFolder:
        run_file = self.path / "run.json"
        if run_file.exists() and read_json(run_file) != json.loads(json.dumps(self._identity)):
            raise UserError(f"{self.path} holds the results of another policy, task or version; choose another --out")
        try:
            if not run_file.exists():
                write_json(run_file, self._identity)
            self._file = self.records_file.open("ab", buffering=0)
        except OSError as error:
            raise UserError(cannot_write(self.path, error)) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"another process is writing to {self.path}; wait for it or end it") from None
        self._restore_kept()
        self._drop_cut_off_line()
        self.records = read_records(self.records_file)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, record: Record) -> None:
        """Writes one record; it is on disk when this returns.

        Raises:
            UserError: it cannot be written, for example because the disk is full; the run can be resumed.
        """
        self._write([record])
        self.records.append(record)

    def discard(self, unwanted: Callable[[Record], bool]) -> None:
        """Removes records, for their rollouts to be run again."""
        kept = [record for record in self.records if not unwanted(record)]
        if len(kept) < len(self.records):
            with atomic_path(self._kept_file) as temporary:
                temporary.write_bytes(_lines(kept))
            self._restore_kept()
            self.records = kept

    @property
    def _kept_file(self) -> Path:
        """What is left of the records while others are being removed."""
        return self.path / ".rollouts.kept.jsonl"

    def _restore_kept(self) -> None:
        """Replaces the records by those of the kept file, if there is one; may be stopped and done again."""
        if self._kept_file.exists():
            assert self._file is not None, "the run folder is not open"
            kept = read_records(self._kept_file)
            self._file.truncate(0)
            self._write(kept)
            self._kept_file.unlink()

    def log_error(self, record: Record, traceback: str) -> None:
        """Appends a rollout's traceback to errors.log."""
        with (self.path / "errors.log").open("a") as file:
            file.write("{}, state {}, policy seed {}\n{}\n".format(*record_key(record), traceback))

    def _write(self, records: list[Record]) -> None:
        assert self._file is not None, "the run folder is not open"
        try:
            content = _lines(records)
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.records_file}: {error.strerror}; once that is solved, the same command resumes"
            ) from error

    def _drop_cut_off_line(self) -> None:
        assert self._file is not None
        content = self.records_file.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete != len(content):
            self._file.truncate(complete)
