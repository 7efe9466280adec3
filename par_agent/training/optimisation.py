"""Optimiser, learning rate schedule and weight averaging."""

from __future__ import annotations

import math

import torch
from torch import nn

from par_agent.errors import UserError


def make_optimizer(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; matrices decay, vectors (biases and norms among them) do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))


def learning_rate(step: int, steps: int, warmup: int, peak: float, final: float = 0.01) -> float:
    """Linear warm-up to ``peak``, then a cosine down to ``final * peak`` at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Sets the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = value


class EMA:
    """Exponential moving average of a module's trained weights; young averages forget faster."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in trained_weights(module).items()}
        """The averages, by the names of their parameters."""

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards ``module`` after optimiser step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(trained_weights(module).values()), 1 - decay)


def trained_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that are trained, by name, detached."""
    return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}


def clip_and_step(module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float, where: str) -> float:
    """Clips the gradient, steps, clears the gradient; returns the norm before clipping.

    Raises:
        UserError: the gradient is NaN or infinite; ``where`` says what was trained on.
    """
    norm = float(nn.utils.clip_grad_norm_(module.parameters(), max_norm))
    if not math.isfinite(norm):
        raise UserError(
            f"the gradient is {norm} {where}; the last training state is intact: lower --learning-rate, or look at "
            "the data"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
