"""The methods that the paper compares PAR with, small enough to be trained from scratch beside the preset ``mini``.

All see what PAR sees (latents of the same frozen frame encoder, joint positions, the instruction), through the same
kind of convolutional stem, and are trained on the same windows, with the same normalisation, optimiser and loop.
Nothing heavy is imported here: `par-agent benchmark` only looks names up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from par_agent.errors import UserError
from par_agent.evaluation.policies import PolicySource
from par_agent.utils.checkpoint_folders import BASELINE, checkpoint_folder
from par_agent.utils.files import read_object
from par_agent.vla_eval.client import PREFIX, model_server_source

NAMES = ("act", "bc-t", "dp", "icrt", "rdt")
"""The baselines, as ``--method`` and ``--policy`` call them: the names of ``methods.METHODS``."""
ABLATIONS = ("par-noar", "par-discrete", "par-noimagine")
"""Ablations of PAR, which are presets of `par-agent finetune`: the paper's two, and PAR without its frame path."""

_TASKS = "--task PushCube PickCube StackCube --vae runs/vae/vae"
_POLICY = "par_agent.baselines.policy:BaselinePolicy"


def find_policy(reference: str, options: dict[str, Any], device: str, checkpoint: Path | None = None) -> PolicySource:
    """What ``--policy`` names: a row of the paper's tables, any checkpoint, ``module:Class``, or a model server as
    ``vla-eval:ws://HOST:PORT``.

    Args:
        reference: as given.
        options: of the policy.
        device: where checkpoints are loaded.
        checkpoint: as given with ``--policy-checkpoint``.
    """
    if reference.startswith(PREFIX):
        if checkpoint is not None:
            raise UserError("--policy-checkpoint does not reach a model server; give the checkpoint to the server")
        return model_server_source(reference, options)
    if reference in (*NAMES, *ABLATIONS, "mini") or (reference == "par-mini" and checkpoint is not None):
        folder = Path("runs") / reference / "policy" if checkpoint is None else checkpoint_folder(checkpoint)
        if not folder.is_dir():
            raise UserError(f"no policy {reference!r}: {folder} does not exist; train it with: {_command(reference)}")
        if (found := _entry(folder / BASELINE, "method") or _entry(folder / "config.json", "name")) != reference:
            inside = folder / "policy"
            other = str(inside) if inside.is_dir() else "another"
            raise UserError(f"{folder} holds {found or 'no policy'}, not {reference}; give --policy-checkpoint {other}")
        if reference not in NAMES:
            return PolicySource(str(folder), options, device, name=reference)
        return PolicySource(_POLICY, options, device, folder, reference)
    if ":" in reference:
        return PolicySource(reference, options, device, checkpoint)
    if checkpoint is not None:
        known = ", ".join(("mini", "par-mini", *ABLATIONS, *NAMES))
        raise UserError(f"--policy-checkpoint goes with module:Class or one of {known}, not with --policy {reference}")
    if (method := _entry(Path(reference) / BASELINE, "method")) is not None:
        return PolicySource(_POLICY, options, device, Path(reference), method)
    return PolicySource(reference, options, device)


def _entry(path: Path, name: str) -> str | None:
    """An entry of a JSON file; None where there is no such file or entry."""
    return read_object(path).get(name) if path.is_file() else None


def _command(name: str) -> str:
    """How a row is trained."""
    if name not in NAMES:
        return f"par-agent finetune --preset {name} {_TASKS} --out runs/{name}"
    return f"par-agent train-baseline --method {name} {_TASKS} --out runs/{name}"
