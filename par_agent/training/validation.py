"""Measurements on held-out episodes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from par_agent.checkpoint import Checkpoint
from par_agent.data.windows import Windows, WindowSampler, concatenate
from par_agent.training.batches import tensors

WINDOWS = 16
"""Windows measured per dataset, spread over its held-out episodes."""


def validate(policy: Checkpoint, samplers: list[WindowSampler], device: torch.device) -> dict[str, float]:
    """Errors of the deterministic policy that sees one step, averaged over datasets.

    Returns:
        ``action_error`` (mean absolute joint error in radians), ``shuffled_error``, the action error with the frames of
        another window, which stays as low as ``action_error`` if the policy does not look, both also per dataset; and
        for a robot with a gripper command ``gripper_accuracy`` (share of actions that open or close as demonstrated).
    """
    assert policy.transforms is not None
    joints = torch.tensor(policy.transforms.relative)
    grippers = ~joints & joints.any()  # a controller without joint targets has no gripper command that is known
    metrics = {"action_error": 0.0, "shuffled_error": 0.0} | ({"gripper_accuracy": 0.0} if grippers.any() else {})
    for sampler in samplers:
        numbers = torch.linspace(0, len(sampler) - 1, min(WINDOWS, len(sampler))).long().tolist()
        windows = concatenate([sampler.sample(number, 1, augment=False) for number in numbers])
        length = policy.model.config.action.chunk_length
        mask, true = windows.weights[:, :, :length] > 0, windows.after[:, :, :length]
        actions = _predict(policy, windows, device)
        other = dataclasses.replace(windows, latents=windows.latents.roll(1, 0))
        blind = _predict(policy, other, device)
        error = _error(actions, true, mask, ~grippers)
        metrics["action_error"] += error / len(samplers)
        if grippers.any():
            agree = (actions > 0) == (true > 0)
            metrics["gripper_accuracy"] += agree[mask][:, grippers].float().mean().item() / len(samplers)
        confused = _error(blind, true, mask, ~grippers)
        metrics["shuffled_error"] += confused / len(samplers)
        name = sampler.index.dataset.folder.name
        metrics |= {f"action_error/{name}": error, f"shuffled_error/{name}": confused}
    return metrics


@torch.inference_mode()
def _predict(policy: Checkpoint, windows: Windows, device: torch.device) -> Tensor:
    """Deterministic chunks (B, N, L, A) in the controller's units, each from its own frame alone."""
    assert policy.transforms is not None
    inputs, targets, features = tensors(windows, policy.transforms, policy.text_encoder, device)
    inputs = dataclasses.replace(inputs, actions_known=torch.zeros_like(inputs.actions_known))
    steps = windows.steps.to(device)
    _, z_action = policy.model(features, inputs, steps, torch.ones_like(steps))
    start = torch.zeros_like(targets.actions)
    chunks = policy.model.sample_actions(z_action.flatten(0, 1), start.flatten(0, 1)).unflatten(0, steps.shape)
    return policy.transforms.denormalise_actions(chunks.cpu(), windows.positions)


def _error(actions: Tensor, true: Tensor, mask: Tensor, numbers: Tensor) -> float:
    return (actions - true)[mask][:, numbers].abs().mean().item()
