"""`par-agent info`: the parts of a model with their parameter counts, as in Table 1 of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from par_agent.errors import UserError
from par_agent.utils.checked import Checked
from par_agent.utils.files import read_object

if TYPE_CHECKING:
    from torch import nn

    from par_agent.modeling.config import PARConfig
    from par_agent.modeling.par import PARModel

PHI_PARAMETERS = 2_648_560_640
"""Phi-2 without its language head, from its published sizes (32 layers of width 2560, 51,200 words)."""


@dataclass(frozen=True)
class InfoConfig(Checked):
    """Prints the parts and sizes of a preset or a checkpoint."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Preset (mini, par-nova-0.6b, ...), checkpoint folder, name of a bundled checkpoint, or org/name[@revision] on the
    Hugging Face Hub."""


def main(config: InfoConfig) -> int:
    """Prints the table."""
    print(report(*describe(config.model)))
    return 0


def describe(name_or_folder: str) -> tuple[PARConfig, dict[str, Any], str, str]:
    """Looks a preset or a checkpoint up; a checkpoint of this machine comes before a preset, and that before the Hub.

    Returns:
        The model's configuration, that of its frame encoder, the kind of its text encoder, and how it was trained.
    """
    from par_agent.modeling.config import PARConfig
    from par_agent.modeling.presets import PRESETS
    from par_agent.policy.checkpoint import ENCODER, read_policy
    from par_agent.utils.checkpoint_folders import checkpoint_folder, find_checkpoint

    if find_checkpoint(name_or_folder) is None and (found := PRESETS.get(name_or_folder)) is not None:
        return found.model, {"_class_name": found.frame_encoder}, found.text_encoder, f"preset {name_or_folder}"
    try:
        folder = checkpoint_folder(name_or_folder)
    except UserError as error:
        raise UserError(f"{error}; nor is it a preset: {', '.join(PRESETS)}") from None
    policy = read_policy(folder)
    encoder, state = read_object(folder / ENCODER / "config.json"), f"checkpoint {folder}: {_training(policy)}"
    return PARConfig.read(folder), encoder, policy["text_encoder"], state


def report(config: PARConfig, encoder: dict[str, Any], text_encoder: str, state: str) -> str:
    """The table of what :func:`describe` found, as text; nothing is allocated."""
    import torch

    from par_agent.modeling.par import PARModel
    from par_agent.modeling.vae.frame_encoder import make_frame_encoder

    with torch.device("meta"):
        model = PARModel(config)
        frame_encoder = make_frame_encoder(encoder)
    counts = count_parts(model)
    text = {"phi": ("Phi-2", PHI_PARAMETERS), "hash": ("hashed words", 0)}.get(text_encoder)
    if text is None:
        raise UserError(f"text encoder {text_encoder!r} is not known; known: hash, phi")
    frozen = "video VAE" if encoder.get("_class_name") == "AutoencoderKLOpenSora" else "frame VAE"
    motion = _parameters(model.nova.motion_embed)
    apart = [("motion embedding (NOVA's)", motion)] if motion else []
    apart += [(f"frozen {frozen}", _parameters(frame_encoder)), (f"frozen text encoder ({text[0]})", text[1])]
    lines = [state, "", *map(_row, counts.items()), *_rounding(counts), ""]
    lines += ["not in this total:", *map(_row, apart), ""]
    return "\n".join(lines + _shapes(config))


def count_parts(model: PARModel) -> dict[str, int]:
    """Parameters by the parts of the paper's Table 1, and their total; NOVA's motion embedding is left out as there."""
    nova = model.nova
    decoder, motion = _parameters(getattr(nova, "image_decoder", None)), _parameters(nova.motion_embed)
    counts = {
        "action tokenizer": _parameters(model.action_tokenizer),
        "action de-tokenizer": _parameters(model.action_detokenizer),
        "frame de-tokenizer": decoder + _parameters(model.frame_regression),
        "causal transformer": _parameters(nova) - decoder - motion,
    }
    return {**counts, "total": sum(counts.values())}


def _parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def _rounding(counts: dict[str, int]) -> list[str]:
    """Why the total is not the sum of the numbers above it, where it is not."""
    *parts, total = [round(count / 1e6, 1) for count in counts.values()]
    summed = round(sum(parts), 1)
    if summed == total:
        return []
    return [f"  (the rounded parts add up to {summed}M, which is how the paper's Table 1 counts; the total is exact)"]


def _row(part: tuple[str, int]) -> str:
    name, count = part
    return f"  {name:<36} {count:>13,}  {count / 1e6:>7.1f}M"


def _shapes(config: PARConfig) -> list[str]:
    nova, action = config.nova, config.action
    joints = 1 if action.proprioception_size else 0
    cameras = "" if nova.cameras == 1 else f" of {nova.cameras} cameras side by side"
    return [
        f"  latents {nova.latent_channels}x{nova.latent_size[0]}x{nova.latent_size[1]}{cameras}; a physical token is "
        f"{nova.video_tokens} patches + {joints} of joint positions + {action.chunk_length} actions of "
        f"{action.action_size} numbers",
        f"  context of {config.max_context} physical tokens",
    ]


def _training(policy: dict[str, Any]) -> str:
    if policy["transforms"] is None:
        return "video weights only, not trained to act yet"
    steps, init = policy["trained"].get("steps"), policy["trained"].get("options", {}).get("init")
    if steps is None:
        return "trained"
    return f"trained for {steps:,} steps" + (f" from {init} on" if init else "")
