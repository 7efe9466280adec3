"""ICRT: In-Context Robot Transformer (Fu et al. 2024, "In-Context Imitation Learning via Next-Token Prediction").

A causal transformer reads trajectories of one task, one after another, as a sequence of observation and action tokens.
Each observation's token predicts the next actions, with the L1 loss. The first trajectory is the prompt and enters no
loss. When the policy acts, the prompt is a demonstration from the training data, the shortest of ten, and the robot's
own episode follows it.

What differs:

- The transformer is small and trained from scratch, with dropout 0.1, layer norms, GELU and learned positions. The
  authors' has no dropout, root-mean-square norms, SwiGLU and rotary positions.
- A step is 8 control steps, since there are frames only there, and its action token is the chunk of 8 actions.
- As in the paper, 16 actions are predicted. Of these, 8 are executed before the next frame.
- The encoder is the stem that all baselines share. A projection makes one token of its tokens; with attention pooling
  the model did not learn to see the cube.
- The instruction is added to the observation, as in every method here. ICRT has none.
- Predictions that overlap are not averaged; the authors' code averages them.
- A sequence is 32 steps, two to four trajectories. The first one alone is the prompt, also where the window cuts its
  start off. The authors' code draws how many are.
- When the policy acts, the oldest of 16 observations leaves. Then the robot's episode begins midway behind the prompt,
  which training does not show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from par_agent.baselines.common import Block, FrameToken, History, Method, MethodConfig, weighted_mean
from par_agent.modeling.embeddings import learned
from par_agent.utils.checked import Size, SmallCount


@dataclass(frozen=True)
class ICRTConfig(MethodConfig):
    """Sizes of ICRT."""

    horizon: Size = 16
    """Actions predicted together."""
    layers: SmallCount = 6
    """Transformer layers."""
    patch_width: Size = 48
    """Numbers that each patch contributes to the token of its frame."""
    steps: Size = 32
    """Most steps of a sequence, the prompt's included."""


class ICRT(Method):
    """In-Context Robot Transformer."""

    Config = ICRTConfig
    prompted = True
    config: ICRTConfig

    def __init__(self, config: ICRTConfig) -> None:
        super().__init__(config)
        width = config.width
        self.frame_token = FrameToken(config, config.patch_width)
        self.chunk = nn.Sequential(
            nn.Linear(config.chunk_length * config.action_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.begin = learned(width)
        self.positions = learned(config.steps, 2, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.horizon * config.action_size)
        )

    @property
    def max_context(self) -> int:
        return self.config.steps

    @property
    def sequence(self) -> int:
        return self.config.steps

    @property
    def context(self) -> int:
        """Half of a sequence; the prompt has the other."""
        return self.config.steps // 2

    def counted(self, context_length: Tensor) -> Tensor:
        """All steps after the first trajectory; all of a window that holds only one."""
        trajectory = (context_length == 1).cumsum(1)  # the first is 1, also where the window cuts its start off
        return (context_length > 0) & ((trajectory > 1) | (trajectory.amax(1, keepdim=True) == 1))

    def conditions(self, history: History) -> Tensor:
        """The outputs at the observations' tokens; each comes behind the token of the chunk that led to it."""
        present = history.context_length > 0
        place = (present.cumsum(1) - 1).clamp(min=0)
        chunk = torch.where(
            history.past_actions_known[..., None], self.chunk(history.past_actions.flatten(2)), self.begin
        )
        state = self.frame_token(history.tokens) + history.summary
        tokens = (torch.stack([chunk, state], 2) + self.positions[place]).flatten(1, 2)
        count = tokens.shape[1]
        causal = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()
        itself = torch.eye(count, dtype=torch.bool, device=tokens.device)
        mask = (causal & present.repeat_interleave(2, 1)[:, None]) | itself
        for block in self.blocks:
            tokens = block(tokens, mask=mask[:, None])
        return self.norm(tokens.unflatten(1, (-1, 2))[:, :, 1])[:, :, None]

    def chunk_loss(self, z: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        return weighted_mean(F.l1_loss(self.draw(z, None), actions, reduction="none"), weights)

    def draw(self, z: Tensor, noise: Tensor | None) -> Tensor:
        return self.head(z[:, 0]).float().unflatten(-1, (self.config.horizon, self.config.action_size))
