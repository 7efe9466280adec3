"""Noise processes of the de-tokenizers: flow matching and DDPM (paper section 4.3; Li et al. 2024).

All tables come from diffusers' ``FlowMatchEulerDiscreteScheduler`` and ``DDPMScheduler``. Their ``step`` methods are
not used: they keep a step counter on the scheduler and draw the noise themselves, while here a step is a pure function
of its arguments, so that batches of rollouts stay independent and reference noise can be replayed. The numbers are the
same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from par_agent.modeling.config import DiffusionConfig
from par_agent.modeling.random_numbers import integers, normal
from par_agent.utils.device import moved

MIN_VARIANCE = 1e-20
Condition = TypeVar("Condition")


@dataclass(frozen=True)
class Noised:
    """One draw of the forward process."""

    x: Tensor
    """Noised sample ``x_t``, of the clean sample's shape."""
    time: Tensor
    """Diffusion time that the network reads, float32, of the index' shape."""
    target: Tensor
    """What the network learns to predict: the noise (DDPM) or ``noise - clean`` (flow matching)."""


@dataclass(frozen=True)
class Sampler:
    """The reverse process in a fixed number of steps; every step is linear in sample, network output and fresh
    noise."""

    times: tuple[float, ...]
    """Diffusion time that the network reads at each step."""
    keep: tuple[float, ...]
    """Factor of the sample."""
    output: tuple[float, ...]
    """Factor of the network's output."""
    noise: tuple[float, ...]
    """Factor of fresh N(0, 1) noise; 0: the step is deterministic."""
    sigmas: tuple[float, ...] | None = None
    """Flow matching only: noise level before each step and after the last."""

    def step(self, j: int, sample: Tensor, output: Tensor, noise: Tensor | None = None) -> Tensor:
        """The sample after step ``j``; ``noise`` may be None where :attr:`noise` is 0."""
        sample = self.keep[j] * sample + self.output[j] * output
        return sample if noise is None else sample + self.noise[j] * noise


class NoiseProcess:
    """Training targets and samplers of one diffusers scheduler.

    Args:
        scheduler: ``FlowMatchEulerDiscreteScheduler``, or ``DDPMScheduler`` with noise prediction and without clipping.
        preconditioned: see :class:`DiffusionConfig`; flow matching only.

    Raises:
        ValueError: another scheduler.
    """

    kind: Literal["flow", "ddpm"]

    def __init__(self, scheduler: Any, preconditioned: bool = False) -> None:
        name = type(scheduler).__name__
        if name not in ("FlowMatchEulerDiscreteScheduler", "DDPMScheduler"):
            raise ValueError(f"{name} is not known; expected FlowMatchEulerDiscreteScheduler or DDPMScheduler")
        self.kind = "ddpm" if name == "DDPMScheduler" else "flow"
        config = scheduler.config
        if self.kind == "ddpm" and (config.prediction_type != "epsilon" or config.clip_sample or config.thresholding):
            raise ValueError(
                f"DDPMScheduler predicts {config.prediction_type!r} with clip_sample={config.clip_sample}; "
                "expected 'epsilon' "
                "without clipping"
            )
        self.train_steps: int = config.num_train_timesteps
        self.preconditioned = preconditioned
        self._scheduler = scheduler
        self._samplers: dict[tuple[int, float | None], Sampler] = {}
        table = scheduler.alphas_cumprod if self.kind == "ddpm" else scheduler.sigmas
        self.table: Tensor = table.detach().to("cpu", torch.float32)

    def draw_index(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None,
        device: torch.device,
    ) -> Tensor:
        """Training times (int64): uniform for DDPM, ``floor(T sigmoid(N(0, 1)))`` for flow matching, as in NOVA."""
        if self.kind == "ddpm":
            return integers(0, self.train_steps, shape, device, generator)
        place = normal(shape, "cpu", generator).sigmoid()
        return moved((place * self.train_steps).long().clamp(max=self.train_steps - 1), device)

    def noised(self, clean: Tensor, noise: Tensor, index: Tensor) -> Noised:
        """Noises clean samples.

        Args:
            clean: (..., size) samples.
            noise: N(0, 1) of the same shape.
            index: (...) int64 in [0, train_steps), one per sample.
        """
        level = self.table.to(clean.device)[index]
        if self.kind == "ddpm":
            signal, sigma = (
                level.sqrt()[..., None].to(clean),
                (1 - level).sqrt()[..., None].to(clean),
            )
            return Noised(signal * clean + sigma * noise, index.float(), noise)
        sigma = level[..., None].to(clean)
        return Noised(sigma * noise + (1 - sigma) * clean, self.train_steps * level, noise - clean)

    def predict(
        self, network: Callable[[Tensor, Tensor, Condition], Tensor], sample: Tensor, time: Tensor, condition: Condition
    ) -> Tensor:
        """The prediction of :attr:`Noised.target`, noise or velocity, by a de-tokenizer's network.

        Args:
            network: called with the sample as it reads it, the times and the conditions.
            sample: (B, ..., size) noised samples.
            time: (B, ...) diffusion times.
            condition: what the network is conditioned on.
        """
        output = network(self.precondition_input(sample, time), time, condition)
        return self.precondition_output(sample, time, output)

    def precondition_output(self, sample: Tensor, time: Tensor, output: Tensor) -> Tensor:
        """The prediction of :attr:`Noised.target` from noised samples (B, ..., size), times (B, ...) and the network's
        output.

        It is the output itself, unless the process is preconditioned (Karras et al. 2022, table 1): for clean samples
        of unit variance, the output then is the scaled error of the best linear prediction from the sample.
        """
        if not self.preconditioned:
            return output
        level = self._levels(time, sample)
        scale = self._scale(level)
        return (2 * level - 1) * scale.square() * sample + scale * output.to(sample)

    def precondition_input(self, sample: Tensor, time: Tensor) -> Tensor:
        """Noised samples (B, ..., size) as the network reads them: scaled to unit variance if preconditioned."""
        return sample * self._scale(self._levels(time, sample)) if self.preconditioned else sample

    def loss_weights(self, time: Tensor) -> Tensor:
        """Weights of squared errors at times (...), float32: those of the network's own output if preconditioned."""
        if not self.preconditioned:
            return torch.ones_like(time)
        return self._scale(time / self.train_steps) ** -2

    def _levels(self, time: Tensor, sample: Tensor) -> Tensor:
        """Noise levels in the sample's type, with as many dimensions."""
        return (time / self.train_steps)[(..., *[None] * (sample.ndim - time.ndim))].to(sample)

    @staticmethod
    def _scale(level: Tensor) -> Tensor:
        """One over the standard deviation of a noised sample of unit variance."""
        return (level.square() + (1 - level).square()).rsqrt()

    def sampler(self, steps: int, shift: float | None = None) -> Sampler:
        """The reverse process in ``steps`` steps; made once, since making its tables can take longer than using them.

        Args:
            steps: steps.
            shift: flow matching only: the noise levels 1, ..., 1 / steps, shifted towards noise (Esser et al. 2024,
                section 5.3.2); None: diffusers' levels, the last of which is hardly above 0.

        Raises:
            ValueError: fewer steps than 1 or more than the training table has, or a shift of another process.
        """
        if not 1 <= steps <= self.train_steps:
            raise ValueError(f"{steps} denoising steps were asked for; allowed: 1 to {self.train_steps}")
        if shift is not None and self.kind != "flow":
            raise ValueError(f"a shift of {shift} was asked for; only flow matching has one, this is {self.kind}")
        if (steps, shift) not in self._samplers:
            with torch.device("cpu"):
                scheduler = copy.deepcopy(self._scheduler)  # from_config drops what was given by position
                if shift is None:
                    scheduler.set_timesteps(steps)
                else:
                    scheduler.set_shift(shift)
                    scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
            made = _ddpm_sampler(scheduler) if self.kind == "ddpm" else _flow_sampler(scheduler)
            self._samplers[steps, shift] = made
        return self._samplers[steps, shift]


