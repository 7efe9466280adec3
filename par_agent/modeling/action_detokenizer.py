"""Action de-tokenizer (paper section 4.2.3): a diffusion transformer over the chunk's actions, the Action-DiT.

Every block attends among the noisy actions, then to the conditions ``Z^A`` of the causal transformer, then runs
an MLP; all three branches are modulated and gated by the diffusion time (adaLN; Peebles & Xie 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from par_agent.modeling.adaln import Modulation, TimestepEmbedding, modulate
from par_agent.modeling.blocks import MLP, Attention, CrossAttention, KeysAndValues
from par_agent.modeling.config import ActionConfig
from par_agent.modeling.diffusion import NoiseProcess, noise_process
from par_agent.modeling.embeddings import sincos
from par_agent.modeling.random_numbers import normal


class ActionBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each behind scale, shift and gate."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 9)
        self.self_attn = Attention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor, time: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = self.modulation(time[:, None])
        x = x + parts[2] * self.self_attn(modulate(x, parts[0], parts[1]))
        x = x + parts[5] * self.cross_attn(modulate(x, parts[3], parts[4]), k, v)
        return x + parts[8] * self.mlp(modulate(x, parts[6], parts[7]))


class ActionDetokenizer(nn.Module):
    """Predicts the noise (or velocity) of a noised chunk, foresight included, from its conditions."""

    def __init__(self, config: ActionConfig, condition_width: int) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.condition_proj = nn.Linear(condition_width, width)
        self.action_proj = nn.Linear(config.action_size, width)
        self.time_proj = TimestepEmbedding(width)
        self.blocks = nn.ModuleList(ActionBlock(width, config.heads) for _ in range(config.depth))
        self.norm = Modulation(width, 2)
        self.head = nn.Linear(width, config.action_size)
        self._start_closed()

    def _start_closed(self) -> None:
        """Every branch and the output start at zero (adaLN-Zero)."""
        for block in self.blocks:
            assert isinstance(block, ActionBlock)
            nn.init.zeros_(block.modulation.proj.weight)
            nn.init.zeros_(block.modulation.proj.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def process(self) -> NoiseProcess:
        """How its chunks are noised."""
        return noise_process(self.config.diffusion)

    def conditions(self, z: Tensor) -> KeysAndValues:
        """Cross-attention keys and values of any number of conditions (B, S, D): once, for all denoising steps."""
        z = self.condition_proj(z)
        z = z + sincos(torch.arange(z.shape[1], device=z.device), z.shape[2] // 2).to(z)
        return [block.cross_attn.keys_and_values(z) for block in self.blocks]  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, time: Tensor, conditions: KeysAndValues) -> Tensor:
        """Noise or velocity (B, L + K, A).

        Args:
            x: (B, L + K, A) noised chunks.
            time: (B,) diffusion time in network units (0 to 1000).
            conditions: from :meth:`conditions`.
        """
        embedded = self.time_proj(time)
        x = self.action_proj(x.to(self.head.weight))
        x = x + sincos(torch.arange(x.shape[1], device=x.device), x.shape[2] // 2).to(x)
        for block, (k, v) in zip(self.blocks, conditions, strict=True):
            x = block(x, embedded, k, v)
        scale, shift = self.norm(embedded[:, None])
        return self.head(modulate(x, scale, shift))


def action_loss(
    head: ActionDetokenizer,
    z: Tensor,
    actions: Tensor,
    weights: Tensor,
    process: NoiseProcess,
    repeat: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Diffusion loss (scalar): mean squared error of the predicted noise or velocity over the actions that count.

    Args:
        head: the Action-DiT.
        z: (B, S, D) conditions, as many as there are.
        actions: (B, L + K, A) clean normalised chunks.
        weights: (B, L + K) float, 0 for padding.
        process: noise process.
        repeat: draws of noise and time per chunk (``R``); the conditions are computed once.
        generator: source of random numbers.
    """
    conditions = [(k.repeat(repeat, 1, 1, 1), v.repeat(repeat, 1, 1, 1)) for k, v in head.conditions(z)]
    clean = actions.repeat(repeat, 1, 1)
    noise = normal(clean.shape, clean.device, generator)
    index = process.draw_index((len(clean),), generator, clean.device)
    noised = process.noised(clean.flatten(1), noise.flatten(1), index)
    prediction = process.predict(head, noised.x.view_as(clean), noised.time, conditions)
    errors = (prediction.float() - noised.target.view_as(clean)).square().mean(-1)
    weights = weights.repeat(repeat, 1)
    errors = errors * process.loss_weights(noised.time)[:, None]
    return (errors * weights).sum() / weights.sum().clamp(min=1.0)


@torch.no_grad()
def sample_actions(
    head: ActionDetokenizer,
    z: Tensor,
    process: NoiseProcess,
    steps: int,
    start: Tensor,
    fresh: torch.Generator | None = None,
    shift: float | None = None,
) -> Tensor:
    """Draws normalised chunks (B, L + K, A) float32.

    Args:
        head: the Action-DiT.
        z: (B, S, D) conditions, as many as there are.
        process: noise process.
        steps: denoising steps.
        start: (B, L + K, A) noise to start from; zeros give the deterministic policy.
        fresh: source of the noise that a stochastic (DDPM) step adds; None: no such noise.
        shift: see :meth:`NoiseProcess.sampler`.
    """
    conditions, x, sampler = head.conditions(z), start.float(), process.sampler(steps, shift)
    for j, time in enumerate(sampler.times):
        times = torch.full((len(x),), time, device=x.device)
        output = process.predict(head, x, times, conditions).float()
        noise = normal(x.shape, x.device, fresh) if sampler.noise[j] and fresh else None
        x = sampler.step(j, x, output, noise)
    return x
