"""Time and peak memory of one full-parameter training step: `python benchmarks/training_step.py --help`.

Weights and data are random; the optimiser is AdamW, as in `par-agent finetune`, without its averaged copy of the
weights.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch
from latency import count_flops, describe, measure_peak, peak_memory, sequence_length, synchronise
from torch import Tensor

from par_agent.cli.options import run_script
from par_agent.modeling.par import PARModel, PhysicalTokens, Targets
from par_agent.modeling.presets import preset
from par_agent.training.optimisation import clip_and_step, make_optimizer
from par_agent.utils.checked import Checked, Count, Length, Share, Size


@dataclass(frozen=True)
class TrainingStepConfig(Checked):
    """One training step on random data."""

    preset: str = "par-nova-0.6b"
    """Model to train."""
    batch: Size = 1
    """Windows per batch."""
    window: Length = 2
    """Physical tokens per window."""
    frame_fraction: Share = 0.25
    """Share of steps that enter the frame loss."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass instead of storing them."""
    steps: Count = 1
    """Number of steps; the fastest counts. The first one also allocates the optimiser's state."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic; bfloat16 is autocast over float32 weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        preset(self.preset)  # which refuses unknown ones


def main(config: TrainingStepConfig) -> None:
    """Prints seconds, tokens a second, FLOP utilisation and peak memory."""
    device = torch.device(config.device)
    dtype = getattr(torch, config.dtype)
    peak = measure_peak(device, dtype)
    torch.manual_seed(0)
    model = build(config, device)
    optimizer = make_optimizer(model, 1e-4, 0.05)
    seconds, flops = [], 0.0
    for _ in range(config.steps):
        synchronise(device)
        before = time.perf_counter()
        half = torch.autocast(device.type, dtype) if config.dtype != "float32" else contextlib.nullcontext()
        with half:
            flops = count_flops(lambda: backward(config, model, device))
        clip_and_step(model, optimizer, 1.0, "on random data")
        synchronise(device)
        seconds.append(time.perf_counter() - before)
    best = min(seconds)
    tokens = config.batch * sequence_length(model, config.window)
    print(f"{config.preset}, batch {config.batch}, window {config.window}, {config.dtype}, {describe(device)}")
    print(f"  {best:.2f} s a step, {tokens / best:,.0f} tokens/s of the causal transformer ({tokens} a step)")
    share = flops / best / peak.flops
    print(f"  {flops / 1e12:.2f} TFLOP a step: {share:.0%} of the {peak.flops / 1e9:,.0f} GFLOP/s measured")
    print(f"  peak memory {peak_memory(device) / 1e9:.1f} GB")


def build(config: TrainingStepConfig, device: torch.device) -> PARModel:
    """The model with initialised weights."""
    with device:
        model = PARModel(preset(config.preset))
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    return model.train()


def backward(config: TrainingStepConfig, model: PARModel, device: torch.device) -> None:
    """Loss and gradient of one random batch."""
    nova, action = model.config.nova, model.config.action
    shape = (config.batch, config.window)

    def random(*size: int) -> Tensor:
        return torch.randn(*shape, *size, device=device)

    size, latent = action.action_size, (nova.latent_channels, *nova.latent_size)
    known = torch.ones(shape, dtype=torch.bool, device=device)
    joints, chunk = random(action.proprioception_size), random(action.chunk_length, size)
    inputs = PhysicalTokens(random(*latent), joints, chunk, known)
    weights = torch.ones(*shape, action.targets, device=device)
    targets = Targets(random(action.targets, size), weights, random(*latent), known)
    features = [torch.randn(nova.text_length // 2, nova.text_dim, device=device)] * config.batch
    steps = torch.arange(config.window, device=device).expand(shape)
    model.loss(features, inputs, steps, targets, frame_fraction=config.frame_fraction).total.backward()


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/training_step.py", main, TrainingStepConfig, __doc__))
