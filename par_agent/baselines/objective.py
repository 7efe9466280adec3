"""The loss of a baseline on a batch of windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from par_agent.baselines.common import Method
from par_agent.baselines.config import BaselineConfig
from par_agent.data.windows import Windows
from par_agent.modeling.par import PARLoss
from par_agent.modeling.random_numbers import batch_seed, normal
from par_agent.modeling.text_encoder import HashTextEncoder
from par_agent.policy.transforms import Transforms
from par_agent.training.objective import perturb_proprioception, tensors


class BaselineObjective(nn.Module):
    """Method and loss as one module, whose forward accelerate can distribute over processes."""

    def __init__(self, model: Method, transforms: Transforms, config: BaselineConfig) -> None:
        super().__init__()
        self.model, self.transforms, self.config = model, transforms, config
        self.text_encoder = HashTextEncoder(model.config.text_dim, model.config.text_length)

    def forward(self, windows: Windows, number: int, device: torch.device) -> PARLoss:
        """Loss of batch ``number``, whose noise and dropout follow from the number and the run's seed alone."""
        with seeded(batch_seed(self.config.seed, number), device):
            if self.config.recovery_noise:
                length = self.model.config.chunk_length
                windows = perturb_proprioception(windows, self.transforms, length, self.config.recovery_noise, None)
            inputs, targets, features = tensors(windows, self.transforms, self.text_encoder, device)
            noise = self.config.proprioception_noise * normal(inputs.proprioception.shape, device)
            inputs = dataclasses.replace(inputs, proprioception=inputs.proprioception + noise)
            loss = self.model.loss(inputs, targets, features, context_length(windows).to(device))
        return PARLoss(loss, loss, torch.zeros_like(loss))


def context_length(windows: Windows) -> Tensor:
    """(B, N) steps of the same episode so far, 0 in padding; see :class:`par_agent.baselines.common.History`."""
    return windows.context_length * (windows.action_weights[..., 0] > 0)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws of torch's own generators inside follow from ``seed``; outside nothing changes."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
