"""Tiny models and checkpoints of the real classes, for tests."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from par_agent.data.episodes import Episode, frame_steps, write_episode
from par_agent.data.render_spec import RenderSpec
from par_agent.modeling.config import (
    ActionConfig,
    DiffusionConfig,
    EncoderConfig,
    InferenceConfig,
    NOVAConfig,
    PARConfig,
)
from par_agent.modeling.par import PARModel, PhysicalTokens
from par_agent.modeling.text_encoder import HashTextEncoder
from par_agent.modeling.vae.frame_encoder import for_cameras
from par_agent.modeling.vae.frame_vae import FrameVAE, FrameVAEConfig
from par_agent.policy.checkpoint import Checkpoint
from par_agent.policy.transforms import Transforms
from par_agent.training.config import FinetuneConfig, TrainingConfig
from par_agent.utils.checked import C, from_options, option_values
from par_agent.utils.files import write_json

LENGTH, SIZE, JOINTS = 4, 8, 9


def tiny_config(nova_layout: bool = False) -> PARConfig:
    """The layout of the preset ``mini``, or that of NOVA (slot 0, motion, mixer, absolute time), tiny."""
    encoder = EncoderConfig(2, 32, 1, branch_start=1.0 if nova_layout else 0.1)
    nova = NOVAConfig(
        latent_channels=2,
        latent_size=(8, 8),
        video_patch=4,
        image_patch=2,
        video_encoder=encoder,
        image_encoder=encoder,
        decoder_depth=1,
        decoder_width=16,
        text_dim=8,
        text_length=24,
        video_base_size=(5, 2, 2),
        image_base_size=(4, 4),
        absolute_time=nova_layout,
        rotary=not nova_layout,
        motion=nova_layout,
        bos_slot=nova_layout,
        mixer_rank=4 if nova_layout else None,
        stem_widths=() if nova_layout else (8, 16),
        diffusion=DiffusionConfig("ddpm" if nova_layout else "flow"),
    )
    action = ActionConfig(
        chunk_length=LENGTH,
        tokenizer_widths=(16,),
        width=32,
        depth=2,
        heads=2,
        conditions="actions" if nova_layout else "token",
    )
    return PARConfig("tiny", nova, action)


def tiny_model(nova_layout: bool = False, seed: int = 0) -> PARModel:
    """Random weights everywhere, also where training starts from zero, so that every path shows in the outputs."""
    torch.manual_seed(seed)
    model = PARModel(tiny_config(nova_layout))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def tiny_inputs(batch: int, steps: int, seed: int = 1) -> PhysicalTokens:
    """Random physical tokens; the first chunk of every row is unknown."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.ones(batch, steps, dtype=torch.bool)
    known[:, 0] = False
    return PhysicalTokens(
        torch.randn(batch, steps, 2, 8, 8, generator=generator),
        torch.randn(batch, steps, JOINTS, generator=generator),
        torch.randn(batch, steps, LENGTH, SIZE, generator=generator),
        known,
    )


