"""How long a chunk takes, and how long it must take at least: `python benchmarks/latency.py --help`.

Weights are random: time does not depend on them. Every case starts from the latents of the newest frame, as `act()`
does after the frozen frame encoder, whose own time is a row of its own.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from par_agent.cli.options import run_script
from par_agent.modeling.config import GenerationConfig
from par_agent.modeling.nova.generation import mask_schedule
from par_agent.modeling.par import PARModel, PARStream, PhysicalTokens
from par_agent.modeling.presets import PRESETS, preset
from par_agent.modeling.vae.frame_encoder import make_frame_encoder
from par_agent.utils.checked import Checked, Count, Length, Positive, Size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LatencyConfig(Checked):
    """Times one chunk of a policy, with and without cache, with and without predicting the next frame."""

    presets: tuple[str, ...] = ("mini", "par-nova-0.6b")
    """Models to time."""
    batch: tuple[Size, ...] = (1, 25)
    """Environments at once."""
    step: Length = 12
    """Physical token of the rollout that is timed; all earlier ones are in the context."""
    denoising_steps: Length = 10
    """Steps of the Action-DiT."""
    mask_steps: Length = 8
    """Number of sets in which the patches of a predicted frame are drawn."""
    diffusion_steps: Length = 10
    """Denoising steps per set."""
    repeats: Count = 20
    """Timings per case; the slow ones (recomputing, frames) get a quarter, at least one."""
    frames: bool = True
    """Also times predicting the next frame."""
    recompute: bool = True
    """Also times computing the whole history again."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device to time."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of weights and cache."""
    max_memory: Positive = 14.0
    """Gigabytes. Cases whose weights and cache need more are left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.presets:
            preset(name)  # which refuses unknown ones


@dataclass(frozen=True)
class Peak:
    """What the device reaches on the simplest tasks, measured."""

    flops: float
    """Floating point operations a second of a large matrix product."""
    bandwidth: float
    """Bytes a second read and written by a large copy."""

    def floor(self, flops: float, size: float) -> float:
        """Seconds that work of so many operations and bytes takes at least."""
        return max(flops / self.flops, size / self.bandwidth)


@dataclass(frozen=True)
class Case:
    """Something to time."""

    name: str
    """Row of the table."""
    run: Callable[[PARModel, Inputs], object]
    """Does it once."""
    size: float
    """Bytes of weights and cache that must be read."""
    slow: bool = False
    """Whether it is repeated less often."""


@dataclass
class Inputs:
    """Random tensors of the right shapes."""

    features: list[Tensor]
    history: PhysicalTokens
    newest: PhysicalTokens
    stream: PARStream
    start: Tensor


