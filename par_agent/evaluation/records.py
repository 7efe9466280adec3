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
from typing import Any

from par_agent.errors import UserError, user_errors
from par_agent.evaluation.record_checks import Record, RunPlan
from par_agent.evaluation.rollout import TIMING_FIELDS
from par_agent.utils.files import atomic_path, only_process, read_content, read_object, write_json, writing
from par_agent.utils.strict_json import parse_json

__all__ = ["MADE_STATES", "Record", "RecordKey", "RunFolder", "read_run", "record_key", "rollout_name", "rollout_stem"]

RUN_FILE, RECORDS_FILE = "run.json", "rollouts.jsonl"
EXTENT, MADE_STATES = "extent", "made_states"
"""Fields of run.json that are no part of the run's identity, because later commands may add to them."""

RecordKey = tuple[str, int, int]
"""What identifies a rollout in a run: task, state, policy seed."""


def record_key(record: Record) -> RecordKey:
    """The rollout that a record is of."""
    return record["task"], record["state"], record["policy_seed"]


def rollout_name(record: Record) -> str:
    """The rollout that a record is of, in words."""
    return "{}, state {}, policy seed {}".format(*record_key(record))


def rollout_stem(task: str, state: int, policy_seed: int) -> str:
    """Beginning of the names of a rollout's files."""
    return f"{task}_state{state:02d}_seed{policy_seed}"


def read_run(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """What a run is, by its run.json, and its records; a last line cut off by a crash is left out."""
    run = read_object(folder / RUN_FILE)
    with user_errors(f"{folder / RUN_FILE} is not as `par-agent benchmark` leaves it: "):
        plan = RunPlan(run)
    return run, _read_records(folder / RECORDS_FILE, plan)


def _read_records(path: Path, plan: RunPlan) -> list[Record]:
    """Reads the complete lines of a records file; a rollout that is recorded twice with one outcome counts once."""
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
            raise UserError(
                f"{path}, lines {before} and {number} contradict each other: both are of {rollout_name(record)}; "
                "delete one of them"
            )
    return [record for _, record in found.values()]


def _outcome(record: Record) -> Record:
    """A record without what differs when the same rollout is repeated."""
    return {name: value for name, value in record.items() if name not in TIMING_FIELDS}


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


class RunFolder:
    """The folder of one run, open for writing by one process at a time. Use it as a context manager.

    A block that fails before the first record leaves none of its files behind.

    Args:
        path: the folder; made on entering.
        identity: what the run is; a folder of another run is refused.
        states: initial states per task; the folder remembers the largest number that was asked for.
        policy_seeds: policy seeds per initial state; likewise.

    Raises:
        UserError: (on entering) the folder is of another run or damaged, or another process writes to it.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, states: int, policy_seeds: int) -> None:
        self.path = path
        self.records_file = path / RECORDS_FILE
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._extent = {"states": states, "policy_seeds": policy_seeds}
        self._opened = contextlib.ExitStack()
        self.records: list[Record] = []
        """All records on disk."""

    def __enter__(self) -> RunFolder:
        self._run()  # another run's folder is left as it is
        with contextlib.ExitStack() as opened, writing(self.path):
            opened.enter_context(only_process(self.path / ".lock", f"writes to {self.path}", within=self.path))
            found = self._run()
            extent = {name: max(number, found.get(EXTENT, {}).get(name, 0)) for name, number in self._extent.items()}
            self._write_run({**self._identity, **found, EXTENT: extent})
            _, self.records = read_run(self.path)
            self._file = self.records_file.open("ab", buffering=0)
            opened.callback(lambda: self._file.close())
            content = self.records_file.read_bytes()
            self._file.truncate(content.rfind(b"\n") + 1)  # without a line that a crash cut off
            self._opened = opened.pop_all()
        return self

    def _run(self) -> dict[str, Any]:
        """What run.json holds, empty if there is none; raises UserError where it is of another run."""
        run_file = self.path / RUN_FILE
        if not run_file.exists():
            return {}
        run = read_object(run_file)
        if {name: value for name, value in run.items() if name not in (EXTENT, MADE_STATES)} != self._identity:
            raise UserError(f"{self.path} holds the results of another policy, task or version; choose another --out")
        return run

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
        """Notes the SHA-256 of the states made, by file name; raises UserError where the run began with others."""
        run = self._run()
        known = run.get(MADE_STATES, {})
        if changed := [name for name, checksum in checksums.items() if known.get(name, checksum) != checksum]:
            raise UserError(
                f"{self.path} was begun with other initial states ({', '.join(changed)}): restore them, or choose "
                "another --out"
            )
        self._write_run({**run, MADE_STATES: {**known, **checksums}})

    def append(self, record: Record) -> None:
        """Writes one record, which is on disk then; raises UserError where it cannot, say because the disk is full."""
        try:
            content = _line(record)
            while content:
                content = content[self._file.write(content) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.records_file}: {error.strerror}; once that is solved, the same command resumes"
            ) from error
        self.records.append(record)

    def discard(self, unwanted: Callable[[Record], bool]) -> None:
        """Removes records, so that their rollouts are run again."""
        kept = [record for record in self.records if not unwanted(record)]
        if len(kept) < len(self.records):
            with writing(self.path), atomic_path(self.records_file) as temporary:
                temporary.write_bytes(b"".join(map(_line, kept)))
            self._file.close()
            self._file = self.records_file.open("ab", buffering=0)
            self.records = kept

    def log_error(self, record: Record, traceback: str) -> None:
        """Appends a rollout's traceback to errors.log."""
        with (self.path / "errors.log").open("a") as file:
            file.write(f"{rollout_name(record)}\n{traceback}\n")
