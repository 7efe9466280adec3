"""Discriminative de-tokenizer of the ablation PAR-Discrete (paper section 5.3.2): an MLP and the squared error in
place of diffusion, for actions and for frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from par_agent.modeling.embeddings import sincos


class RegressionHead(nn.Module):
    """MLP from a condition to the one value it stands for.

    Args:
        condition_width: width ``D`` of the conditions.
        width: hidden width.
        depth: hidden layers.
        size: numbers per value: those of an action, or of a patch.
    """

    def __init__(self, condition_width: int, width: int, depth: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(condition_width, width), nn.GELU()]
            condition_width = width
        self.mlp = nn.Sequential(*layers, nn.Linear(condition_width, size))

    def forward(self, z: Tensor, ahead: int = 0) -> Tensor:
        """Values (..., S + ahead, size) of conditions (..., S, D), ``D`` even.

        Those ahead (foresight) are read off the last condition, to which an embedding of their place is added.
        """
        if ahead:
            places = sincos(torch.arange(1, ahead + 1, device=z.device), z.shape[-1] // 2).to(z)
            z = torch.cat([z, z[..., -1:, :] + places], -2)
        return self.mlp(z)


def regression_loss(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error (scalar) of values (..., size), weighted by ``weights`` (...) float; 0: padding."""
    errors = (prediction.float() - target.float()).square().mean(-1)
    return (errors * weights).sum() / weights.sum().clamp(min=1.0)