class NoNoise:
    """Zeros: time does not depend on the noise."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, device=self._device)

    step = start

    def order(self, batch: int, patches: int) -> Tensor:
        return torch.arange(patches, device=self._device).expand(batch, -1)


def main(config: LatencyConfig) -> None:
    """Prints one table row per case."""
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    peak = measure_peak(device, dtype)
    print(
        f"{describe(device)}, {config.dtype}; measured: {peak.flops / 1e9:,.0f} GFLOP/s, "
        f"{peak.bandwidth / 1e9:,.1f} GB/s"
    )
    print(f"step {config.step}, {config.denoising_steps} denoising steps\n")
    print("| model | batch | case | p50 ms | p95 ms | GFLOP | GB | floor ms |\n|---|---|---|---|---|---|---|---|")
    for name in config.presets:
        with torch.device("meta"):
            plan = PARModel(preset(name)).to(dtype)
        model = plan.to_empty(device=device).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.02)
        for batch in config.batch:
            needed = (weights(model) + cache_size(model, batch, config.step)) / 1e9
            if needed > config.max_memory:
                print(f"| {name} | {batch} | left out: needs {needed:.1f} GB (--max-memory) | | | | | |")
                continue
            for row in rows(config, name, model, batch, peak):
                print(row, flush=True)
    print(f"\npeak memory {peak_memory(device) / 1e9:.1f} GB")


def rows(config: LatencyConfig, name: str, model: PARModel, batch: int, peak: Peak) -> Iterator[str]:
    """Table rows of one model and batch size."""
    inputs = make_inputs(model, batch, config, model.nova.device)
    with torch.device("meta"):
        shadow = PARModel(model.config).to(model.nova.dtype).eval()
    shadow_inputs = make_inputs(shadow, batch, config, torch.device("meta"))
    for case in cases(config, model, batch):
        repeats = max(1, config.repeats // 4) if case.slow else config.repeats
        with torch.inference_mode():
            flops = count_flops(partial(case.run, shadow, shadow_inputs))
            times = timed(partial(case.run, model, inputs), repeats, model.nova.device, warm=not case.slow)
        yield table_row(name, batch, case.name, times, flops, case.size, peak)
    yield encoder_row(config, name, model, batch, peak)


def cases(config: LatencyConfig, model: PARModel, batch: int) -> list[Case]:
    """What is timed of a model: act() with and without cache, and the frame that goes with it."""
    cache, temporal = cache_size(model, batch, config.step), weights(model.nova.video_encoder)
    head = config.denoising_steps * weights(model.action_detokenizer)

    def act(model: PARModel, inputs: Inputs) -> Tensor:
        _rewind(inputs.stream, config.step)
        z_frame, z_action = model.step(inputs.stream, inputs.newest)
        model.sample_actions(z_action, inputs.start, config.denoising_steps)
        return z_frame

    def recompute(model: PARModel, inputs: Inputs) -> None:
        steps = torch.arange(config.step, device=inputs.start.device).expand(batch, -1)
        _, z_action = model(inputs.features, inputs.history, steps)
        model.sample_actions(z_action[:, -1], inputs.start, config.denoising_steps)

    found = [Case("act, cached", act, temporal + cache + head)]
    if config.recompute:
        found.append(Case("act, history recomputed", recompute, temporal + head, slow=True))
    if config.frames and model.config.imagination:
        sets = len(mask_schedule(model.config.nova.image_tokens, config.mask_steps))
        steps = min(config.diffusion_steps, model.config.nova.diffusion.train_steps)
        drawing = GenerationConfig(config.mask_steps, steps, 1.0)

        def with_frame(model: PARModel, inputs: Inputs) -> None:
            model.sample_frame(act(model, inputs), inputs.newest.latents[:, 0], NoNoise(inputs.start.device), drawing)

        size = sets * (weights(model.nova.image_encoder) + steps * weights(model.nova.image_decoder))
        found.append(Case("act, cached, and next frame", with_frame, temporal + cache + head + size, slow=True))
    return found


def encoder_row(config: LatencyConfig, name: str, model: PARModel, batch: int, peak: Peak) -> str:
    """The frozen frame encoder on one frame per environment."""
    device = model.nova.device
    fields = {"_class_name": PRESETS[name].frame_encoder}
    encoder = make_frame_encoder(fields).eval().to(device, DTYPES[config.dtype])
    with torch.device("meta"):
        shadow = make_frame_encoder(fields).eval().to(DTYPES[config.dtype])
    height, width = (size * encoder.stride for size in model.config.nova.latent_size)
    frames = torch.zeros(batch, height, width, 3, dtype=torch.uint8, device=device)
    flops = count_flops(lambda: shadow.encode(frames.to("meta")))
    times = timed(lambda: encoder.encode(frames), max(1, config.repeats // 4), device)
    return table_row(name, batch, "frame encoder", times, flops, weights(encoder), peak)


def make_inputs(model: PARModel, batch: int, config: LatencyConfig, device: torch.device) -> Inputs:
    """Random inputs of a rollout that has reached ``config.step``."""
    nova, action, dtype = model.config.nova, model.config.action, model.nova.dtype

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, device=device)

    def tokens(steps: int) -> PhysicalTokens:
        return PhysicalTokens(
            random(batch, steps, nova.latent_channels, *nova.latent_size),
            random(batch, steps, action.proprioception_size),
            random(batch, steps, action.chunk_length, action.action_size),
            torch.ones(batch, steps, dtype=torch.bool, device=device),
        )

    features = [random(nova.text_length // 2, nova.text_dim)] * batch
    with torch.inference_mode():
        stream = model.start(features, config.step)
    start = torch.zeros(batch, action.targets, action.action_size, device=device)
    return Inputs(features, tokens(config.step), tokens(1), stream, start)


def _rewind(stream: PARStream, step: int) -> None:
    """Puts the cache where the ``step``-th physical token comes next."""
    stream.cache.age.fill_(step - 1)
    stream.cache.filled.fill_(True)
    stream.cache.filled[:, step - 1 :] = False


def measure_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Times a large matrix product and a large copy, often enough that other work on the machine spares one of them."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    product = min(timed(lambda: a @ a, 20, device))
    block = torch.zeros(2**28 if device.type == "cpu" else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    copy = min(timed(lambda: target.copy_(block), 20, device))
    return Peak(2 * size**3 / product, 2 * block.numel() / copy)


def timed(function: Callable[[], object], repeats: int, device: torch.device, warm: bool = True) -> list[float]:
    """Seconds of each of ``repeats`` calls, after one that does not count (always on CUDA, else where ``warm``)."""
    times, extra = [], int(warm or device.type == "cuda")
    for _ in range(repeats + extra):
        synchronise(device)
        before = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - before)
    return times[extra:]


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """Bytes: allocated on CUDA, resident on the CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def count_flops(function: Callable[[], object]) -> float:
    """Floating point operations of the products in a call (on the meta device it computes nothing)."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def weights(module: nn.Module) -> float:
    """Bytes of a module's parameters."""
    return float(sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()))


def sequence_length(model: PARModel, steps: int) -> int:
    """Tokens of the prefix and of so many physical tokens."""
    nova = model.config.nova
    return nova.text_length + (nova.video_tokens if nova.bos_slot else 0) + steps * model.block


def cache_size(model: PARModel, batch: int, steps: int) -> float:
    """Bytes of keys and values of a context of ``steps`` physical tokens."""
    encoder = model.config.nova.video_encoder
    numbers = 2 * encoder.depth * encoder.width * batch * sequence_length(model, steps)
    return float(numbers * model.nova.mask_embed.mask_token.element_size())


def table_row(name: str, batch: int, case: str, times: list[float], flops: float, size: float, peak: Peak) -> str:
    """One line of the table."""
    p50, p95 = statistics.median(times), sorted(times)[min(len(times) - 1, round(0.95 * (len(times) - 1)))]
    numbers = f"{1e3 * p50:,.1f} | {1e3 * p95:,.1f} | {flops / 1e9:,.1f} | {size / 1e9:,.2f}"
    return f"| {name} | {batch} | {case} | {numbers} | {1e3 * peak.floor(flops, size):,.1f} |"


def describe(device: torch.device) -> str:
    """Name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/latency.py", main, LatencyConfig, __doc__))
