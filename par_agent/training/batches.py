"""From data windows to the model's inputs and targets."""

from __future__ import annotations

import torch

from par_agent.data.windows import Windows
from par_agent.modeling.par import PhysicalTokens, Targets
from par_agent.modeling.text_encoder import TextEncoder
from par_agent.transforms import Transforms


def tensors(
    windows: Windows, transforms: Transforms, text_encoder: TextEncoder, device: torch.device
) -> tuple[PhysicalTokens, Targets, list[torch.Tensor]]:
    """A batch as the model reads it: inputs, targets and text features, on ``device``."""
    inputs = PhysicalTokens(
        windows.latents.to(device),
        transforms.normalise_proprioception(windows.positions).to(device),
        transforms.normalise_actions(windows.before, windows.before_positions).to(device),
        windows.before_known.to(device),
    )
    targets = Targets(
        transforms.normalise_actions(windows.after, windows.positions).to(device),
        windows.weights.to(device),
        windows.next_latents.to(device),
        (windows.weights[..., 0] > 0).to(device),
    )
    known = {text: text_encoder.encode(text).to(device) for text in set(windows.instructions)}
    return inputs, targets, [known[text] for text in windows.instructions]
