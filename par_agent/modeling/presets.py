"""Named configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from par_agent.modeling.config import ActionConfig, DiffusionConfig, EncoderConfig, NOVAConfig, PARConfig


@dataclass(frozen=True)
class Preset:
    """A model and the frozen parts that it reads through."""

    model: Callable[[], PARConfig]
    """Makes the model's configuration."""
    frame_encoder: dict[str, Any]
    """Fields of the frame encoder's ``config.json``; what is not named has its default."""
    text_encoder: Literal["hash", "phi"]
    """Kind of the text encoder."""


def mini() -> PARConfig:
    """Small enough to be trained from scratch on two CPU cores; frames of 320x320 pixels, latents of 8x40x40.

    A frame is 25 tokens behind a convolutional stem; the Action-DiT flows from noise to actions in 10 steps, and in
    training to four more that lie up to six chunks ahead. It attends to the frame's outputs too, and the blocks'
    branches start out small: from scratch, both make it learn faster (benchmarks/EXPERIMENTS.md, section 17).
    """
    nova = NOVAConfig(
        latent_channels=8,
        latent_size=(40, 40),
        video_patch=8,
        image_patch=8,
        video_encoder=EncoderConfig(4, 192, 6, branch_start=0.1),
        image_encoder=EncoderConfig(2, 192, 6, branch_start=0.1),
        decoder_depth=2,
        decoder_width=256,
        text_dim=64,
        text_length=24,
        video_base_size=(1, 5, 5),
        image_base_size=(5, 5),
        absolute_time=False,
        rotary=True,
        motion=False,
        bos_slot=False,
        stem_widths=(48, 64, 128),
        diffusion=DiffusionConfig("flow"),
    )
    action = ActionConfig(
        foresight=(15, 23, 31, 47), tokenizer_widths=(96,), width=192, depth=3, heads=6, conditions="token"
    )
    return PARConfig("mini", nova, action)


def par_nova() -> PARConfig:
    """The paper's size on NOVA's published video model (Table 1): 663M parameters, frames of 480x768 pixels."""
    nova = NOVAConfig(
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
    )
    return PARConfig("par-nova-0.6b", nova, ActionConfig())


def par_noar() -> PARConfig:
    """Ablation PAR-NoAR in the small size: no transformer, text and frame tokens go straight to the Action-DiT.

    The paper (section 5.3.1) keeps the MLP of the action tokenizer, and says that the embedded visual and text tokens
    are what is decoded. Here the second holds to the letter: the Action-DiT does not see the chunk before, which it
    could only copy without a transformer.
    """
    full = mini()
    nova = replace(full.nova, video_encoder=replace(full.nova.video_encoder, depth=0))
    return replace(full, name="par-noar", nova=nova, imagination=False)


def par_discrete() -> PARConfig:
    """Ablation PAR-Discrete in the small size: regression in place of both diffusion de-tokenizers."""
    full = mini()
    action = replace(full.action, conditions="actions")  # an answer for each of them; there is nothing that attends
    return replace(full, name="par-discrete", action=action, detokenizers="regression")


def par_noimagine() -> PARConfig:
    """An ablation of our own in the small size: no frame path and no frame loss, the rest as in PAR."""
    return replace(mini(), name="par-noimagine", imagination=False)


SMALL: dict[str, Any] = {"_class_name": "FrameVAE"}
VIDEO: dict[str, Any] = {"_class_name": "AutoencoderKLOpenSora"}

PRESETS = {
    "mini": Preset(mini, SMALL, "hash"),
    "par-noar": Preset(par_noar, SMALL, "hash"),
    "par-discrete": Preset(par_discrete, SMALL, "hash"),
    "par-noimagine": Preset(par_noimagine, SMALL, "hash"),
    "par-nova-0.6b": Preset(par_nova, VIDEO, "phi"),
}


def find_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        ValueError: no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


def preset(name: str) -> PARConfig:
    """The model's configuration of a preset.

    Raises:
        ValueError: no such preset.
    """
    return find_preset(name).model()
