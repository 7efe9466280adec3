"""Published NOVA configurations (``transformer/config.json`` and ``scheduler/scheduler_config.json``) as our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from par_agent.errors import UserError
from par_agent.modeling.config import DiffusionConfig, EncoderConfig, NOVAConfig
from par_agent.modeling.rope import axis_sizes

HEADS = {768: 12, 1024: 16, 1536: 16}
"""Attention heads of the published transformer widths; the ``arch`` strings do not say them."""
MLP_RATIO = 4
KNOWN_FIELDS = {
    "image_dim",
    "image_size",
    "image_stride",
    "text_token_dim",
    "text_token_len",
    "rotary_pos_embed",
    "video_base_size",
    "image_base_size",
    "video_mixer_rank",
    "arch",
    "arch_hparams",
}
REQUIRED_FIELDS = KNOWN_FIELDS - {"rotary_pos_embed", "video_mixer_rank", "arch_hparams"}
MIXER = "video_encoder.mixer."


@dataclass(frozen=True)
class _Part:
    depth: int
    width: int
    heads: int | None
    mlp_ratio: int


def nova_config(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], diffusion: DiffusionConfig) -> NOVAConfig:
    """Our configuration of a published transformer.

    The mixer is taken from the weights where they have one (the published configuration need not mention it), its
    rank from their shape. ``arch_hparams``, where present, overrides what the ``arch`` strings say.

    Args:
        fields: ``config.json`` without the fields that start with an underscore.
        tensors: the weights, for their names and shapes; may be empty or on the meta device.
        diffusion: noise process of the frame de-tokenizer.

    Raises:
        UserError: fields are unknown, missing or out of range; each is named.
    """
    _check_fields(fields)
    video, image, decoder = (_part(fields, index) for index in range(3))
    if video.width != image.width:
        raise UserError(f"arch {fields['arch']}: video and image encoder have different widths; expected the same")
    size = fields["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    stride = fields["image_stride"]
    image_patch = 15 // stride + 1
    base = tuple(fields["video_base_size"])
    rotary = bool(fields.get("rotary_pos_embed", False))
    config = NOVAConfig(
        latent_channels=fields["image_dim"],
        latent_size=(height // stride, width // stride),
        video_patch=2 * image_patch,
        image_patch=image_patch,
        video_encoder=_encoder(video, fields["arch"][0]),
        image_encoder=_encoder(image, fields["arch"][1]),
        decoder_depth=decoder.depth,
        decoder_width=decoder.width,
        text_dim=fields["text_token_dim"],
        text_length=fields["text_token_len"],
        video_base_size=base,
        image_base_size=tuple(fields["image_base_size"]),
        absolute_space=not rotary,
        absolute_time=not rotary,
        rotary=rotary,
        motion=base[0] > 1,
        bos_slot=True,
        mixer_rank=_mixer_rank(fields, tensors),
        diffusion=diffusion,
    )
    for name, given, grid in (
        ("video_base_size", base[1:], config.video_grid),
        ("image_base_size", config.image_base_size, config.image_grid),
    ):
        if not rotary and given != grid:
            raise UserError(f"{name} has {given} rows and columns; image_size {height}x{width} gives {grid} tokens")
    for encoder in (config.video_encoder, config.image_encoder):
        sizes = axis_sizes(encoder.width // encoder.heads)
        if rotary and (0 in sizes or any(size % 2 for size in sizes)):
            raise UserError(
                f"rotary positions turn pairs of numbers; heads of {encoder.width // encoder.heads} numbers split into "
                f"{sizes} for time, row and column, and each must be even"
            )
    return config


def diffusion_config(fields: Mapping[str, Any] | None, sampling_steps: int = 25) -> DiffusionConfig:
    """Noise process of a published ``scheduler_config.json`` with its ``_class_name``; None: the video model's DDPM.

    Raises:
        UserError: another scheduler than DDPM with capped cosine betas and noise prediction, or flow matching.
    """
    if fields is None:
        return DiffusionConfig("ddpm", sampling_steps=sampling_steps)
    steps = fields.get("num_train_timesteps", 1000)
    name = fields.get("_class_name", "DDPMScheduler")
    if "FlowMatch" in name:
        return DiffusionConfig("flow", train_steps=steps, shift=fields.get("shift", 1.0), sampling_steps=sampling_steps)
    expected = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "clip_sample": False}
    defaults = {"beta_schedule": "linear", "prediction_type": "epsilon", "clip_sample": True}
    got = {key: fields.get(key, default) for key, default in defaults.items()}
    if "DDPM" not in name or got != expected:
        raise UserError(f"scheduler {name} with {got} is not known; expected flow matching or DDPM with {expected}")
    return DiffusionConfig("ddpm", train_steps=steps, sampling_steps=sampling_steps)


def _check_fields(fields: Mapping[str, Any]) -> None:
    if unknown := sorted(set(fields) - KNOWN_FIELDS):
        raise UserError(
            f"config.json has fields that this version does not know: {', '.join(unknown)}; it may come from a newer "
            f"model. Known: {', '.join(sorted(KNOWN_FIELDS))}"
        )
    if missing := sorted(name for name in REQUIRED_FIELDS if fields.get(name) is None):
        raise UserError(
            f"config.json lacks {', '.join(missing)} (class-conditional models, without text, are not known)"
        )
    if len(fields["arch"]) != 3 or len(fields["video_base_size"]) != 3 or len(fields["image_base_size"]) != 2:
        raise UserError("config.json needs 3 entries in arch and video_base_size, 2 in image_base_size")


def _part(fields: Mapping[str, Any], index: int) -> _Part:
    name = ("video_encoder", "image_encoder", "image_decoder")[index]
    given = dict((fields.get("arch_hparams") or {}).get(name) or {})
    arch = fields["arch"][index]
    match = re.fullmatch(r"(vit|mlp)_d(\d+)w(\d+)", str(arch))
    if match is None and not {"depth", "width"} <= set(given):
        raise UserError(f"arch[{index}] is {arch!r}; expected vit_d<depth>w<width> or mlp_d<depth>w<width>")
    depth, width = (int(match[2]), int(match[3])) if match else (0, 0)
    depth, width = given.get("depth", depth), given.get("width", width)
    if given.get("encoder_depth", depth // 2) != depth // 2:
        raise UserError(f"{name}.encoder_depth is {given['encoder_depth']}; expected half of the depth {depth}")
    return _Part(depth, width, given.get("heads", HEADS.get(width)), given.get("mlp_ratio", MLP_RATIO))


def _encoder(part: _Part, arch: str) -> EncoderConfig:
    if part.heads is None:
        raise UserError(f"the number of heads of {arch} is not known; add arch_hparams with heads to config.json")
    return EncoderConfig(part.depth, part.width, part.heads, part.mlp_ratio)


def _mixer_rank(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int | None:
    if (lora := tensors.get(f"{MIXER}lora.weight")) is not None:
        return lora.shape[0]
    if any(name.startswith(MIXER) for name in tensors):
        return -1
    return fields.get("video_mixer_rank") or None
