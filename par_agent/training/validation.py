"""Measurements on held-out episodes."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from par_agent.data.windows import Windows, WindowSampler, concatenate
from par_agent.modeling.par import PARModel
from par_agent.modeling.text_encoder import TextEncoder
from par_agent.training.batches import tensors
from par_agent.transforms import Transforms

WINDOWS = 16
"""Windows measured per dataset, spread over its held-out episodes."""


def validate(
    model: nn.Module,
    samplers: list[WindowSampler],
    transforms: Transforms,
    text_encoder: TextEncoder,
    device: torch.device,
) -> dict[str, float]:
    """Errors of the deterministic policy that sees one step, averaged over datasets.

    Returns:
        ``action_error`` (mean absolute joint error in radians), ``shuffled_error``, the action error with the frames of
        another window, which stays as low as ``action_error`` if the policy does not look, both also per dataset; and
        for a robot with a gripper command ``gripper_accuracy`` (share of actions that open or close as demonstrated).
    """
    assert isinstance(model, PARModel)
    joints = torch.tensor(transforms.relative)
    grippers = ~joints & joints.any()  # a controller without joint targets has no gripper command that is known
    metrics = {"action_error": 0.0, "shuffled_error": 0.0} | ({"gripper_accuracy": 0.0} if grippers.any() else {})
    for sampler in samplers:
        numbers = torch.linspace(0, len(sampler) - 1, min(WINDOWS, len(sampler))).long().tolist()
        windows = concatenate([sampler.sample(number, 1, augment=False) for number in numbers])
        mask = windows.weights > 0
        actions = _predict(model, windows, transforms, text_encoder, device)
        other = dataclasses.replace(windows, latents=windows.latents.roll(1, 0))
        blind = _predict(model, other, transforms, text_encoder, device)
        error = _joint_error(actions, windows.after, mask, ~grippers)
        metrics["action_error"] += error / len(samplers)
        if grippers.any():
            agree = (actions > 0) == (windows.after > 0)
            metrics["gripper_accuracy"] += agree[mask][:, grippers].float().mean().item() / len(samplers)
        confused = _joint_error(blind, windows.after, mask, ~grippers)
        metrics["shuffled_error"] += confused / len(samplers)
        name = sampler.index.dataset.folder.name
        metrics |= {f"action_error/{name}": error, f"shuffled_error/{name}": confused}
    return metrics


@torch.inference_mode()
def _predict(
    model: PARModel, windows: Windows, transforms: Transforms, text_encoder: TextEncoder, device: torch.device
) -> Tensor:
    """Deterministic chunks (B, N, L, A) in the controller's units, each from its own frame alone."""
    inputs, targets, features = tensors(windows, transforms, text_encoder, device)
    inputs = dataclasses.replace(inputs, actions_known=torch.zeros_like(inputs.actions_known))
    steps = windows.steps.to(device)
    _, z_action = model(features, inputs, steps, torch.ones_like(steps))
    start = torch.zeros_like(targets.actions)
    chunks = model.sample_actions(z_action.flatten(0, 1), start.flatten(0, 1)).view_as(start)
    return transforms.denormalise_actions(chunks.cpu(), windows.positions)


def _joint_error(actions: Tensor, true: Tensor, mask: Tensor, joints: Tensor) -> float:
    return (actions - true)[mask][:, joints].abs().mean().item()
