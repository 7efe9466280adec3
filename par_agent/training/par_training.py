"""Training of a PAR policy: what it adds to the loop that trains every policy."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from par_agent.errors import UserError
from par_agent.modeling.par import PARModel
from par_agent.policy.checkpoint import Checkpoint
from par_agent.training.config import FinetuneConfig
from par_agent.training.loop import Rollouts, SavedPolicy, TrainingLoop, channels_last
from par_agent.training.monitor import Callback, Monitor
from par_agent.training.objective import Objective
from par_agent.training.pictures import draw
from par_agent.training.setup import Setup
from par_agent.training.trainable import merged, save_adapter
from par_agent.training.validation import predict_episode, validate


class Training(TrainingLoop):
    """Training of a PAR policy; ``setup`` holds its model, which is changed in place, and its data."""

    config: FinetuneConfig
    model: PARModel

    def __init__(
        self,
        config: FinetuneConfig,
        setup: Setup,
        accelerator: Accelerator,
        rollouts: Rollouts | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.setup, self._drawn = setup, -math.inf
        model = setup.policy.model.to(accelerator.device)
        channels_last(model.nova.video_encoder.patch_embed, accelerator)
        model.set_gradient_checkpointing(config.model.gradient_checkpointing)
        if config.model.compile:
            model.compile_for_training()
        transforms = setup.policy.transforms if config.has_actions else None
        objective = Objective(model, transforms, setup.policy.text_encoder, config)
        every = config.evaluation.rollout_every
        super().__init__(config, objective, setup.train, accelerator, rollouts, every, callbacks)
        self.progress.base = setup.base

    def resume(self) -> None:
        """Goes back to the newest training state, if there is one.

        Raises:
            UserError: it is damaged or of another model, or the weights under it have changed.
        """
        super().resume()
        if self.progress.base != self.setup.base:
            raise UserError(
                f"{self.config.init} holds other weights than when {self.config.out} was begun, which trains a part of "
                "them only: put the old ones back, or choose another --out"
            )

    def policy(self) -> Checkpoint:
        with torch.device("meta"):
            model = PARModel(self.model.config)
        model.load_state_dict(merged(self.averaged_weights(), self.config), assign=True)
        model.eval().requires_grad_(False)
        return dataclasses.replace(self.setup.policy, model=model, trained=self.trained())

    def measure(self, policy: SavedPolicy, monitor: Monitor) -> tuple[dict[str, float], float]:
        """Errors of actions and frames; every ``picture_minutes`` also a picture of predictions."""
        assert isinstance(policy, Checkpoint)
        config, step, held_out = self.config, self.progress.step, self.setup.held_out
        device, actions = self.accelerator.device, config.has_actions
        if time.monotonic() - self._drawn >= 60 * config.evaluation.picture_minutes:
            episodes = [predict_episode(policy, sampler, device, actions=actions) for sampler in held_out]
            image = draw(episodes, config.out / "pictures" / f"step_{step:08d}.png")
            monitor.picture("held_out", image, step)
            self._drawn = time.monotonic()
        metrics = validate(policy, held_out, device, actions=actions)
        return metrics, metrics["action_error"] if actions else -metrics["frame_psnr"]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of a training state; without the weights that the run keeps as they are in --init."""
        model = self.model.state_dict()
        if not self.config.trains_all:
            model = {name: model[name] for name in self.average.tensors}
        return {"model": model, "ema": self.average.tensors}

    def save_policy(self) -> None:
        super().save_policy()
        if self.config.train == "lora":
            weights = self.averaged_weights()
            adapter = {name: weights[name] for name in self.average.tensors}
            if self.accelerator.is_main_process:
                save_adapter(self.config.out / "adapter", adapter, self.config)
