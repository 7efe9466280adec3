"""DP: Diffusion Policy, the transformer variant (Chi et al. 2023, "Diffusion Policy: Visuomotor Policy Learning via
Action Diffusion").

A transformer decoder removes the noise from a sequence of actions. The noisy actions attend to each other causally, and
to the tokens of the diffusion time and of the last two observations. The model is trained to predict the noise (DDPM,
100 steps, squared cosine) and acts with DDIM in 16 steps. Both are diffusers' own schedulers. It predicts 16 actions
and executes 8.

What differs:

- Each observation is all tokens of the shared stem, not one vector of a ResNet. The two lie 8 control steps apart,
  where there are frames. At the first step of a training window both are the same frame, as at the start of an episode.
- The prediction starts at the present step.
- The instruction is one more token, because one model learns all tasks.
- Actions are normalised to unit variance, not into [-1, 1]. Sampling clips clean actions at 10.
- The exponential moving average is the one that all methods share.
- Dropout is 0.1 behind the branches, not 0.3 there, inside the MLP and on attention weights.
- Every chunk gets 2 draws of noise (PAR has 4).
- The table's row starts from zero, ``deterministic=true``, not from noise (lab book, section 25).
- Sizes are smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from par_agent.baselines.common import (
    Block,
    History,
    Method,
    MethodConfig,
    keys_and_values,
    recent,
    repeated,
    weighted_mean,
)
from par_agent.modeling.adaln import TimestepEmbedding
from par_agent.modeling.blocks import KeysAndValues
from par_agent.modeling.embeddings import learned
from par_agent.modeling.random_numbers import integers, normal
from par_agent.utils.checked import Size, SmallCount

CLIP = 10.0
"""Sampling clips predicted clean actions to this many standard deviations of the data."""


@dataclass(frozen=True)
class DPConfig(MethodConfig):
    """Sizes of Diffusion Policy."""

    horizon: Size = 16
    """Actions predicted together."""
    layers: SmallCount = 6
    """Decoder layers."""
    frames: Size = 2
    """Observations looked at."""
    train_steps: Size = 100
    """Diffusion steps in training."""
    sampling_steps: Size = 16
    """Denoising steps when it acts."""
    noise_samples: Size = 2
    """Draws of noise and time per chunk and training step."""


class DP(Method):
    """Diffusion Policy with a transformer."""

    Config = DPConfig
    config: DPConfig

    def __init__(self, config: DPConfig) -> None:
        super().__init__(config)
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        with torch.device("cpu"):  # not on the meta device, where a model may be under construction
            self.noising = DDPMScheduler(num_train_timesteps=config.train_steps, beta_schedule="squaredcos_cap_v2")
            self.sampling = DDIMScheduler.from_config(self.noising.config, clip_sample_range=CLIP)
            self.sampling.set_timesteps(config.sampling_steps)
        width = config.width
        self.time = TimestepEmbedding(width)
        self.condition_positions = learned(config.frames * config.frame_tokens + 2, width)
        self.condition_mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.actions = nn.Linear(config.action_size, width)
        self.positions = learned(config.horizon, width)
        self.decoder = nn.ModuleList(Block(config, cross=True) for _ in range(config.layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.action_size))

    @property
    def context(self) -> int:
        return self.config.frames

    def conditions(self, history: History) -> Tensor:
        text = history.summary[:, :, None]
        tokens = torch.cat([text, recent(history.tokens, history.context_length, self.config.frames)], 2)
        return self.condition_mlp(tokens + self.condition_positions[1:])

    def chunk_loss(self, z: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        count = self.config.noise_samples
        observed = repeated(keys_and_values(self.decoder, z), count)
        actions, weights = actions.repeat(count, 1, 1), weights.repeat(count, 1)
        noise = normal(actions.shape, actions.device)
        time = integers(0, self.config.train_steps, (len(actions),), actions.device)
        noised = self.noising.add_noise(actions, noise, time)
        return weighted_mean(F.mse_loss(self._noise(noised, time, observed).float(), noise, reduction="none"), weights)

    def draw(self, z: Tensor, noise: Tensor | None) -> Tensor:
        config = self.config
        x = z.new_zeros(len(z), config.horizon, config.action_size).float() if noise is None else noise
        observed = keys_and_values(self.decoder, z)
        for time in self.sampling.timesteps:
            predicted = self._noise(x, time.expand(len(z)).to(z.device), observed).float()
            x = self.sampling.step(predicted, time, x).prev_sample
        return x

    def _noise(self, x: Tensor, time: Tensor, observed: KeysAndValues) -> Tensor:
        """Predicted noise (B, L + K, A) of noised actions (B, L + K, A) at diffusion times (B,)."""
        embedded = self.time(time)[:, None]
        timed = keys_and_values(self.decoder, self.condition_mlp(embedded + self.condition_positions[:1]))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        x = self.actions(x) + self.positions
        for block, (k, v), (time_k, time_v) in zip(self.decoder, observed, timed, strict=True):
            x = block(x, (torch.cat([time_k, k], 2), torch.cat([time_v, v], 2)), mask)
        return self.head(x)