def tiny_features(batch: int) -> list[torch.Tensor]:
    """Text features of different lengths."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(1 + row % 5, 8, generator=generator) for row in range(batch)]


def tiny_transforms(camera: str = "render_camera") -> Transforms:
    """Frames of 16x16 pixels cut out of 24x32 ones."""
    return Transforms(
        camera=camera,
        image_size=(24, 32),
        crop=(4, 8, 16, 16),
        size=None,
        relative=(True,) * 7 + (False,),
        proprioception_mean=tuple(0.1 * number for number in range(JOINTS)),
        proprioception_std=(0.5,) * JOINTS,
        action_mean=tuple((0.01 * step,) * SIZE for step in range(LENGTH)),
        action_std=tuple((0.1 + 0.01 * step,) * SIZE for step in range(LENGTH)),
    )


def tiny_checkpoint(camera: str = "render_camera") -> Checkpoint:
    """A policy checkpoint with random weights."""
    model = tiny_model()
    torch.manual_seed(3)
    encoder = FrameVAE(FrameVAEConfig(channels=2, widths=(8,)))
    nova = model.config.nova
    text = HashTextEncoder(nova.text_dim, nova.text_length)
    inference = InferenceConfig(denoising_steps=4)
    return Checkpoint(model, encoder.eval(), tiny_transforms(camera), text, inference)


def checkpoint_of_cameras(cameras: tuple[str, ...]) -> Checkpoint:
    """A policy checkpoint with random weights that reads these cameras together."""
    one, count = tiny_checkpoint(), len(cameras)
    assert one.transforms is not None
    model = PARModel.from_weights(one.model.config.with_cameras(count), one.model.state_dict()).eval()
    if model.nova.camera_embed is not None:
        torch.nn.init.normal_(model.nova.camera_embed, std=0.3)
    transforms = dataclasses.replace(one.transforms, camera=cameras)
    return dataclasses.replace(one, model=model, encoder=for_cameras(one.encoder, count), transforms=transforms)


def tiny_dataset(
    folder: Path,
    episodes: int = 6,
    stride: int = LENGTH,
    actions: bool = True,
    alike: bool = False,
    cameras: tuple[str, ...] = ("render_camera",),
) -> Path:
    """Writes a rendered dataset of random episodes of 5 to 5 + ``episodes`` control steps, frames of 16x16 pixels.

    ``alike``: the joint positions and instruction are the same in all episodes, which only frames tell apart then.
    """
    totals = {"frames": 0, "steps": 0}
    for number in range(episodes):
        generator = np.random.default_rng(number)
        steps = 5 + number
        at = frame_steps(steps, stride, 0)
        frames = generator.integers(0, 256, (len(at), 16, 16, 3), dtype=np.uint8)
        joints = np.random.default_rng(0) if alike else generator
        positions = joints.normal(size=(steps + 1, JOINTS)).astype(np.float32)
        chunk = generator.normal(size=(steps, SIZE)).astype(np.float32) if actions else None
        instruction = f"push cube {1 if alike else number % 2}"
        attributes = {"instruction": instruction, "seed": number, "env_id": "PushCube-v1"}
        path = folder / "episodes" / f"episode_{number:06d}.h5"
        shown = {camera: np.roll(frames, 5 * place, 2) for place, camera in enumerate(cameras)}
        write_episode(path, Episode(shown, at, positions, chunk, attributes))
        totals["frames"] += len(at)
        totals["steps"] += steps
    spec = RenderSpec("PushCube-v1", "demos.h5", episodes, "push cube", cameras, (4, 8, 16, 16), stride=stride)
    write_json(folder / "spec.json", spec.to_json())
    summary = {"num_episodes": episodes, "num_frames": totals["frames"], "actions": actions}
    summary |= {"extra": {}, "image_sizes": {}}
    write_json(folder / "dataset.json", summary)
    return folder


def tiny_run(folder: Path, episodes: int = 21, **options: Any) -> FinetuneConfig:
    """A training run of a few steps on random episodes, from a tiny checkpoint, in ``folder / "run"``."""
    tiny_checkpoint().save(folder / "init")
    data = tiny_dataset(folder / "data", episodes)
    defaults = {
        "out": folder / "run",
        "data": (data,),
        "init": folder / "init",
        "steps": 6,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "window": 2,
        "warmup": 2,
        "variants": 2,
        "shift": 1,
        "validate_every": 3,
        "save_minutes": 0.0,
    }
    return from_options(FinetuneConfig, {**defaults, **options})


def command(config: FinetuneConfig) -> list[str]:
    """The command line of a training run."""
    return [sys.executable, "-m", "par_agent", "finetune", *option_words(config)]


def option_words(config: TrainingConfig) -> list[str]:
    """A training run's options as words of a command line."""
    words = []
    for name, value in option_values(config).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None and value != ():
            words += [f"--{option}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def task_checkpoint() -> Checkpoint:
    """A policy checkpoint with random weights that looks at a task's own images, shrunk."""
    checkpoint = tiny_checkpoint()
    assert checkpoint.transforms is not None
    transforms = dataclasses.replace(checkpoint.transforms, image_size=(512, 512), crop=None, size=(16, 16))
    return dataclasses.replace(checkpoint, transforms=transforms)


def with_options(config: C, **changes: Any) -> C:
    """A config with some of its options, or of its groups', changed."""
    return from_options(type(config), option_values(config) | changes)
