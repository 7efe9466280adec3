"""From windows to the loss: inputs, targets, and the noise and dropout that training adds."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from par_agent.data.windows import Windows
from par_agent.modeling.par import PARLoss, PARModel, PhysicalTokens, Targets
from par_agent.modeling.random_numbers import batch_seed, integers, normal, seeded_generator, uniform
from par_agent.modeling.text_encoder import TextEncoder
from par_agent.policy.transforms import Transforms
from par_agent.training.config import FinetuneConfig
from par_agent.utils.device import moved

MAX_FIRST_STEP = 48
"""Windows start at random rollout steps below this: the model then knows the step numbers of long rollouts."""


class Objective(nn.Module):
    """Model and loss as one module, whose forward accelerate can distribute over processes.

    Without transforms it learns from videos, without joint positions and actions.
    """

    def __init__(
        self, model: PARModel, transforms: Transforms | None, text_encoder: TextEncoder, config: FinetuneConfig
    ) -> None:
        super().__init__()
        self.model, self.transforms, self.text_encoder, self.config = model, transforms, text_encoder, config

    def forward(self, windows: Windows, number: int, device: torch.device) -> PARLoss:
        """Loss of batch ``number``, whose noise and dropout follow from the number and the run's seed alone."""
        config, shape = self.config, windows.steps.shape
        generator = seeded_generator(batch_seed(config.seed, number))
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


def tensors(
    windows: Windows, transforms: Transforms | None, text_encoder: TextEncoder, device: torch.device
) -> tuple[PhysicalTokens, Targets, list[torch.Tensor]]:
    """A batch as the model reads it: inputs, targets and text features, on ``device`` (:attr:`Targets.frame_weights`
    apart).

    Without transforms, windows are videos: joint positions are zero, past actions are unknown, no chunk is predicted.
    """
    proprioception, past_actions, target_actions = windows.proprioception, windows.past_actions, None
    if transforms is not None:
        proprioception = transforms.normalise_proprioception(windows.proprioception)
        past_actions = transforms.normalise_actions(windows.past_actions, windows.past_proprioception)
        target_actions = transforms.normalise_actions(windows.target_actions, windows.proprioception)
    read = windows.latents, proprioception, past_actions, windows.past_actions_known
    inputs = PhysicalTokens(*(moved(value, device) for value in read))
    targets = Targets(
        None if target_actions is None else moved(target_actions, device),
        moved(windows.action_weights, device),
        moved(windows.next_latents, device),
        windows.action_weights[..., 0] > 0,
    )
    features = {text: moved(text_encoder.encode(text), device) for text in set(windows.instructions)}
    return inputs, targets, [features[text] for text in windows.instructions]


DRIFT_CORRELATION = 0.8
"""Correlation of the perturbations of consecutive steps."""


def perturb_proprioception(
    windows: Windows, transforms: Transforms, length: int, spread: float, generator: torch.Generator | None
) -> Windows:
    """Perturbs joint positions, as if the robot had drifted; the absolute targets of its actions stay.

    The perturbation is a random walk over the steps, of ``spread`` standard deviations of the last targets of a chunk
    of ``length`` actions. Past actions are perturbed alike, as if they had commanded it, so that only the image tells
    where the robot should be. Joints without relative targets stay.
    """
    scale = torch.zeros(windows.proprioception.shape[-1])
    shared = min(transforms.action_size, len(scale))
    relative = torch.tensor(transforms.relative[:shared])
    scale[:shared] = spread * torch.tensor(transforms.action_std[length - 1][:shared]) * relative
    drift = scale * _drift(windows.context_length, len(scale), generator)
    earlier, now = drift[:, :-1], drift[:, 1:]
    share = (torch.arange(length) + 1)[:, None] / length
    past_actions = windows.past_actions.clone()
    past_actions[..., :shared] += torch.lerp(earlier[:, :, None], now[:, :, None], share)[..., :shared]
    return dataclasses.replace(
        windows,
        proprioception=windows.proprioception + now,
        past_actions=past_actions,
        past_proprioception=windows.past_proprioception + earlier,
    )


def _drift(context_length: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Noise (B, N + 1, size) of unit variance that wanders within each episode, from the step before the window on."""
    fresh = normal((len(context_length), context_length.shape[1] + 1, size), context_length.device, generator)
    drift = [fresh[:, 0]]
    for step in range(context_length.shape[1]):
        # the drift before an episode's first step has no effect: no past chunk is known there
        follows = (context_length[:, step : step + 1] > 1) | (step == 0)
        wandered = DRIFT_CORRELATION * drift[-1] + (1 - DRIFT_CORRELATION**2) ** 0.5 * fresh[:, step + 1]
        drift.append(torch.where(follows, wandered, fresh[:, step + 1]))
    return torch.stack(drift, 1)
