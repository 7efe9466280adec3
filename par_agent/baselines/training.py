"""Training of a baseline, in the loop that trains PAR: same windows, optimiser, averaging and records."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor

from par_agent.baselines.checkpoint import BaselineCheckpoint
from par_agent.baselines.common import Method
from par_agent.baselines.config import BaselineConfig
from par_agent.baselines.objective import BaselineObjective, context_length
from par_agent.baselines.setup import BaselineSetup, prepare
from par_agent.data.windows import Windows, WindowSampler
from par_agent.training.finetune import make_accelerator
from par_agent.training.loop import SavedPolicy, TrainingLoop, channels_last
from par_agent.training.monitor import Monitor
from par_agent.training.objective import tensors
from par_agent.training.validation import action_metrics, held_out_windows, over_datasets

MEASURED = 64
"""Steps measured per dataset, spread over its held-out episodes."""


def train(config: BaselineConfig) -> BaselineCheckpoint:
    """Runs or resumes training; returns the trained policy, which is also in ``config.out / "policy"``."""
    accelerator = make_accelerator(config)
    config.folders()  # unknown ones are refused before anything is written
    accelerator.print(config.describe())
    with config.claimed() if accelerator.is_main_process else nullcontext():
        with accelerator.main_process_first():
            setup = prepare(config, accelerator.device)
        training = BaselineTraining(config, setup, accelerator)
        training.resume()
        training.run()
        return training.policy()


class BaselineTraining(TrainingLoop):
    """One run."""

    config: BaselineConfig
    model: Method

    def __init__(self, config: BaselineConfig, setup: BaselineSetup, accelerator: Accelerator) -> None:
        self.setup = setup
        channels_last(setup.policy.model.stem.patch_embed, accelerator)
        if config.compile:
            setup.policy.model.compile_for_training()
        super().__init__(config, BaselineObjective(setup.policy, config), setup.train, accelerator)

    def policy(self) -> BaselineCheckpoint:
        with torch.device("meta"):
            model = type(self.model)(self.model.config)
        model.load_state_dict({name: value.clone() for name, value in self.averaged_weights().items()}, assign=True)
        model.eval().requires_grad_(False)
        return dataclasses.replace(self.setup.policy, model=model, trained=self.trained())

    def measure(self, policy: SavedPolicy, monitor: Monitor) -> tuple[dict[str, float], float]:
        assert isinstance(policy, BaselineCheckpoint)
        metrics = over_datasets(self.setup.held_out, lambda sampler: measure(policy, sampler, self.accelerator.device))
        return metrics, metrics["action_error"]


@torch.inference_mode()
def measure(policy: BaselineCheckpoint, sampler: WindowSampler, device: torch.device) -> dict[str, float]:
    """Errors of the deterministic policy on one dataset's held-out episodes, of the chunks that it would execute."""
    windows = held_out_windows(sampler, max(2, MEASURED // sampler.window))
    counted = policy.model.counted(context_length(windows))
    windows = dataclasses.replace(windows, action_weights=windows.action_weights * counted[..., None])
    other = dataclasses.replace(windows, latents=windows.latents.roll(1, 0))
    chunks, blind = (predict(policy, shown, device) for shown in (windows, other))
    return action_metrics(chunks, blind, windows, policy.transforms)


def predict(policy: BaselineCheckpoint, windows: Windows, device: torch.device) -> Tensor:
    """Deterministic chunks (B, N, L, A) in the controller's units, one from every step."""
    inputs, _, features = tensors(windows, policy.transforms, policy.text_encoder, device)
    z = policy.model.conditions(policy.model.history(inputs, features, context_length(windows).to(device)))
    drawn = policy.model.draw(z.flatten(0, 1), None).unflatten(0, z.shape[:2]).cpu()
    return policy.transforms.denormalise_actions(
        drawn[:, :, : policy.model.config.chunk_length], windows.proprioception
    )
