"""Run by torchrun on two processes: one training run with its weights whole on both, then with them sharded (FSDP2).

accelerate takes FSDP to GPUs only; beyond that decision, which is made for it here, all is as with the file of options
in `par_agent/training/README.md`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from par_agent.training import finetune as training
from par_agent.training.config import FinetuneConfig
from tiny import tiny_run, with_options

ENVIRONMENT = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch` makes of the file."""
STEPS = 4

make_accelerator = training.make_accelerator


def sharding_accelerator(config: FinetuneConfig) -> Accelerator:
    """As on GPUs, where accelerate shards."""
    accelerator = make_accelerator(config)
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return accelerator


class Watched(training.Training):
    """The real training; says whether its weights are sharded."""

    def run(self) -> None:
        sharded = [isinstance(value, DTensor) for value in self.model.parameters()]
        wanted = self.accelerator.distributed_type == DistributedType.FSDP
        assert all(sharded) == any(sharded) == wanted
        super().run()


def main(folder: Path) -> None:
    """Trains, resumes from a checkpoint of the middle, and compares the policies."""
    Accelerator.end_training = lambda self: self.wait_for_everyone()  # type: ignore[method-assign]
    training.Training = Watched  # type: ignore[misc]
    first = int(os.environ["RANK"]) == 0
    config = tiny_run(folder) if first else None
    torch.distributed.init_process_group("gloo")
    found = [config]
    torch.distributed.broadcast_object_list(found)
    assert found[0] is not None
    options = {"steps": STEPS, "keep": STEPS, "validate_every": 2, "gradient_checkpointing": True}
    config = with_options(found[0], **options)
    whole, sharded = (with_options(config, out=folder / name) for name in ("whole", "sharded"))
    training.finetune(whole)
    os.environ.update(ENVIRONMENT)
    training.make_accelerator = sharding_accelerator
    training.finetune(sharded)
    if first:
        for step in range(STEPS // 2, STEPS):
            shutil.rmtree(sharded.out / "training_states" / f"step_{step + 1:08d}")
        (sharded.out / "policy").rename(folder / "uninterrupted")
    torch.distributed.barrier()
    training.finetune(sharded)
    if first:
        resumed = load_file(sharded.out / "policy" / "model.safetensors")
        expected = load_file(whole.out / "policy" / "model.safetensors")
        for name, value in load_file(folder / "uninterrupted" / "model.safetensors").items():
            torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
