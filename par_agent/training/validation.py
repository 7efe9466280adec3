"""Measurements on held-out episodes, and predictions of a whole one.

Letters of shapes: see :mod:`par_agent.modeling`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from par_agent.data.windows import Windows, WindowSampler, concatenate
from par_agent.modeling.nova.generation import RandomNoise
from par_agent.modeling.random_numbers import seeded_generator
from par_agent.policy.checkpoint import Checkpoint
from par_agent.policy.frames import Frames, next_frames
from par_agent.policy.transforms import Transforms
from par_agent.training.objective import tensors
from par_agent.utils.image_quality import psnr

MAX_WINDOWS = 16
"""Windows measured per dataset, spread over its held-out episodes."""
MAX_FRAMES = 8
"""Frames predicted per dataset, which costs far more than actions; also the frames shown of an episode."""
MAX_EPISODE_WINDOWS = 16
"""Windows shown of an episode."""


def validate(
    policy: Checkpoint, samplers: list[WindowSampler], device: torch.device, *, actions: bool = True
) -> dict[str, float]:
    """Errors of the deterministic policy that sees one step (a model of videos sees all), averaged over datasets.

    Returns:
        action_error: mean absolute joint error, radians; also per dataset.
        shuffled_error: the same with the frames of another window; equal if the policy ignores its images.
        gripper_accuracy: share of actions that open or close the gripper as demonstrated; if the robot has one.
        frame_psnr: PSNR of predicted next frames against the true ones after the frame encoder, dB; with a frame path.
        still_psnr: PSNR of the frames before against the same, dB: the baseline to beat.
    """
    return over_datasets(samplers, lambda sampler: _measure(policy, sampler, device, actions))


def over_datasets(
    samplers: list[WindowSampler], measure: Callable[[WindowSampler], dict[str, float]]
) -> dict[str, float]:
    """Measurements averaged over datasets, and the errors of actions also per dataset, as ``NAME/DATASET``."""
    metrics: dict[str, float] = {}
    for sampler in samplers:
        found = measure(sampler)
        for name, value in found.items():
            metrics[name] = metrics.get(name, 0.0) + value / len(samplers)
        dataset = sampler.index.dataset.folder.name
        metrics |= {f"{name}/{dataset}": found[name] for name in ("action_error", "shuffled_error") if name in found}
    return metrics


def held_out_windows(sampler: WindowSampler, limit: int) -> Windows:
    """Up to ``limit`` windows without augmentation, spread over a dataset's held-out episodes."""
    numbers = torch.linspace(0, len(sampler) - 1, min(limit, len(sampler))).long().tolist()
    return concatenate([sampler.sample(number, 1, augment=False) for number in numbers])


@torch.inference_mode()
def _measure(policy: Checkpoint, sampler: WindowSampler, device: torch.device, actions: bool) -> dict[str, float]:
    windows = held_out_windows(sampler, MAX_WINDOWS)
    z_frame, z_action = _conditions(policy, windows, device, actions)
    metrics: dict[str, float] = {}
    if actions:
        assert policy.transforms is not None
        chunks = _chunks(policy, windows, z_action)
        other = dataclasses.replace(windows, latents=windows.latents.roll(1, 0))
        blind = _chunks(policy, other, _conditions(policy, other, device, actions)[1])
        metrics = action_metrics(chunks, blind, windows, policy.transforms)
    if policy.model.config.imagination:
        rows = torch.arange(min(MAX_FRAMES, len(windows.steps)))
        steps = (windows.action_weights[rows, :, 0] > 0).sum(1) - 1  # the last ones
        true, still = (
            policy.encoder.decode(latents[rows, steps].to(device)).cpu()
            for latents in (windows.next_latents, windows.latents)
        )
        predicted = _frames(policy, z_frame[rows, steps], windows.latents[rows, steps].to(device))
        metrics |= {
            "frame_psnr": psnr(predicted, true),
            "still_psnr": psnr(still, true),
        }
    return metrics


def action_metrics(chunks: Tensor, blind: Tensor, windows: Windows, transforms: Transforms) -> dict[str, float]:
    """``action_error``, ``shuffled_error`` and ``gripper_accuracy`` as :func:`validate` describes them.

    ``chunks`` (B, N, L, A) are predicted, in the controller's units; ``blind`` are the same from the frames of another
    window. The windows' weights say what counts.
    """
    length = chunks.shape[2]
    mask, true = windows.action_weights[:, :, :length] > 0, windows.target_actions[:, :, :length]
    joints = torch.tensor(transforms.relative)
    grippers = ~joints & joints.any()  # among commands that are not joint targets, none is known to be a gripper's
    metrics: dict[str, float] = {}
    for name, drawn in {"action_error": chunks, "shuffled_error": blind}.items():
        metrics[name] = (drawn - true)[mask][:, ~grippers].abs().mean().item()
    if grippers.any():
        agree = (chunks > 0) == (true > 0)
        metrics["gripper_accuracy"] = agree[mask][:, grippers].float().mean().item()
    return metrics