def _flow_sampler(scheduler: Any) -> Sampler:
    """Euler steps along the predicted velocity."""
    sigmas = scheduler.sigmas.double().tolist()
    differences = tuple(after - before for before, after in pairwise(sigmas))
    count = len(differences)
    return Sampler(tuple(scheduler.timesteps.tolist()), (1.0,) * count, differences, (0.0,) * count, tuple(sigmas))


def _ddpm_sampler(scheduler: Any) -> Sampler:
    """Ho et al. 2020, equations 6 and 7, with the mean written as a combination of the sample and the predicted
    noise."""
    times = [int(time) for time in scheduler.timesteps]
    keep, output, noise = [], [], []
    for time in times:
        previous = int(scheduler.previous_timestep(time))
        total = scheduler.alphas_cumprod[time].double().item()
        before = scheduler.alphas_cumprod[previous].double().item() if previous >= 0 else 1.0
        alpha = total / before
        of_clean = before**0.5 * (1 - alpha) / (1 - total)
        keep.append(alpha**0.5 * (1 - before) / (1 - total) + of_clean / total**0.5)
        output.append(-of_clean * ((1 - total) / total) ** 0.5)
        variance = (1 - before) / (1 - total) * (1 - alpha)
        noise.append(max(variance, MIN_VARIANCE) ** 0.5 if time > 0 else 0.0)
    return Sampler(tuple(map(float, times)), tuple(keep), tuple(output), tuple(noise))


@cache
def noise_process(config: DiffusionConfig) -> NoiseProcess:
    """The process of a configuration; made once per configuration."""
    with torch.device("cpu"):  # not on the meta device, where a model may be under construction
        if config.kind == "flow":
            from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
                FlowMatchEulerDiscreteScheduler,
            )

            return NoiseProcess(
                FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.train_steps, shift=config.shift),
                config.preconditioned,
            )
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        return NoiseProcess(
            DDPMScheduler(
                num_train_timesteps=config.train_steps,
                beta_schedule="squaredcos_cap_v2",
                clip_sample=False,
                steps_offset=config.steps_offset,
            )
        )
