"""Named configurations of models that are trained from scratch, and of the paper's full size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from par_agent.modeling.config import ActionConfig, DiffusionConfig, EncoderConfig, NOVAConfig, PARConfig


@dataclass(frozen=True)
class Preset:
    """A model and the kinds of the frozen parts that it reads through."""

    model: PARConfig
    """The model's configuration."""
    frame_encoder: Literal["FrameVAE", "AutoencoderKLOpenSora"] = "FrameVAE"
    """``_class_name`` of the frame encoder; its other fields have their defaults."""
    text_encoder: Literal["hash", "phi"] = "hash"
    """Kind of the text encoder."""


MINI = PARConfig(
    "mini",
    NOVAConfig(
        latent_channels=8,
        latent_size=(40, 40),
        video_patch=8,
        image_patch=4,
        video_encoder=EncoderConfig(4, 192, 6, branch_start=0.1),
        image_encoder=EncoderConfig(4, 192, 6, branch_start=0.1),
        decoder_depth=2,
        decoder_width=256,
        text_dim=64,
        text_length=24,
        video_base_size=(1, 5, 5),
        image_base_size=(10, 10),
        absolute_time=False,
        rotary=True,
        motion=False,
        bos_slot=False,
        stem_widths=(48, 64, 128),
        reads_last_frame=True,
        diffusion=DiffusionConfig("flow", preconditioned=True),
    ),
    ActionConfig(foresight=(15, 23, 31, 47), tokenizer_widths=(96,), width=192, depth=3, heads=6, conditions="token"),
)
"""Small enough to be trained from scratch on two CPU cores; frames of 320x320 pixels, latents of 8x40x40.

A frame is 25 tokens behind a convolutional stem. The Action-DiT predicts the chunk and four more actions that lie up to
six chunks ahead. It attends to the frame's outputs too, and the blocks' branches start out small: from scratch, both
make it learn faster (benchmarks/EXPERIMENTS.md, section 17).
"""

NOVA_SIZE = PARConfig(
    "par-nova-0.6b",
    NOVAConfig(
        latent_channels=4,
        latent_size=(60, 96),
        video_patch=4,
        image_patch=2,
        video_encoder=EncoderConfig(16, 1024, 16),
        image_encoder=EncoderConfig(32, 1024, 16),
        decoder_depth=3,
        decoder_width=1280,
        text_dim=2560,
        text_length=256,
        video_base_size=(16, 15, 24),
        image_base_size=(30, 48),
        mixer_rank=24,
    ),
    ActionConfig(),
)
"""The paper's size on NOVA's published video model (Table 1): 663M parameters, frames of 480x768 pixels."""

NOAR = replace(
    MINI,
    name="par-noar",
    nova=replace(MINI.nova, video_encoder=replace(MINI.nova.video_encoder, depth=0)),
    imagination=False,
)
"""Ablation PAR-NoAR in the small size: no transformer, text and frame tokens go straight to the Action-DiT.

The paper (section 5.3.1) keeps the MLP of the action tokenizer, and says that the embedded visual and text tokens are
what is decoded. Here the Action-DiT does not see the chunk before: without a transformer it could only copy it.
"""

DISCRETE = replace(MINI.with_action(conditions="actions"), name="par-discrete", detokenizers="regression")
"""Ablation PAR-Discrete in the small size: regression, an answer per condition, in place of both diffusion
de-tokenizers."""

NOIMAGINE = replace(MINI, name="par-noimagine", imagination=False)
"""An ablation of our own in the small size: no frame path and no frame loss, the rest as in PAR."""

PRESETS = {config.name: Preset(config) for config in (MINI, NOAR, DISCRETE, NOIMAGINE)}
PRESETS[NOVA_SIZE.name] = Preset(NOVA_SIZE, "AutoencoderKLOpenSora", "phi")


def preset(name: str) -> PARConfig:
    """The model's configuration of a preset.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name].model
