"""Folders of runs as `par-agent benchmark` leaves them, without a simulation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from par_agent.evaluation.rollout import TIMING_FIELDS
from par_agent.tasks import PAPER_TASKS, PROTOCOL_SEED
from par_agent.utils.files import write_json

MAX_STEPS = 400


def identity(policy: str = "par-mini", state_seed: int | None = None, **changes: Any) -> dict[str, Any]:
    """What run.json tells of a run of the paper's tasks."""
    return {
        **{"policy": policy, "policy_options": {}, "checkpoint": "0123", "device": "cpu", "backend": "cpu"},
        **{"num_envs": 1, "track": "paper", "variation": "none", "state_seed": state_seed, "run_to_end": False},
        "tasks": [{"env_id": f"{task}-v1", "max_steps": MAX_STEPS} for task in PAPER_TASKS],
        "versions": {"code": "45"},
        **changes,
    }


def record(run: dict[str, Any], task: str, state: int, seed: int, success: bool, **changes: Any) -> dict[str, Any]:
    """A record of a run: solved after 90 control steps, or not at all."""
    first = PROTOCOL_SEED if run["state_seed"] is None else run["state_seed"]
    return {
        **{name: run[name] for name in ("track", "variation", "backend", "policy", "checkpoint", "versions")},
        "protocol": run["state_seed"] is None and run["variation"] == "none",
        **{"task": task, "state": state, "env_seed": first + state, "policy_seed": seed, "error": None},
        **measured(90 if success else None),
        "actions_sha256": f"{state:08x}{seed:08x}",
        **changes,
    }


def measured(solved_after: int | None) -> dict[str, Any]:
    """What a rollout adds to its record that is solved after so many control steps, or not at all."""
    return {
        **{"success_once": solved_after is not None, "success_at_end": None, "steps": solved_after or MAX_STEPS},
        **{"steps_to_success": solved_after, "reward": 2.5, "renders": 12, "actions_sha256": "0" * 16},
        **{"plan_ms": 20.0, "seconds": 1.5},
    }


def write_finished(folder: Path, solved: int, states: int, seeds: int, run: dict[str, Any], **about: Any) -> None:
    """A finished run whose first ``solved`` states are solved in every task, with more that its results.json tells."""
    keys = [(task, state, seed) for task in PAPER_TASKS for state in range(states) for seed in range(seeds)]
    write_run(folder, run, [record(run, *key, success=key[1] < solved) for key in keys])
    results = [
        {"task": task, "rollouts": states * seeds, "successes": min(solved, states) * seeds} for task in PAPER_TASKS
    ]
    provenance = {**run, "command": "python run.py", **about}
    write_json(folder / "results.json", {"results": results, "provenance": provenance})


def failed(record: dict[str, Any], error: str = "ValueError: no") -> dict[str, Any]:
    """The record of the same rollout if it had ended with an exception."""
    nothing = ("success_at_end", "steps", "steps_to_success", "reward", "renders", "actions_sha256", *TIMING_FIELDS)
    return {**record, **dict.fromkeys(nothing), "success_once": False, "error": error}


def write_records(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes rollouts.jsonl."""
    (folder / "rollouts.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def write_run(folder: Path, run: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Writes a run's folder without its results."""
    extent = {
        "states": max(record["state"] for record in records) + 1,
        "policy_seeds": max(record["policy_seed"] for record in records) + 1,
    }
    write_json(folder / "run.json", {**run, "extent": extent})
    write_records(folder, records)
