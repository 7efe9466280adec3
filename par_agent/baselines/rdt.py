"""RDT: Robotics Diffusion Transformer (Liu et al. 2024, "RDT-1B: a Diffusion Foundation Model for Bimanual
Manipulation"), small and from scratch.

A diffusion transformer over 16 actions. Diffusion time, joint positions and noisy actions are tokens of one sequence.
Blocks cross-attend in turns to the text tokens and to the image tokens of the last two observations. As in the paper
and its code there are root-mean-square norms, normalised queries and keys, and an MLP as the last layer, which starts
from zero. The network predicts the clean actions (DDPM noise, 1,000 steps, squared cosine) and acts in 5 steps of
DPM-Solver++. Both are diffusers' own schedulers.

What differs:

- 10 blocks of width 256, not 28 of 2,048, and no pretraining on other robots.
- One robot, hence no unified 128-number action space and no control-frequency token.
- In the authors' evaluation on ManiSkill, the chunk of 64 tokens is 16 control steps interpolated fourfold. Here it is
  those 16. Interpolated, and with a quarter of the noised chunks, the model had not begun to look at the images after
  1,000 steps (lab book, section 25). Longer chunks look sooner with ``time_shift``.
- Joint positions and actions are not numbers of one space here. Each has an adaptor of its own, of two layers, not
  three.
- Images are latents of the shared encoder behind the stem that all baselines share, in place of SigLIP's. Words are
  hashed, in place of T5's. A short text is padded with zeros, and these are attended to.
- One camera. Frames lie 8 control steps apart, and 8 of the 16 actions are executed before the next frame.
- Text, joint positions and each observation are hidden with probability 0.1 by zeroing their tokens. The original shows
  a background image.
- Positions start at random, not as sines.
- Every chunk gets 2 draws of noise.
- At the first step of a training window both observations are the same frame, as at the start of an episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from par_agent.baselines.common import History, Method, MethodConfig, recent, repeated, weighted_mean
from par_agent.modeling.adaln import TimestepEmbedding
from par_agent.modeling.blocks import MLP, KeysAndValues, attention
from par_agent.modeling.embeddings import learned
from par_agent.modeling.random_numbers import integers, normal, uniform
from par_agent.utils.checked import Positive, ShareBelow1, Size, SmallCount


@dataclass(frozen=True)
class RDTConfig(MethodConfig):
    """Sizes of RDT."""

    horizon: Size = 16
    """Actions predicted together."""
    dropout: ShareBelow1 = 0.0
    """Dropout behind every branch of a block; its authors use none."""
    layers: SmallCount = 10
    """Blocks; those with an even number, the first one too, look at the text, the others at the images."""
    frames: Size = 2
    """Observations looked at."""
    train_steps: Size = 1000
    """Diffusion steps in training."""
    sampling_steps: Size = 5
    """Denoising steps when it acts."""
    hidden: ShareBelow1 = 0.1
    """Training probability of hiding the text, the joint positions and each observation, independently."""
    noise_samples: Size = 2
    """Draws of noise and time per chunk and training step."""
    time_shift: Positive = 1.0
    """Moves training's diffusion times towards noise: ``t`` of ``T`` becomes ``s t / (1 + (s - 1) t / T)``; 1: none."""


