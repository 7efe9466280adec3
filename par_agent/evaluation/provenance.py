"""Where a run's figures come from: all that is needed to repeat it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from par_agent.evaluation.policies import ABOUT, PolicySource, weight_files
from par_agent.utils.files import read_object
from par_agent.utils.versions import hash_files

if TYPE_CHECKING:
    from par_agent.evaluation.runner import BenchmarkRun


def provenance(run: BenchmarkRun) -> dict[str, Any]:
    """All that is needed to repeat the run."""
    return {
        "command": _command(),
        "git_commit": run.commit,
        "policy": run.config.policy.name or run.config.policy.reference,
        "policy_folder": _folder(run.config.policy),
        "policy_options": run.config.policy.options,
        "checkpoint": run.fingerprint,
        **_weights(run.config.policy.folder),
        "track": run.config.track,
        "variation": run.config.variation,
        "initial_states": run.config.protocol_label,
        "tasks": [asdict(spec) for spec in run.specs.values()],
        "backend": run.config.backend if run.config.cluster is None else f"{run.config.backend}, Ray cluster",
        "workers": run.workers,
        "device": f"{_processor()}, {os.cpu_count()} cores, policy on {run.config.policy.device}",
        "renderer": run.renderer,
        "platform": platform.platform(),
        "versions": run.versions,
    }


def _command() -> str:
    """What was typed: `par-agent ...`, or a script."""
    program, *options = sys.argv
    if program.endswith(".py"):
        return shlex.join([Path(sys.executable).name, program, *options])
    return shlex.join([Path(program).name, *options])


def _folder(policy: PolicySource) -> str | None:
    """Where the weights are of a policy whose name does not tell."""
    return None if policy.name is None or policy.folder is None else str(policy.folder)


def _weights(folder: Path | None) -> dict[str, Any]:
    """A hash of a checkpoint's files, the numbers in its weights and how it was trained; None where that is unknown."""
    about: dict[str, Any] = {"weights": None, "parameters": None, "training": None}
    if folder is None:
        return about
    about["weights"] = hash_files(weight_files(folder))
    if (weights := folder / "model.safetensors").is_file():
        from par_agent.modeling.weights import read_shapes

        about["parameters"] = sum(map(prod, read_shapes(weights).values()))
    for name in ABOUT:
        if (folder / name).is_file():
            about["training"] = read_object(folder / name).get("trained")
    return about


def _processor() -> str:
    """The processor's name as Linux reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
