"""Trains a PAR policy on rendered demonstrations: from scratch or from a checkpoint, on one or several processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)

from par_agent.errors import UserError
from par_agent.policy.checkpoint import Checkpoint
from par_agent.training.config import FinetuneConfig, TrainingConfig
from par_agent.training.loop import Rollouts
from par_agent.training.monitor import Callback
from par_agent.training.par_training import Training
from par_agent.training.setup import describe_run, prepare
from par_agent.utils.device import use_tf32

__all__ = ["Callback", "FinetuneConfig", "finetune"]

PROCESS_TIMEOUT = timedelta(hours=12)
"""How long processes wait for the main one, the only one that computes latents and measures."""


def finetune(
    config: FinetuneConfig, rollouts: Rollouts | None = None, *, callbacks: Sequence[Callback] = ()
) -> Checkpoint:
    """Runs or resumes training; returns the trained policy's checkpoint, which is also in ``config.out / "policy"``.

    Started by `torchrun` or `accelerate launch`, it trains on all of their processes; only the main one writes.
    ``rollouts`` evaluates the policy in a folder in closed loop; ``rollout_every`` needs it. ``callbacks`` hear of
    steps, measurements and saved policies. Data that does not fit the model, a run folder of other options or of
    another process, a loss that explodes or is not finite, and a full disk are UserErrors.
    """
    if config.evaluation.rollout_every and rollouts is None:
        raise UserError("rollout_every is for `par-agent finetune`; from Python also give finetune() its rollouts")
    accelerator = make_accelerator(config)
    config.folders()  # unknown ones are refused before anything is written
    accelerator.print(config.describe())
    with config.claimed() if accelerator.is_main_process else contextlib.nullcontext():
        with accelerator.main_process_first():
            setup = prepare(config, accelerator.device)
        training = Training(config, setup, accelerator, rollouts, callbacks)
        accelerator.print(describe_run(config, setup))
        training.resume()
        training.run()
        policy = training.policy()
    if accelerator.num_processes > 1:
        accelerator.end_training()
    return policy


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """This process's place among all, its device and its arithmetic, which accelerate fixes once per process."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise UserError(
            "DeepSpeed keeps weights and training states in its own format; par_agent cannot resume them. FSDP shards "
            "the same: `distributed_type: FSDP` with `fsdp_version: 2` in accelerate's configuration file"
        )
    if is_initialized():
        fixed, asked = AcceleratorState(), (config.device, config.mixed_precision)
        if (fixed.device.type, fixed.mixed_precision) != asked:
            raise UserError(
                f"this process has trained on {fixed.device.type} with mixed precision {fixed.mixed_precision!r} and "
                f"cannot go on on {asked[0]} with {asked[1]!r}: train in another process, such as `par-agent finetune`"
            )
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulation),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),  # NOVA's motion tokens, among others
            InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT),
        ],
    )
    if config.device == "cuda":
        use_tf32(config.arithmetic != "float32")
        if config.precision is None and config.arithmetic == "float32":
            accelerator.print(f"{torch.cuda.get_device_name()} does not compute in bfloat16: training in float32")
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("FSDP's first version is not supported: put `fsdp_version: 2` into accelerate's file")
    return accelerator
