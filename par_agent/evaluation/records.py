"""A run's folder: what was run, and one line per finished rollout that survives a crash at any moment.

<out>/<policy>-<track>-<key>/
    run.json          what the key is the hash of: policy, task specs, track, versions; and what else is in the folder
    rollouts.jsonl    one record per rollout, on disk when the rollout ends
    errors.log        tracebacks of rollouts that ended with an exception
    states/           initial states, if they are not the protocol's
    videos/           MP4s, if asked for
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from par_agent.errors import UserError
from par_agent.evaluation.record_checks import Record, RunPlan
from par_agent.evaluation.rollout import TIMING_FIELDS
from par_agent.utils.files import atomic_path, only_process, read_content, read_object, write_json, writing
from par_agent.utils.strict_json import parse_json

__all__ = ["MADE_STATES", "Record", "RecordKey", "RunFolder", "read_records", "read_run", "record_key"]


RUN_FILE, RECORDS_FILE = "run.json", "rollouts.jsonl"
EXTENT, MADE_STATES = "extent", "made_states"
"""Fields of run.json that are no part of the run's identity, because later commands may add to them."""

RecordKey = tuple[str, int, int]
"""What identifies a rollout in a run: task, state, policy seed."""


def record_key(record: Record) -> RecordKey:
    """The rollout that a record is of."""
    return record["task"], record["state"], record["policy_seed"]


def read_run(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """What a run is, by its run.json, and its records; a last line cut off by a crash is left out.

    Raises:
        UserError: no run, or a file that is damaged; a record that is none of the run, or two that contradict each
            other.
    """
    run, plan = _read_plan(folder / RUN_FILE)
    return run, read_records(folder / RECORDS_FILE, plan)


def _read_plan(path: Path) -> tuple[dict[str, Any], RunPlan]:
    run = read_object(path)
    try:
        return run, RunPlan.of(run)
    except UserError as error:
        raise UserError(f"{path} is not as `par-agent benchmark` leaves it: {error}") from None


def read_records(path: Path, plan: RunPlan) -> list[Record]:
    """Reads the complete lines of a records file; a last line cut off by a crash is left out.

    A rollout that is recorded twice with the same outcome counts once.

    Raises:
        UserError: a line is damaged or no record of the run, or two contradict each other; it names the line.
    """
    if not path.exists():
        return []
    found: dict[RecordKey, tuple[int, Record]] = {}
    for number, line in enumerate(read_content(path).split(b"\n")[:-1], start=1):
        try:
            record = parse_json(line, "the line")
            plan.check(record)
        except UserError as error:
            raise UserError(
                f"{path}, line {number} is no record of this run: {error}. Delete it and run the same command again"
            ) from None
        before, first = found.setdefault(record_key(record), (number, record))
        if _outcome(first) != _outcome(record):
            where = "{}, state {}, policy seed {}".format(*record_key(record))
            raise UserError(
                f"{path}, lines {before} and {number} contradict each other: both are of {where}; delete one of them"
            )
    return [record for _, record in found.values()]


def _outcome(record: Record) -> Record:
    """A record without what differs when the same rollout is repeated."""
    return {name: value for name, value in record.items() if name not in TIMING_FIELDS}


def _lines(records: list[Record]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


class RunFolder:
    """The folder of one run, open for writing by one process at a time. Use it as a context manager.

    Args:
        path: the folder; made on entering.
        identity: what the run is; has to equal what the folder already holds.
        states: initial states per task; of all commands that wrote to the folder, the largest number is remembered.
        policy_seeds: policy seeds per initial state; likewise.

    A block that fails before the first record leaves no files of these behind.

    Raises:
        UserError: (on entering) the folder belongs to another run, holds records that are none of this run, or another
            process writes to it.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, states: int, policy_seeds: int) -> None:
        self.path = path
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._extent = {"states": states, "policy_seeds": policy_seeds}
        self._file: IO[bytes] | None = None
        self._opened = contextlib.ExitStack()
        self.records: list[Record] = []
        """All records on disk."""

    @property
    def records_file(self) -> Path:
        """File of the records."""
        return self.path / RECORDS_FILE

    def __enter__(self) -> RunFolder:
        self._run()  # another run's folder is left as it is
        with contextlib.ExitStack() as opened, writing(self.path):
            opened.enter_context(only_process(self.path / ".lock", f"writes to {self.path}", within=self.path))
            self._claim()
            self._file = opened.enter_context(self.records_file.open("ab", buffering=0))
            self._restore_kept()
            self._drop_cut_off_line()
            self.records = read_records(self.records_file, self._plan)
            self._opened = opened.pop_all()
        return self

    def _run(self) -> dict[str, Any]:
        """What run.json holds; empty if there is none.

        Raises:
            UserError: it is of another run.
        """
        run_file = self.path / RUN_FILE
        if not run_file.exists():
            return {}
        run = read_object(run_file)
        if {name: value for name, value in run.items() if name not in (EXTENT, MADE_STATES)} != self._identity:
            raise UserError(f"{self.path} holds the results of another policy, task or version; choose another --out")
        return run

    def _claim(self) -> None:
        """Writes run.json, or adds to its extent."""
        found = self._run()
        extent = {name: max(number, found.get(EXTENT, {}).get(name, 0)) for name, number in self._extent.items()}
        self._write_run({**self._identity, **found, EXTENT: extent})
        _, self._plan = _read_plan(self.path / RUN_FILE)

    def _write_run(self, run: dict[str, Any]) -> None:
        if run != self._run():
            with writing(self.path):
                write_json(self.path / RUN_FILE, run)

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None and not self.records:  # it failed before its first rollout
            for name in (RECORDS_FILE, RUN_FILE):
                (self.path / name).unlink(missing_ok=True)
        self._opened.close()

    def claim_states(self, checksums: dict[str, str]) -> None:
        """Writes down which initial states, made by this run, its rollouts start from.

        Args:
            checksums: SHA-256 by name of file.

        Raises:
            UserError: the run began with others.
        """
        run = self._run()
        known = run.get(MADE_STATES, {})
        if changed := [name for name, checksum in checksums.items() if known.get(name, checksum) != checksum]:
            raise UserError(
                f"{self.path} was begun with other initial states ({', '.join(changed)}): restore them, or choose "
                "another --out"
            )
        self._write_run({**run, MADE_STATES: {**known, **checksums}})

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
            kept = read_records(self._kept_file, self._plan)
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
