"""ACT: Action Chunking with Transformers (Zhao et al. 2023, "Learning Fine-Grained Bimanual Manipulation with Low-Cost
Hardware").

A conditional variational autoencoder. In training an encoder turns joint positions and the demonstrated chunk into a
style variable. A transformer encoder fuses the style with the observation. A transformer decoder answers one query for
each action of the chunk. The loss is the L1 distance plus the weighted KL divergence. When the policy acts, the style
is zero. The table's row acts with temporal ensembling, an option of the policy (``ensemble``).

What differs from the paper:

- One camera, seen through latents and the stem that all baselines share, not through ResNet-18.
- Norms before the branches, GELU, and positions added once, as in the other baselines.
- The instruction is one more token, because one model learns all tasks.
- Chunks of 32 actions at 20 Hz in place of 100 at 50 Hz. Every frame (each 8 control steps) gives a new chunk, so
  ensembling averages up to 4 of them.
- The paper masks actions past an episode's end. Here they repeat the last one after the first 8, as in PAR's data.
- Dropout is behind the branches only. Sizes are smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from par_agent.baselines.common import Block, History, Method, MethodConfig, keys_and_values, weighted_mean
from par_agent.modeling.embeddings import learned
from par_agent.modeling.random_numbers import normal
from par_agent.utils.checked import Size, SmallCount, Strength


@dataclass(frozen=True)
class ACTConfig(MethodConfig):
    """Sizes of ACT."""

    horizon: Size = 32
    """Actions predicted together."""
    style_size: Size = 32
    """Numbers of the style variable."""
    style_layers: SmallCount = 2
    """Layers of the encoder that reads the demonstrated chunk."""
    encoder_layers: SmallCount = 4
    """Layers over the observation."""
    decoder_layers: SmallCount = 2
    """Layers over the queries."""
    kl_weight: Strength = 10.0
    """Weight of the KL divergence."""


class ACT(Method):
    """Action Chunking with Transformers."""

    Config = ACTConfig
    config: ACTConfig

    def __init__(self, config: ACTConfig) -> None:
        super().__init__(config)
        width = config.width
        self.style_actions = nn.Linear(config.action_size, width)
        self.style_start = learned(1, width)
        self.style_positions = learned(config.horizon + 2, width)
        self.style_encoder = nn.ModuleList(Block(config) for _ in range(config.style_layers))
        self.style_norm = nn.LayerNorm(width)
        self.style_head = nn.Linear(width, 2 * config.style_size)
        nn.init.normal_(self.style_head.weight, std=1e-3)  # a divergence of thousands would come first otherwise
        nn.init.zeros_(self.style_head.bias)
        self.style = nn.Linear(config.style_size, width)
        self.encoder = nn.ModuleList(Block(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.queries = learned(config.horizon, width)
        self.decoder = nn.ModuleList(Block(config, cross=True) for _ in range(config.decoder_layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.action_size))

    def conditions(self, history: History) -> Tensor:
        """The present observation's tokens and one of the instruction, last; before it that of the joint positions."""
        text = history.summary[:, :, None]
        return torch.cat([history.tokens, text], 2)

    def chunk_loss(self, z: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        mean, log_variance = self._style_of(z[:, -2:-1], actions, weights)
        style = mean + (log_variance / 2).exp() * normal(mean.shape, mean.device)
        reconstruction = weighted_mean((self._decode(z, style).float() - actions).abs(), weights)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
        present = (weights[:, 0] > 0).float()
        return reconstruction + self.config.kl_weight * (divergence * present).sum() / present.sum().clamp(min=1.0)

    def draw(self, z: Tensor, noise: Tensor | None) -> Tensor:
        return self._decode(z, z.new_zeros(len(z), self.config.style_size)).float()

    def _style_of(self, joints: Tensor, actions: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, style_size) float32 of demonstrated chunks (B, L + K, A); padding is ignored."""
        tokens = torch.cat([self.style_start.expand(len(joints), -1, -1), joints, self.style_actions(actions)], 1)
        tokens = tokens + self.style_positions
        present = torch.cat([torch.ones_like(weights[:, :2]), weights], 1) > 0
        for block in self.style_encoder:
            tokens = block(tokens, mask=present[:, None, None])
        mean, log_variance = self.style_head(self.style_norm(tokens[:, 0])).float().chunk(2, -1)
        return mean, log_variance

    def _decode(self, z: Tensor, style: Tensor) -> Tensor:
        """Chunks (B, L + K, A)."""
        memory = torch.cat([self.style(style)[:, None], z], 1)
        for block in self.encoder:
            memory = block(memory)
        memory = self.encoder_norm(memory)
        x = self.queries.expand(len(z), -1, -1)
        for block, observed in zip(self.decoder, keys_and_values(self.decoder, memory), strict=True):
            x = block(x, observed)
        return self.head(x)
