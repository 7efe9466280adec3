"""How fast a policy trains on rendered data, and what limits it: `python benchmarks/throughput.py --help`.

Batches come from disk as in `par-agent finetune`. The rate that everything is compared with is that of large matrix
products of the same type, measured between the steps. On one thread of a CPU, time is the training thread's own
processor time, so that other work on the machine does not count; waiting for data is in seconds of the clock.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from latency import count_flops, describe, sequence_length, synchronise
from torch import nn

from par_agent.cli.options import run_script
from par_agent.data.conventions import check_conventions
from par_agent.data.episodes import RenderedDataset
from par_agent.data.index import EpisodeIndex
from par_agent.data.prefetch import prefetch
from par_agent.data.windows import MixedSampler, Windows
from par_agent.errors import UserError
from par_agent.modeling.par import PARModel
from par_agent.policy.checkpoint import Checkpoint
from par_agent.training.config import DatasetConfig, FinetuneConfig
from par_agent.training.objective import tensors
from par_agent.training.optimisation import make_optimizer
from par_agent.training.samplers import open_samplers
from par_agent.utils.checked import Checked, Count, Length, Share, Size, SmallCount

BUNDLED = Path(__file__).parents[1] / "par_agent" / "checkpoints" / "par-mini"


@dataclass(frozen=True)
class ThroughputConfig(Checked):
    """Trains a few steps and prints samples and tokens per second, share of peak speed and of waiting for data."""

    data: tuple[Path, ...] = tuple(Path("data/rendered") / task for task in ("PushCube", "PickCube", "StackCube"))
    """Rendered datasets."""
    init: Path = BUNDLED
    """Policy checkpoint that is trained; it is not changed."""
    batch_size: Size = 32
    """Windows a step."""
    window: Length = 4
    """Physical tokens per window."""
    frame_fraction: Share = 0.25
    """Share of steps that enter the frame loss."""
    cache: bool = True
    """Reads cached latents, after making missing ones; without it frames are encoded when they are needed."""
    variants: SmallCount = 4
    """Augmented copies of every frame in the cache."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass instead of storing them."""
    compile: bool = False
    """Compiles the causal transformer and the Action-DiT with torch.compile."""
    steps: Count = 10
    """Steps that are timed, after two that are not."""
    threads: SmallCount = 1
    """CPU threads."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Device."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic; bfloat16 is autocast over float32 weights."""


class Stopwatch:
    """Seconds of the shortest of several calls."""

    def __init__(self, config: ThroughputConfig) -> None:
        self._device = torch.device(config.device)
        own_time = self._device.type == "cpu" and config.threads == 1
        self._now = time.thread_time if own_time else time.perf_counter
        self.best: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], object]) -> None:
        """Does the work once."""
        synchronise(self._device)
        before = self._now()
        work()
        synchronise(self._device)
        self.best[name] = min(self.best.get(name, float("inf")), self._now() - before)