@dataclass(frozen=True)
class EpisodePrediction:
    """One held-out episode, as it is and as it is predicted from each of its steps."""

    name: str
    """File of the episode."""
    true_frames: np.ndarray | None
    """(k, H, W, 3) uint8 next frames of some steps, as the frame encoder shows them."""
    frames: np.ndarray | None
    """(k, H, W, 3) uint8 predictions of them; None for a model without frame path."""
    true_actions: np.ndarray | None
    """(E, A) float32 actions of the episode; None of a video."""
    actions: np.ndarray | None
    """(E, A) float32 predictions of them, chunk by chunk."""


@torch.inference_mode()
def predict_episode(
    policy: Checkpoint, sampler: WindowSampler, device: torch.device, *, actions: bool = True
) -> EpisodePrediction:
    """Predicts the first held-out episode of a dataset; without ``actions``, its frames alone."""
    first = sampler.sample(0, 1, augment=False)
    name = first.episodes[0].split("+")[0]
    parts = [first]
    for number in range(1, min(MAX_EPISODE_WINDOWS, len(sampler))):
        part = sampler.sample(number, 1, augment=False)
        if name not in part.episodes[0].split("+"):
            break
        parts.append(part)
    windows = concatenate(parts)
    z_frame, z_action = _conditions(policy, windows, device, actions)
    steps = torch.where(_steps_of(name, windows), windows.steps, -1).flatten().numpy()
    places = np.unique(steps, return_index=True)[1][int((steps < 0).any()) :]  # windows may overlap
    true_frames = frames = true_actions = predicted = None
    if policy.model.config.imagination:
        shown = places[np.linspace(0, len(places) - 1, min(MAX_FRAMES, len(places))).round().astype(int)]
        frames = _frames(policy, z_frame.flatten(0, 1)[shown], windows.latents.flatten(0, 1)[shown].to(device)).numpy()
        latents = windows.next_latents.flatten(0, 1)[shown]
        true_frames = policy.encoder.decode(latents.to(device)).cpu().numpy()
    if actions:
        length = policy.model.config.action.chunk_length
        executed = windows.action_weights[:, :, :length].flatten(0, 1)[places] > 0
        true_actions = windows.target_actions[:, :, :length].flatten(0, 1)[places][executed].numpy()
        predicted = _chunks(policy, windows, z_action).flatten(0, 1)[places][executed].numpy()
    return EpisodePrediction(name, true_frames, frames, true_actions, predicted)


def _steps_of(name: str, windows: Windows) -> Tensor:
    """(B, N) bool, True where a step is one of episode ``name``: windows may be packed, and padded."""
    mask = torch.zeros_like(windows.steps, dtype=torch.bool)
    for row, names in enumerate(windows.episodes):
        piece = (windows.context_length[row] == 1).cumsum(0) - 1
        mask[row] = piece == names.split("+").index(name)
    return mask & (windows.action_weights[..., 0] > 0)


def _conditions(policy: Checkpoint, windows: Windows, device: torch.device, actions: bool) -> tuple[Tensor, Tensor]:
    """Conditions (B, N, F, D) of the next frames and (B, N, L, D) of the chunks."""
    inputs, _, features = tensors(windows, policy.transforms if actions else None, policy.text_encoder, device)
    inputs = dataclasses.replace(inputs, actions_known=torch.zeros_like(inputs.actions_known))
    steps = windows.steps.to(device)
    conditions: tuple[Tensor, Tensor] = policy.model(
        features, inputs, steps, torch.ones_like(steps) if actions else None
    )
    return conditions


def _chunks(policy: Checkpoint, windows: Windows, z_action: Tensor) -> Tensor:
    """Deterministic chunks (B, N, L, A) in the controller's units, each from its own condition (B, N, L, D)."""
    assert policy.transforms is not None
    action = policy.model.config.action
    start = torch.zeros(*z_action.shape[:2], action.targets, action.action_size, device=z_action.device)
    steps, shift = policy.inference.denoising_steps, policy.inference.denoising_shift
    drawn = policy.model.sample_actions(z_action.flatten(0, 1), start.flatten(0, 1), steps, shift=shift)
    return policy.transforms.denormalise_actions(drawn.unflatten(0, start.shape[:2]).cpu(), windows.proprioception)


def _frames(policy: Checkpoint, z_frame: Tensor, latents: Tensor) -> Tensor:
    """Predicted frames (k, H, W, 3) uint8 on the CPU, the same at every call, of conditions (k, F, D) and the latents
    (k, C, h, w) of the frames before."""
    last = Frames(policy.encoder.decode(latents), latents)
    noise = RandomNoise(seeded_generator(0), z_frame.device)
    return next_frames(policy.model, policy.encoder, z_frame, last, noise).pixels.cpu()
