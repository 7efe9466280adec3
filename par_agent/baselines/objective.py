"""The loss of a baseline's training."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from par_agent.baselines.checkpoint import BaselineCheckpoint
from par_agent.baselines.config import BaselineConfig
from par_agent.data.windows import Windows
from par_agent.modeling.par import PARLoss
from par_agent.modeling.random_numbers import batch_seed, normal
from par_agent.training.objective import perturb_proprioception, tensors


class BaselineObjective(nn.Module):
    """Method and loss as one module, whose forward accelerate can distribute over processes."""

    def __init__(self, policy: BaselineCheckpoint, config: BaselineConfig) -> None:
        super().__init__()
        self.model, self.transforms, self.config = policy.model, policy.transforms, config
        self.text_encoder = policy.text_encoder

    def forward(self, windows: Windows, number: int, device: torch.device) -> PARLoss:
        """Loss of batch ``number``, whose noise and dropout follow from the number and the run's seed alone."""
        config = self.config
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(batch_seed(config.seed, number))
            if config.recovery_noise:
                length = self.model.config.chunk_length
                windows = perturb_proprioception(windows, self.transforms, length, config.recovery_noise, None)
            inputs, targets, features = tensors(windows, self.transforms, self.text_encoder, device)
            noise = config.proprioception_noise * normal(inputs.proprioception.shape, device)
            inputs = dataclasses.replace(inputs, proprioception=inputs.proprioception + noise)
            loss = self.model.loss(inputs, targets, features, context_length(windows).to(device))
        return PARLoss(loss, loss, torch.zeros_like(loss))


def context_length(windows: Windows) -> Tensor:
    """(B, N) steps of the same episode so far, 0 in padding; see :class:`par_agent.baselines.common.History`."""
    return windows.context_length * (windows.action_weights[..., 0] > 0)
