"""Run by torchrun: one tiny model trained on two processes with its weights sharded (FSDP2), another one whole.

accelerate takes FSDP to GPUs only, so that the sharding is torch's own here; averages and checkpoints are ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from par_agent.modeling.blocks import Block
from par_agent.modeling.par import PARModel, Targets
from par_agent.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from par_agent.training.optimisation import EMA, make_optimizer
from tiny import tiny_features, tiny_inputs, tiny_model


class Loss(torch.nn.Module):
    """The model's loss on a fixed batch, behind a module's forward, as in par_agent.training.objective."""

    def __init__(self, model: PARModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, step: int) -> torch.Tensor:
        inputs = tiny_inputs(3, 2, seed=step)
        targets = Targets(inputs.actions, torch.ones(3, 2, 4), inputs.latents, torch.ones(3, 2, dtype=torch.bool))
        generator = torch.Generator().manual_seed(step)
        steps = torch.arange(2).expand(3, 2)
        return self.model.loss(tiny_features(3), inputs, steps, targets, generator=generator).total


class Run:
    """A model, its average and its optimiser."""

    def __init__(self, sharded: bool, seed: int = 0) -> None:
        self.loss = Loss(tiny_model(seed=seed).train())
        if sharded:
            mesh = init_device_mesh("cpu", (2,))
            for module in list(self.loss.modules()):
                if isinstance(module, Block):
                    fully_shard(module, mesh=mesh)
            fully_shard(self.loss, mesh=mesh)
        self.optimizer = make_optimizer(self.loss, 1e-3, 0.1)
        self.average = EMA(self.loss, 0.9)
        self.weights = {"model": self.loss.state_dict(), "ema": self.average.tensors}

    def train(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            self.loss(step).backward()
            torch.nn.utils.clip_grad_norm_(self.loss.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.average.update(self.loss, step)


def main(folder: Path) -> None:
    """Trains both, resumes the sharded one from its own checkpoint, and compares what is on disk."""
    torch.distributed.init_process_group("gloo")
    main_process = torch.distributed.get_rank() == 0
    whole, sharded, resumed = Run(False), Run(True), Run(True, seed=1)
    whole.train(0, 4)
    sharded.train(0, 2)
    save_checkpoint(folder / "half", 2, sharded.weights, sharded.optimizer, {}, write=main_process)
    torch.distributed.barrier()
    found = latest_checkpoint(folder / "half")
    assert found is not None
    load_checkpoint(found, resumed.weights, resumed.optimizer)
    for run in (sharded, resumed):
        run.train(2, 4)
    for name, run in {"sharded": sharded, "resumed": resumed}.items():
        save_checkpoint(folder / name, 4, run.weights, run.optimizer, {}, write=main_process)
    torch.distributed.barrier()
    for name in ("sharded", "resumed"):
        other = Run(False, seed=2)
        load_checkpoint(folder / name / "step_00000004", other.weights, other.optimizer)
        for kind in ("model", "ema"):
            for key, value in whole.weights[kind].items():
                torch.testing.assert_close(other.weights[kind][key], value, rtol=1e-5, atol=1e-5)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