class NormedAttention(nn.Module):
    """Multi-head attention of tokens to others, or among themselves, with normalised queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm = nn.RMSNorm(width // heads)
        self.k_norm = nn.RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, n, head_dim) of what is attended to (B, n, D)."""
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.k_norm(k.float()).to(v), v

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q = self.q_norm(q.float()).to(v)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class RDTBlock(nn.Module):
    """Self-attention, cross-attention to one of the two conditions, and an MLP as wide as the tokens."""

    def __init__(self, config: RDTConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(width) for _ in range(3))
        self.attn = NormedAttention(width, heads)
        self.cross = NormedAttention(width, heads)
        self.mlp = MLP(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Tokens (B, n, D) to tokens; ``k`` and ``v`` are the condition's keys and values of :attr:`cross`."""
        normed = self.norm1(x)
        x = x + self.dropout(self.attn(normed, *self.attn.keys_and_values(normed)))
        x = x + self.dropout(self.cross(self.norm2(x), k, v))
        return x + self.dropout(self.mlp(self.norm3(x)))


class RDT(Method):
    """Robotics Diffusion Transformer."""

    Config = RDTConfig
    config: RDTConfig

    def __init__(self, config: RDTConfig) -> None:
        super().__init__(config)
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        with torch.device("cpu"):  # not on the meta device, where a model may be under construction
            self.noising = DDPMScheduler(
                num_train_timesteps=config.train_steps,
                beta_schedule="squaredcos_cap_v2",
                prediction_type="sample",
                clip_sample=False,
            )
        width = config.width
        self.time = TimestepEmbedding(width)
        self.text, self.state, self.images = (_adaptor(width, width, width) for _ in range(3))
        self.image_positions = learned(config.frames * (config.frame_tokens - 1), width)
        self.text_positions = learned(config.text_length, width)
        self.actions = _adaptor(config.action_size, width, width)
        self.positions = learned(config.horizon + 2, width)
        self.blocks = nn.ModuleList(RDTBlock(config) for _ in range(config.layers))
        output = _adaptor(width, width, config.action_size)
        for parameter in output[-1].parameters():
            nn.init.zeros_(parameter)
        self.head = nn.Sequential(nn.RMSNorm(width), output)

    @property
    def context(self) -> int:
        return self.config.frames

    def conditions(self, history: History) -> Tensor:
        """Text tokens, then one of the joint positions, then image tokens, all of them adapted."""
        steps = history.tokens.shape[1]
        text = (self.text(history.text) + self.text_positions)[:, None].expand(-1, steps, -1, -1)
        images = recent(history.tokens[:, :, :-1], history.context_length, self.config.frames)
        return torch.cat([text, self.state(history.tokens[:, :, -1:]), self.images(images) + self.image_positions], 2)

    def chunk_loss(self, z: Tensor, actions: Tensor, weights: Tensor) -> Tensor:
        config, count = self.config, self.config.noise_samples
        kept = uniform((len(z), 2 + config.frames), z.device) >= config.hidden
        state, observed = self._memory(z, kept)
        state, observed = state.repeat(count, 1, 1), repeated(observed, count)
        actions, weights = actions.repeat(count, 1, 1), weights.repeat(count, 1)
        noise = normal(actions.shape, actions.device)
        time = integers(0, config.train_steps, (len(actions),), actions.device)
        time = (config.time_shift * time / (1 + (config.time_shift - 1) * time / config.train_steps)).long()
        clean = self._clean(self.noising.add_noise(actions, noise, time), time, state, observed)
        return weighted_mean(F.mse_loss(clean.float(), actions, reduction="none"), weights)

    def draw(self, z: Tensor, noise: Tensor | None) -> Tensor:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        config = self.config
        sampling = DPMSolverMultistepScheduler.from_config(self.noising.config)  # keeps the steps before, hence anew
        sampling.set_timesteps(config.sampling_steps)
        x = z.new_zeros(len(z), config.horizon, config.action_size).float() if noise is None else noise
        memory = self._memory(z, torch.ones(1, 2 + config.frames, dtype=torch.bool, device=z.device))
        for time in sampling.timesteps:
            clean = self._clean(x, time.expand(len(z)).to(z.device), *memory).float()
            x = sampling.step(clean, time, x).prev_sample
        return x

    def _memory(self, z: Tensor, kept: Tensor) -> tuple[Tensor, KeysAndValues]:
        """The token of joint positions (B, 1, D), and what each block attends to, once for all diffusion times.

        ``kept`` (B or 1, 2 + frames) bool: False hides text, joint positions, observations.
        """
        text, state, images = z.split([self.config.text_length, 1, self.image_positions.shape[0]], 1)
        shown = kept.to(z)[..., None, None]
        images = (images.unflatten(1, (self.config.frames, -1)) * shown[:, 2:]).flatten(1, 2)
        turns = (text * shown[:, 0], images)
        observed = [block.cross.keys_and_values(turns[i % 2]) for i, block in enumerate(self.blocks)]  # type: ignore[union-attr, operator]
        return state * shown[:, 1], observed

    def _clean(self, x: Tensor, time: Tensor, state: Tensor, observed: KeysAndValues) -> Tensor:
        """Clean actions (B, L + K, A) of noised ones at diffusion times (B,)."""
        embedded = self.time(time)[:, None]
        x = torch.cat([embedded, state, self.actions(x)], 1) + self.positions
        for block, (k, v) in zip(self.blocks, observed, strict=True):
            x = block(x, k, v)
        return self.head(x[:, 2:])


def _adaptor(size: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, out))
