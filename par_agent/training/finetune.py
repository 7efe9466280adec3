"""Trains a PAR policy on rendered demonstrations: from scratch or from a checkpoint, on one or several processes."""

from __future__ import annotations

from datetime import timedelta

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from par_agent.checkpoint import Checkpoint
from par_agent.training.checkpoint import latest_checkpoint
from par_agent.training.config import FinetuneConfig
from par_agent.training.loop import Training
from par_agent.training.setup import prepare

__all__ = ["FinetuneConfig", "finetune"]

LONGEST_WAIT = timedelta(hours=12)
"""How long processes wait for the main one, which alone computes latents and measures."""


def finetune(config: FinetuneConfig) -> Checkpoint:
    """Runs or resumes training; returns the trained policy's checkpoint, which is also in ``config.out / "policy"``.

    Started by `torchrun` or `accelerate launch`, it trains on all of their processes; only the main one writes.

    Raises:
        UserError: data that does not fit the model, a run folder of other options, a gradient that is not finite, a
            full disk.
    """
    accelerator = make_accelerator(config)
    with accelerator.main_process_first():
        config.claim(begun=latest_checkpoint(config.out / "checkpoints") is not None)
        setup = prepare(config, accelerator.device)
    training = Training(config, setup, accelerator)
    training.resume()
    training.run()
    policy = training.policy()
    if accelerator.num_processes > 1:
        accelerator.end_training()
    return policy


def make_accelerator(config: FinetuneConfig) -> Accelerator:
    """This process's place among all, its device and its arithmetic."""
    return Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulation),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),  # NOVA's motion tokens, among others
            InitProcessGroupKwargs(timeout=LONGEST_WAIT),
        ],
    )
