"""Action tokenizer (paper section 4.2.1): one token per action, and the learned begin-of-action chunk."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from par_agent.modeling.config import ActionConfig
from par_agent.modeling.embeddings import learned


class ActionTokenizer(nn.Module):
    """Chunks of actions and joint positions to tokens of the causal transformer."""

    def __init__(self, config: ActionConfig, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((config.action_size, *config.tokenizer_widths, width)):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.boa = learned(width)
        self.positions = learned(config.chunk_length, width)
        self.proprioception = nn.Linear(config.proprioception_size, width) if config.proprioception_size else None

    def forward(self, actions: Tensor, known: Tensor) -> Tensor:
        """Tokens (..., L, D) of normalised chunks (..., L, A); begin-of-action where ``known`` (...) bool is False."""
        tokens = torch.where(known[..., None, None], self.mlp(actions), self.boa)
        return tokens + self.positions
