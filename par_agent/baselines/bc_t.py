"""BC-T: behaviour cloning with a transformer over a history of observations (Mandlekar et al. 2021, "What Matters in
Learning from Offline Human Demonstrations for Robot Manipulation"; the transformer is that of its code, robomimic).

Each observation becomes one token. A causal transformer reads the tokens of a short history. A mixture of Gaussians
over actions is fitted by maximum likelihood. When the policy acts, it draws a component and executes its mean
(robomimic's low-noise evaluation). The table's row takes the likeliest component, ``deterministic=true``.

What differs:

- Frames exist at every 8th control step. So a token stands for 8 steps, and its mixture (5 components, as there) is
  over the chunk of the next 8 actions as a whole. The history of 4 observations spans 32 control steps, not 10.
- The image feature is a projection of all patch tokens of the shared stem, not of spatial keypoints.
- The instruction is added to each token, because one model learns all tasks.
- Means are not squashed, since actions are normalised to unit variance.
- Deviations are at least 0.05, not 0.0001: one gripper that closes early must not outweigh all else in a batch.
- Every step of a window is supervised; robomimic's default is the last one. So three of four steps see a shorter
  history than in a rollout.
- Dropout is behind the branches only. Sizes are smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from par_agent.baselines.common import Block, FrameToken, History, Method, MethodConfig, past_mask
from par_agent.modeling.embeddings import learned
from par_agent.utils.checked import Positive, Size, SmallCount


@dataclass(frozen=True)
class BCTConfig(MethodConfig):
    """Sizes of BC-T."""

    layers: SmallCount = 6
    """Transformer layers."""
    history: Size = 4
    """Most observations that it looks at."""
    patch_width: Size = 48
    """Numbers that each patch contributes to the token of its frame."""
    components: Size = 5
    """Gaussians of the mixture."""
    least_deviation: Positive = 0.05
    """Smallest standard deviation of a Gaussian, in those of the data."""


class BCT(Method):
    """Behaviour-cloning transformer."""

    Config = BCTConfig
    config: BCTConfig

    def __init__(self, config: BCTConfig) -> None:
        super().__init__(config)
        width, size = config.width, config.horizon * config.action_size
        self.frame_token = FrameToken(config, config.patch_width)
        self.positions = learned(config.history, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.components * (1 + 2 * size))

    @property
    def context(self) -> int:
        return self.config.history

    @property
    def max_context(self) -> int:
        return self.config.history

    def conditions(self, history: History) -> Tensor:
        context_length = history.context_length
        x = self.frame_token(history.tokens) + history.summary
        x = x + self.positions[(context_length - 1).clamp(min=0)]
        mask = past_mask(context_length)
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm(x)[:, :, None]

    def chunk_loss(self, z: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        """Negative log-likelihood of the chunks, per number."""
        logits, mean, deviation = self._mixture(z)
        scaled = (actions[:, None] - mean) / deviation
        logs = -0.5 * scaled.square() - deviation.log() - 0.5 * math.log(2 * math.pi)
        likelihood = (logits.log_softmax(-1) + (logs.sum(-1) * weights[:, None]).sum(-1)).logsumexp(-1)
        present = weights[:, 0] > 0
        return -(likelihood * present).sum() / (weights.sum() * actions.shape[-1]).clamp(min=1.0)

    def draw(self, z: Tensor, noise: Tensor | None) -> Tensor:
        """The mean of the likeliest component, or of one drawn by its weight."""
        logits, mean, _ = self._mixture(z)
        component = logits.argmax(-1)
        if noise is not None:
            uniform = torch.special.ndtr(noise[:, 0, :1])
            component = (logits.softmax(-1).cumsum(-1) < uniform).sum(-1).clamp(max=logits.shape[-1] - 1)
        return mean[torch.arange(len(z), device=z.device), component]

    def _mixture(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, G), means and standard deviations (B, G, L + K, A) of G components, float32."""
        config = self.config
        parts = self.head(z[:, 0]).float()
        logits, rest = parts[:, : config.components], parts[:, config.components :]
        mean, deviation = rest.unflatten(-1, (2, config.components, config.horizon, config.action_size)).unbind(1)
        return logits, mean, F.softplus(deviation) + config.least_deviation
