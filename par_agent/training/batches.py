"""From data windows to the model's inputs and targets."""

from __future__ import annotations

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
