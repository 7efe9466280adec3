"""Where a run's figures come from: all that is needed to repeat it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.run_info import RunInfo
from par_agent.utils.checkpoint_folders import weight_files
from par_agent.utils.hashes import hash_files


def provenance(run: RunInfo) -> dict[str, Any]:
    """All that is needed to repeat a run."""
    config, policy = run.config, run.config.policy
    return {
        "command": _command(),
        "git_commit": run.commit,
        "policy": policy.name or policy.reference,
        "policy_folder": None if policy.name is None or policy.folder is None else str(policy.folder),
        "policy_options": policy.options,
        "checkpoint": run.fingerprint,
        **_weights(policy),
        "track": config.track,
        "variation": config.variation,
        "initial_states": config.protocol_label,
        "tasks": [asdict(spec) for spec in run.specs.values()],
        "backend": config.backend if config.cluster is None else f"{config.backend}, Ray cluster",
        "workers": run.workers,
        "device": f"{_processor()}, {os.cpu_count()} cores, policy on {policy.device}",
        "renderer": run.renderer,
        "platform": platform.platform(),
        "versions": run.versions,
    }


def provenance_rows(source: dict[str, Any]) -> list[tuple[str, str]]:
    """Provenance as text for pages, without the task specs, which results.json has."""
    options = ", ".join(f"{name}={value}" for name, value in source["policy_options"].items())
    return [
        ("command", source["command"]),
        ("git commit", source["git_commit"]),
        ("policy", f"{source['policy']}{f' with {options}' if options else ''}"),
        ("checkpoint", source["checkpoint"]),
        ("device", f"{source['device']}; rendered by {source['renderer']}"),
        ("backend", f"{source['backend']}, {source['workers']} workers"),
        ("platform", source["platform"]),
        ("versions", ", ".join(f"{name} {version}" for name, version in source["versions"].items())),
    ]


def _command() -> str:
    """What was typed: `par-agent ...`, or a script."""
    program, *options = sys.argv
    if program.endswith(".py"):
        return shlex.join([Path(sys.executable).name, program, *options])
    return shlex.join([Path(program).name, *options])


def _weights(policy: PolicySource) -> dict[str, Any]:
    """A hash of a checkpoint's files, the numbers in its weights and how it was trained; None where that is unknown."""
    folder, parameters = policy.folder, None
    if folder is not None and (weights := folder / "model.safetensors").is_file():
        from par_agent.modeling.weights import read_shapes

        parameters = sum(map(prod, read_shapes(weights).values()))
    checksum = None if folder is None else hash_files(weight_files(folder))
    return {"weights": checksum, "parameters": parameters, "training": policy.description.get("trained")}


def _processor() -> str:
    """The processor's name as Linux reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
