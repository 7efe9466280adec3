"""What a record must be to count: every field of its type and range, and a rollout of the run that it lies in."""

from __future__ import annotations

import math
import re
from typing import Any, TypedDict

from par_agent.errors import UserError
from par_agent.evaluation.measurements import known_measurements
from par_agent.tasks import PROTOCOL_POLICY_SEEDS, PROTOCOL_SEED, PROTOCOL_STATES
from par_agent.utils.json_fields import check

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
"""Types of a record's fields; those of the run's measurements are there besides."""
MEASURED = tuple(name for name, kind in FIELDS.items() if isinstance(None, kind) and name != "error")
"""Fields that are None after an exception."""


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
        self.run_to_end = run["run_to_end"]
        self.may_be_protocol = protocol and run["variation"] == "none"
        self.max_steps = {spec["env_id"].rsplit("-v", 1)[0]: spec["max_steps"] for spec in run["tasks"]}
        self.measurements = {name: measured for name, measured in known_measurements().items() if run.get(name)}
        shared = ("track", "variation", "backend", "policy", "checkpoint", "versions")
        self.shared = {name: run[name] for name in shared}

    def check(self, record: Any) -> None:
        """Raises UserError for missing, unknown or wrong fields, or what contradicts itself or the run."""
        check("the record", record, dict)
        fields = [*FIELDS, *(self.measurements if record.get("error") is None else ())]
        for name in (*fields, *record):
            if name not in record or name not in fields:
                raise UserError(f"{name!r} is {'missing' if name in fields else 'no field of a record of this run'}")
            if name in FIELDS:
                check(name, record[name], FIELDS[name])
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
        if (record["success_at_end"] is not None) != self.run_to_end or (record["success_at_end"] and solved is None):
            raise UserError(f"success_at_end is {record['success_at_end']}, which does not fit the run or the rollout")
        _check_range("steps", record["steps"], *(limit if self.run_to_end or solved is None else solved,) * 2)
        for name, measurement in self.measurements.items():
            measurement.check_field(record[name])


def _check_range(name: str, value: Any, lowest: int, highest: float = math.inf) -> None:
    if value is None or not lowest <= value <= highest:
        allowed = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
        raise UserError(f"{name} is {value}; it must be {lowest if lowest == highest else allowed}")
