"""Published NOVA configurations (``transformer/config.json`` and ``scheduler/scheduler_config.json``) as our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from par_agent.modeling.config import DiffusionConfig, EncoderConfig, NOVAConfig
from par_agent.modeling.rope import axis_sizes
from par_agent.modeling.weights import read_config
from par_agent.utils.checked import Checked, Size
from par_agent.utils.files import naming, read_object
from par_agent.utils.json_fields import build, check

HEADS = {768: 12, 1024: 16, 1536: 16}
"""Attention heads of the published transformer widths; the ``arch`` strings do not say them."""
MLP_RATIO = 4
MIXER = "video_encoder.mixer."
DDPM_DEFAULTS: dict[str, Any] = {
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "variance_type": "fixed_small",
    "timestep_spacing": "leading",
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
}
"""What diffusers takes where a scheduler's file says nothing, of the fields that decide what its numbers mean."""
DDPM_EXPECTED = {**DDPM_DEFAULTS, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
"""The one meaning that :mod:`par_agent.modeling.diffusion` computes."""
FLOW_OPTIONS = ("use_dynamic_shifting", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas",
                "use_beta_sigmas", "shift_terminal", "stochastic_sampling")  # fmt: skip
"""Fields of flow matching's file that change its noise levels or its steps where they are set."""


@dataclass(frozen=True)
class PublishedTransformer(Checked):
    """The fields of a published ``config.json``."""

    image_dim: Size
    """Latent channels."""
    image_size: Size | tuple[Size, Size]
    """Height and width of a frame in pixels; one number for both."""
    image_stride: Size
    """Pixels a side of one latent pixel."""
    text_token_dim: Size
    """Width of text features."""
    text_token_len: Size
    """Text tokens."""
    video_base_size: tuple[Size, Size, Size]
    """Frames, rows and columns of the temporal encoder's token grid."""
    image_base_size: tuple[Size, Size]
    """Rows and columns of the spatial encoder's token grid."""
    arch: tuple[str, str, str]
    """Temporal encoder, spatial encoder and diffusion MLP, as ``vit_d<depth>w<width>`` and ``mlp_d<depth>w<width>``."""
    rotary_pos_embed: bool = False
    """Rotary positions in place of absolute ones."""
    video_mixer_rank: int | None = None
    """Rank of the mixer, negative: full; the weights decide where they have one."""
    arch_hparams: dict[str, Any] | None = None
    """Per part, numbers that override what ``arch`` says; not in published files."""


@dataclass(frozen=True)
class _Part:
    depth: int
    width: int
    heads: int | None
    mlp_ratio: int


def read_nova_config(folder: Path, tensors: Mapping[str, Tensor]) -> NOVAConfig:
    """Our configuration of a published ``transformer`` folder and of the ``scheduler`` folder beside it, if any.

    Raises:
        UserError: a file is missing, or its fields are not as :func:`nova_config` and :func:`diffusion_config` take
            them.
    """
    fields, scheduler = read_config(folder), folder.parent / "scheduler"
    described = read_object(scheduler / "scheduler_config.json") if scheduler.is_dir() else None
    with naming(scheduler / "scheduler_config.json"):
        diffusion = diffusion_config(described)
    with naming(folder / "config.json"):
        return nova_config(fields, tensors, diffusion)


def nova_config(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], diffusion: DiffusionConfig) -> NOVAConfig:
    """Our configuration of a published transformer.

    The mixer is taken from the weights where they have one (the published configuration need not mention it), its
    rank from their shape. ``arch_hparams``, where present, overrides what the ``arch`` strings say.

    Args:
        fields: ``config.json`` without the fields that start with an underscore.
        tensors: the weights, for their names and shapes; may be empty or on the meta device.
        diffusion: noise process of the frame de-tokenizer.

    Raises:
        ValueError: fields are unknown, missing, of another type or out of range; each is named.
    """
    if fields.get("text_token_dim", 0) is None:
        raise ValueError("text_token_dim is null: class-conditional models, without text, are not known")
    published = build(PublishedTransformer, dict(fields))
    video, image, decoder = (_part(published, index) for index in range(3))
    if video.width != image.width:
        raise ValueError(f"arch {published.arch}: video and image encoder have different widths; expected the same")
    size = published.image_size
    height, width = (size, size) if isinstance(size, int) else size
    image_patch = 15 // published.image_stride + 1
    base, rotary = published.video_base_size, published.rotary_pos_embed
    config = NOVAConfig(
        latent_channels=published.image_dim,
        latent_size=(height // published.image_stride, width // published.image_stride),
        video_patch=2 * image_patch,
        image_patch=image_patch,
        video_encoder=_encoder(video, published.arch[0]),
        image_encoder=_encoder(image, published.arch[1]),
        decoder_depth=decoder.depth,
        decoder_width=decoder.width,
        text_dim=published.text_token_dim,
        text_length=published.text_token_len,
        video_base_size=base,
        image_base_size=published.image_base_size,
        absolute_space=not rotary,
        absolute_time=not rotary,
        rotary=rotary,
        motion=base[0] > 1,
        bos_slot=True,
        mixer_rank=_mixer_rank(published, tensors),
        diffusion=diffusion,
    )
    for name, given, grid in (
        ("video_base_size", base[1:], config.video_grid),
        ("image_base_size", config.image_base_size, config.image_grid),
    ):
        if not rotary and given != grid:
            raise ValueError(f"{name} has {given} rows and columns; image_size {height}x{width} gives {grid} tokens")
    for encoder in (config.video_encoder, config.image_encoder):
        sizes = axis_sizes(encoder.head_dim)
        if rotary and (0 in sizes or any(size % 2 for size in sizes)):
            raise ValueError(
                f"rotary positions turn pairs of numbers; heads of {encoder.head_dim} numbers split into "
                f"{sizes} for time, row and column, and each must be even"
            )
    return config


def diffusion_config(fields: Mapping[str, Any] | None) -> DiffusionConfig:
    """Noise process of a published ``scheduler_config.json`` with its ``_class_name``; None: the video model's DDPM.

    Raises:
        ValueError: another scheduler than DDPM with capped cosine betas and noise prediction, or flow matching; or
            fields that give its numbers another meaning.
    """
    if fields is None:
        return DiffusionConfig("ddpm")

    def number(field: str, default: float, kind: type) -> Any:
        value = fields.get(field, default)
        check(f"scheduler_config.json: {field}", value, kind)
        return value

    train, shift = number("num_train_timesteps", 1000, int), number("shift", 1.0, float)
    offset = number("steps_offset", 0, int)
    name = str(fields.get("_class_name", "DDPMScheduler"))
    if "FlowMatch" in name:
        if options := [option for option in FLOW_OPTIONS if fields.get(option)]:
            raise ValueError(f"scheduler {name} sets {', '.join(options)}, which are not known")
        return DiffusionConfig("flow", train_steps=train, shift=shift)
    got = {key: fields.get(key, default) for key, default in DDPM_DEFAULTS.items()}
    if "DDPM" not in name or got != DDPM_EXPECTED:
        raise ValueError(
            f"scheduler {name} with {got} is not known; expected flow matching or DDPM with {DDPM_EXPECTED}"
        )
    return DiffusionConfig("ddpm", train_steps=train, steps_offset=offset)


def _part(published: PublishedTransformer, index: int) -> _Part:
    name = ("video_encoder", "image_encoder", "image_decoder")[index]
    given = (published.arch_hparams or {}).get(name) or {}
    check(f"arch_hparams.{name}", given, dict)
    for field, value in given.items():
        check(f"arch_hparams.{name}.{field}", value, int)
    arch = published.arch[index]
    match = re.fullmatch(r"(vit|mlp)_d(\d+)w(\d+)", arch)
    if match is None and not {"depth", "width"} <= set(given):
        raise ValueError(f"arch[{index}] is {arch!r}; expected vit_d<depth>w<width> or mlp_d<depth>w<width>")
    depth, width = (int(match[2]), int(match[3])) if match else (0, 0)
    depth, width = given.get("depth", depth), given.get("width", width)
    if given.get("encoder_depth", depth // 2) != depth // 2:
        raise ValueError(f"{name}.encoder_depth is {given['encoder_depth']}; expected half of the depth {depth}")
    return _Part(depth, width, given.get("heads", HEADS.get(width)), given.get("mlp_ratio", MLP_RATIO))


def _encoder(part: _Part, arch: str) -> EncoderConfig:
    if part.heads is None:
        raise ValueError(f"the number of heads of {arch} is not known; add arch_hparams with heads to config.json")
    return EncoderConfig(part.depth, part.width, part.heads, part.mlp_ratio)


def _mixer_rank(published: PublishedTransformer, tensors: Mapping[str, Tensor]) -> int | None:
    if (lora := tensors.get(f"{MIXER}lora.weight")) is not None:
        return lora.shape[0]
    if any(name.startswith(MIXER) for name in tensors):
        return -1
    return published.video_mixer_rank or None
