"""A run's folder: what was run, and one line per finished rollout that survives a crash at any moment.

<out>/<policy>-<track>-<key>/
    run.json          what the key is the hash of: policy, task specs, track, versions; and what else is in the folder
    rollouts.jsonl    one record per rollout, on disk when the rollout ends
    errors.log        tracebacks of rollouts that ended with an exception
    states/           initial states, if they are not the protocol's
    videos/           MP4s, if asked for

A record counts if every field is of its type and range, and if it is of a rollout of the run that it lies in.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from par_agent.errors import UserError, user_errors
from par_agent.evaluation.measurements import known_measurements
from par_agent.evaluation.rollout import TIMING_FIELDS
from par_agent.evaluation.stages import STAGES
from par_agent.tasks import PROTOCOL_POLICY_SEEDS, PROTOCOL_SEED, PROTOCOL_STATES
from par_agent.utils.files import atomic_path, only_process, read_content, read_object, write_json, writing
from par_agent.utils.json_fields import check, parse_json

RUN_FILE, RECORDS_FILE = "run.json", "rollouts.jsonl"
EXTENT, MADE_STATES = "extent", "made_states"
"""Fields of run.json that are no part of the run's identity, because later commands may add to them."""

Record = dict[str, Any]
"""One line of rollouts.jsonl: plain numbers, text and None by field name."""

FIELDS: dict[str, Any] = {
    "task": str,
    "track": str,
    "variation": str,
    "backend": str,
    "protocol": bool,
    "state": int,
    "env_seed": int,
    "policy_seed": int,
    "success_once": bool,
    "success_at_end": bool | None,
    "steps": int | None,
    "steps_to_success": int | None,
    "reward": float | None,
    "renders": int | None,
    "actions_sha256": str | None,
    "plan_ms": float | None,
    "seconds": float | None,
    "error": str | None,
    "policy": str,
    "checkpoint": str,
    "versions": dict,
}
"""Types of a record's fields; those of the run's measurements are there besides, and of the task's stages bools."""
MEASURED = tuple(name for name, kind in FIELDS.items() if isinstance(None, kind) and name != "error")
"""Fields that are None after an exception."""

RecordKey = tuple[str, int, int]
"""What identifies a rollout in a run: task, state, policy seed."""


class _Task(TypedDict):
    env_id: str
    max_steps: int


class _RunIdentity(TypedDict):
    """What run.json has to tell."""

    policy: str
    checkpoint: str
    backend: str
    track: str
    variation: str
    state_seed: int | None
    run_to_end: bool
    tasks: list[_Task]
    versions: dict[str, str]


class _RunFile(_RunIdentity, total=False):
    """What it may tell besides."""

    after_success: int
    extent: dict[str, int]
    initial_states: dict[str, str]
    made_states: dict[str, str]


class RunPlan:
    """Which rollouts a run has by its run.json, and what all of its records share."""

    def __init__(self, run: dict[str, Any]) -> None:
        check("run", run, _RunFile)
        state_seed, extent = run["state_seed"], run.get("extent", {})  # files of earlier versions lack the extent
        protocol = state_seed is None
        limits = (PROTOCOL_STATES, PROTOCOL_POLICY_SEEDS) if protocol else (PROTOCOL_SEED - state_seed, 2**32)
        self.states, self.policy_seeds = extent.get("states", limits[0]), extent.get("policy_seeds", limits[1])
        self.first_seed = PROTOCOL_SEED if protocol else state_seed
        self.after_success = math.inf if run["run_to_end"] else run.get("after_success", 0)
        self.may_be_protocol = protocol and run["variation"] == "none"
        self.max_steps = {spec["env_id"].rsplit("-v", 1)[0]: spec["max_steps"] for spec in run["tasks"]}
        self.measurements = {name: measured for name, measured in known_measurements().items() if run.get(name)}
        shared = ("track", "variation", "backend", "policy", "checkpoint", "versions")
        self.shared = {name: run[name] for name in shared}

    def check(self, record: Any) -> None:
        """Raises UserError for missing, unknown or wrong fields, or what contradicts itself or the run."""
        check("the record", record, dict)
        failed = record.get("error") is not None
        fields = [*FIELDS, *(() if failed else self.measurements)]
        stages = () if failed else STAGES  # which may be missing: not every task has them, nor have earlier versions
        for name in (*fields, *record):
            if name not in record or name not in (*fields, *stages):
                raise UserError(f"{name!r} is {'missing' if name in fields else 'no field of a record of this run'}")
            if kind := FIELDS.get(name, bool if name in STAGES else None):
                check(name, record[name], kind)
        for name, value in self.shared.items():
            if record[name] != value:
                raise UserError(f"{name} is {record[name]!r}; the run's is {value!r}")
        if record["protocol"] and not self.may_be_protocol:
            raise UserError("protocol is true; the run is of other initial states, or with something changed")
        if record["task"] not in self.max_steps:
            raise UserError(f"task is {record['task']!r}; the run has {', '.join(self.max_steps)}")
        _check_range("state", record["state"], 0, self.states - 1)
        _check_range("policy_seed", record["policy_seed"], 0, self.policy_seeds - 1)
        _check_range("env_seed", record["env_seed"], *(self.first_seed + record["state"],) * 2)
        if record["protocol"] and record["state"] >= PROTOCOL_STATES:
            raise UserError(f"protocol is true; the protocol has {PROTOCOL_STATES} initial states")
        if record["error"] is None:
            self._check_measured(record)
        elif record["success_once"] or any(record[name] is not None for name in MEASURED):
            raise UserError("the rollout ended with an error, and yet has a result")

    def _check_measured(self, record: Record) -> None:
        """Checks what a rollout without exception has."""
        limit, solved = self.max_steps[record["task"]], record["steps_to_success"]
        _check_range("steps", record["steps"], 1, limit)
        _check_range("renders", record["renders"], 0, limit)
        _check_range("seconds", record["seconds"], 0)
        if record["plan_ms"] is not None:
            _check_range("plan_ms", record["plan_ms"], 0)
        if not re.fullmatch("[0-9a-f]{16}", record["actions_sha256"] or ""):
            raise UserError(f"actions_sha256 is {record['actions_sha256']!r}; expected 16 hexadecimal digits")
        if (solved is not None) != record["success_once"]:
            raise UserError(f"success_once is {record['success_once']}, but steps_to_success is {solved}")
        if solved is not None:
            _check_range("steps_to_success", solved, 1, record["steps"])
        at_end = record["success_at_end"]
        if (at_end is not None) != (self.after_success > 0) or (at_end and solved is None):
            raise UserError(f"success_at_end is {at_end}, which does not fit the run or the rollout")
        end = limit if solved is None else int(min(limit, solved + self.after_success))
        _check_range("steps", record["steps"], end, end)
        for name, measurement in self.measurements.items():
            measurement.check_field(record[name])


def _check_range(name: str, value: Any, lowest: int, highest: float = math.inf) -> None:
    if value is None or not lowest <= value <= highest:
        allowed = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
        raise UserError(f"{name} is {value}; it must be {lowest if lowest == highest else allowed}")


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
