"""From data windows to the model's inputs and targets."""

from __future__ import annotations

import dataclasses

import torch

from par_agent.data.windows import Windows
from par_agent.modeling.par import PhysicalTokens, Targets
from par_agent.modeling.text_encoder import TextEncoder
from par_agent.transforms import Transforms


def tensors(
    windows: Windows, transforms: Transforms | None, text_encoder: TextEncoder, device: torch.device
) -> tuple[PhysicalTokens, Targets, list[torch.Tensor]]:
    """A batch as the model reads it: inputs, targets and text features, on ``device``.

    Without transforms, windows are videos: joint positions are zero, no chunk is known, none is to be predicted.
    """
    positions, before, after = windows.positions, windows.before, None
    if transforms is not None:
        positions = transforms.normalise_proprioception(windows.positions)
        before = transforms.normalise_actions(windows.before, windows.before_positions)
        after = transforms.normalise_actions(windows.after, windows.positions).to(device)
    known = windows.before_known.to(device)
    inputs = PhysicalTokens(windows.latents.to(device), positions.to(device), before.to(device), known)
    targets = Targets(
        after, windows.weights.to(device), windows.next_latents.to(device), (windows.weights[..., 0] > 0).to(device)
    )
    features = {text: text_encoder.encode(text).to(device) for text in set(windows.instructions)}
    return inputs, targets, [features[text] for text in windows.instructions]


def displaced(
    windows: Windows, transforms: Transforms, length: int, spread: float, generator: torch.Generator | None
) -> Windows:
    """Windows in which the robot is said to be a little beside where it was, and its targets are where they were.

    All steps of an episode in a window are displaced by the same, so that the past does not tell by how much: only the
    image does. Joints that actions do not move relative to their positions stay.

    Args:
        windows: as they were demonstrated.
        transforms: tell the joints, and how far a chunk moves them.
        length: actions a chunk, ``L``.
        spread: displacement in standard deviations of a chunk's last targets.
        generator: source of the noise; None: torch's own.
    """
    positions = windows.positions
    scale = positions.new_zeros(positions.shape[-1])
    shared = min(transforms.action_size, len(scale))
    relative = torch.tensor(transforms.relative[:shared])
    scale[:shared] = torch.tensor(transforms.action_std[length - 1][:shared]) * relative
    device = positions.device if generator is None else generator.device
    noise = torch.randn(positions.shape, generator=generator, device=device).to(positions)
    episode = (windows.visible == 1).cumsum(1) - 1  # the number in the window: it counts from 1 in each of them
    noise = noise.gather(1, episode[..., None].expand_as(noise))
    return dataclasses.replace(windows, positions=positions + spread * scale * noise)
