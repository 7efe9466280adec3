"""Trains the small frame VAE on rendered frames (with or without actions), and freezes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from par_agent.data.patches import FrameSampler, open_frames
from par_agent.modeling.random_numbers import batch_seed, seeded_generator
from par_agent.modeling.vae.frame_encoder import save_frame_encoder
from par_agent.modeling.vae.frame_vae import FrameVAE, to_pixels, vae_loss
from par_agent.training.optimisation import clip_and_step, learning_rate, make_optimizer, set_learning_rate
from par_agent.training.progress import StepProgress
from par_agent.training.state import (
    check_steps,
    interruptible,
    latest_training_state,
    load_training_state,
    save_training_state,
)
from par_agent.training.vae_config import VAETraining
from par_agent.utils.device import moved
from par_agent.utils.image_quality import psnr, psnr_of_error
from par_agent.utils.videos import write_video


def train_vae(options: VAETraining) -> dict[str, Any]:
    """Runs or resumes training, writes the frozen VAE into ``out`` and returns its measurements.

    Data that does not fit, a run folder of other settings or of another process, a diverging loss and a full disk are
    UserErrors. Told to end, it raises :class:`Interrupted` once the step in hand is done and saved.
    """
    train, held_out = open_frames(options.data, options.camera, options.patch, options.model.stride)
    with options.claimed():
        vae = _train(options, FrameSampler(train, options.camera, options.seed))
        for_scale = FrameSampler(train, options.camera, options.seed + 1)
        for_error = FrameSampler(held_out, options.camera, options.seed + 2)
        return _freeze(vae, for_scale, for_error, options)


def _train(options: VAETraining, sampler: FrameSampler) -> FrameVAE:
    """Does the steps from the last training state on and saves the last one."""
    torch.manual_seed(options.seed)
    states, device, start = options.out / "training_states", torch.device(options.device), 0
    vae = FrameVAE(options.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(vae, options.learning_rate, 0.0)
    if (found := latest_training_state(states)) is not None:
        start = load_training_state(found, {"model": vae.state_dict()}, vae, optimizer)["step"]
        check_steps(options.out, start, options.steps)
        print(f"resumed from {found}")
    with (
        interruptible(states, options.save_minutes) as clock,
        sampler.batches(start, options.steps, options.batch_size, options.patch) as batches,
        StepProgress("train-vae", start, options.steps) as progress,
    ):
        for step, batch in enumerate(batches, start):
            set_learning_rate(optimizer, learning_rate(step, options.steps, options.warmup, options.learning_rate))
            generator = seeded_generator(batch_seed(options.seed, step))
            pixels = to_pixels(moved(batch, device)).contiguous(memory_format=torch.channels_last)
            loss, squared = vae_loss(vae, pixels, options.kl_weight, generator)
            loss.backward()
            clip_and_step(vae, optimizer, 1.0, f"at step {step}")
            progress.advance(f"loss {loss.item():.4f}, psnr {psnr_of_error(squared.item(), 2):.1f} dB")
            told = clock.told
            if clock.due or told or step + 1 == options.steps:
                save_training_state(states, step + 1, {"model": vae.state_dict()}, vae, optimizer, {}, keep=1)
                clock.restart()
            if told:
                clock.end()
    return vae


def _freeze(vae: FrameVAE, train: FrameSampler, held_out: FrameSampler, options: VAETraining) -> dict[str, Any]:
    """Measures and sets the latents' scale, measures the held-out error, and saves the frozen VAE and a picture: frames
    above, their reconstructions below.
    """
    vae.eval()
    device = vae.latent_mean.device
    frames = train.patches(0, 256, None).to(device)
    latents = torch.cat([vae.encode(part) for part in frames.split(32)])
    vae.set_scale(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    frames = held_out.patches(0, 64, None).to(device)
    shown = torch.cat([vae.decode(vae.encode(part)) for part in frames.split(32)]).cpu().numpy()
    true = frames.cpu().numpy()
    metrics = {
        "psnr_db": round(psnr(shown, true), 2),
        "steps": options.steps,
        "held_out_episodes": len(held_out.paths),
    }
    rows = [np.concatenate(list(images[:4]), axis=1) for images in (true, shown)]
    write_video(options.out / "reconstructions.png", np.concatenate(rows)[None], fps=1)
    save_frame_encoder(vae, options.out / "vae", metrics)
    return metrics