class Training:
    """A model, its optimiser and what a step does to them."""

    def __init__(self, config: ThroughputConfig, checkpoint: Checkpoint) -> None:
        assert checkpoint.transforms is not None
        self.config, self.checkpoint, self.transforms = config, checkpoint, checkpoint.transforms
        self.device = torch.device(config.device)
        self.model = checkpoint.model.train()
        self.model.nova.video_encoder.patch_embed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.set_gradient_checkpointing(config.gradient_checkpointing)
        self.optimizer = make_optimizer(self.model, 1e-4, 0.05)
        self._transformer: tuple[Any, ...] = ()
        self.model.nova.video_encoder.register_forward_pre_hook(self._remember)
        if config.compile:
            self.model.compile_for_training()

    def step(self, windows: Windows) -> None:
        """Loss, gradient, clipping and update."""
        with self.precision():
            inputs, targets, features = tensors(windows, self.transforms, self.checkpoint.text_encoder, self.device)
            steps, context_length = windows.steps.to(self.device), windows.context_length.to(self.device)
            loss = self.model.loss(
                features, inputs, steps, targets, context=context_length, frame_fraction=self.config.frame_fraction
            )
        loss.total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def transformer(self) -> None:
        """The causal transformer's forward and backward pass on the last step's tokens, with gradients of both."""
        tokens, *rest = self._transformer
        with self.precision():
            outputs = self.model.nova.video_encoder(tokens.detach().requires_grad_(), *rest)
        outputs.backward(torch.ones_like(outputs))
        self.optimizer.zero_grad(set_to_none=True)

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """What the products are computed in."""
        if self.config.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.config.dtype))

    def _remember(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._transformer = arguments


def main(config: ThroughputConfig) -> None:
    """Prints the table."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    training = Training(config, Checkpoint.load(config.init, config.device))
    sampler = open_data(config, training.checkpoint)
    stopwatch, product = Stopwatch(config), matrix_product(config)
    waited, began, memory, flops = 0.0, 0.0, 0, {}
    with prefetch(sampler.batch, 0, config.steps + 2) as batches:
        for number in range(config.steps + 2):
            before = time.perf_counter()
            began = before if number == 2 else began
            windows = next(batches)
            waited += time.perf_counter() - before if number >= 2 else 0.0
            if number == 0:
                flops["step"] = count_flops(partial(training.step, windows))
                flops["transformer"] = count_flops(training.transformer)
            elif number == 1:
                training.step(windows)
            else:
                stopwatch("step", partial(training.step, windows))
            memory = max(memory, own_memory())
        elapsed = time.perf_counter() - began
    for _ in range(config.steps):
        stopwatch("transformer", training.transformer)
        stopwatch("product", product)
    report(config, training.model, flops, stopwatch.best)
    print(f"waiting for data: {waited / elapsed:.1%} of {elapsed:.1f} s on the clock")
    print(f"memory: {memory / 1e9:.2f} GB, with {frames_size(sampler) / 1e9:.2f} GB of frames on disk")


def open_data(config: ThroughputConfig, checkpoint: Checkpoint) -> MixedSampler:
    """The datasets in equal shares."""
    model, transforms = checkpoint.model.config, checkpoint.transforms
    if transforms is None:
        raise UserError(f"{config.init} was never trained; give a checkpoint that `par-agent finetune` made")
    action = model.action
    indices = [EpisodeIndex(RenderedDataset(folder), action.chunk_length, action.foresight) for folder in config.data]
    check_conventions(indices, transforms, f"the checkpoint {config.init}")
    dataset = DatasetConfig(camera=transforms.camera, cache=config.cache, variants=config.variants)
    options = FinetuneConfig(
        out=Path(),
        data=config.data,
        window=config.window,
        batch_size=config.batch_size,
        init=config.init,
        dataset=dataset,
    )
    shape = (model.nova.latent_channels, *model.nova.latent_size)
    return open_samplers(options, indices, checkpoint.encoder, shape)[0]


def matrix_product(config: ThroughputConfig) -> Callable[[], object]:
    """A large matrix product of ``2 * size ** 3`` operations."""
    size = product_size(config)
    a = torch.randn(size, size, device=config.device, dtype=getattr(torch, config.dtype))
    return lambda: a @ a


def product_size(config: ThroughputConfig) -> int:
    """Rows and columns of the large matrices."""
    return 1024 if config.device == "cpu" else 8192


def own_memory() -> int:
    """Bytes that this process holds, without pages of files, which the system takes back when it needs them (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def frames_size(sampler: MixedSampler) -> int:
    """Bytes of the episode files, frames almost all of it."""
    return sum(path.stat().st_size for part in sampler.samplers for path in part.index.dataset.paths)


def report(config: ThroughputConfig, model: PARModel, flops: dict[str, float], seconds: dict[str, float]) -> None:
    """Prints what was measured."""
    tokens = config.batch_size * sequence_length(model, config.window)
    peak = 2 * product_size(config) ** 3 / seconds["product"]
    print(
        f"{model.config.name}, batch {config.batch_size}, window {config.window} ({tokens:,} tokens of the causal "
        f"transformer), {config.dtype}, {describe(torch.device(config.device))}"
    )
    print(f"matrix products: {peak / 1e9:,.0f} GFLOP/s\n")
    print("| part | GFLOP | s | GFLOP/s | of peak |\n|---|---|---|---|---|")
    for name, key in (("causal transformer, forward and backward", "transformer"), ("training step", "step")):
        rate = flops[key] / seconds[key]
        print(f"| {name} | {flops[key] / 1e9:,.1f} | {seconds[key]:.3f} | {rate / 1e9:,.1f} | {rate / peak:.0%} |")
    step = seconds["step"]
    print(f"\n{config.batch_size / step:,.1f} samples/s, {tokens / step:,.0f} tokens/s")


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/throughput.py", main, ThroughputConfig, __doc__))
