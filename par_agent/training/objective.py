"""The loss of a batch of windows, with all that makes training harder than acting."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from par_agent.data.windows import Windows
from par_agent.modeling.par import PARLoss, PARModel
from par_agent.modeling.random_numbers import integers, normal, seeded_generator, uniform
from par_agent.modeling.text_encoder import TextEncoder
from par_agent.policy.transforms import Transforms
from par_agent.training.batches import perturb_proprioception, tensors
from par_agent.training.config import FinetuneConfig
from par_agent.utils.device import moved

MAX_FIRST_STEP = 48
"""Windows are placed at random rollout steps below this, so that long rollouts are nothing new."""


class Objective(nn.Module):
    """Model and loss as one module, whose forward accelerate can distribute over processes.

    Args:
        model: what is trained.
        transforms: of joint positions and actions; None: videos without either.
        text_encoder: frozen.
        config: options of the loss.
    """

    def __init__(
        self, model: PARModel, transforms: Transforms | None, text_encoder: TextEncoder, config: FinetuneConfig
    ) -> None:
        super().__init__()
        self.model, self.transforms, self.text_encoder, self.config = model, transforms, text_encoder, config

    def forward(self, windows: Windows, number: int, device: torch.device) -> PARLoss:
        """Loss of batch ``number``, whose noise and dropout follow from the number and the run's seed alone."""
        config, shape = self.config, windows.steps.shape
        generator = seeded_generator(config.seed * 1_000_003 + number)
        if config.loss.recovery_noise and self.transforms is not None:
            length = self.model.config.action.chunk_length
            windows = perturb_proprioception(windows, self.transforms, length, config.loss.recovery_noise, generator)
        inputs, targets, features = tensors(windows, self.transforms, self.text_encoder, device)
        spread = config.loss.proprioception_noise if self.transforms is not None else 0.0
        noise = normal(inputs.proprioception.shape, device, generator)
        dropped = uniform(shape, device, generator) < config.loss.past_action_dropout
        alone = uniform(shape, device, generator) < config.loss.single_step
        context = integers(1, config.window + 1, shape, device, generator)
        offset = integers(0, MAX_FIRST_STEP, (shape[0], 1), device, generator)
        inputs = dataclasses.replace(
            inputs,
            proprioception=inputs.proprioception + spread * noise,
            actions_known=inputs.actions_known & ~dropped,
        )
        if config.loss.frame_fraction == 0:
            targets = dataclasses.replace(targets, latents=None)
        return self.model.loss(
            features,
            inputs,
            offset + torch.arange(shape[1], device=device),
            targets,
            context=torch.where(alone, 1, context).minimum(moved(windows.context_length, device)),
            frame_fraction=config.loss.frame_fraction,
            generator=generator,
        )
