"""Shows the progress of a run on the main process: progress bar, TensorBoard, Weights & Biases, your own callbacks."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.training.config import TrainingConfig
from par_agent.training.progress import StepProgress
from par_agent.utils.hashes import hash_bytes
from par_agent.utils.references import optional_module

SHOWN_EVERY = 10
"""Steps between two updates of the losses shown."""
DATA_WAIT = 0.05
"""Share of the time spent waiting for data from which on it is shown."""
LINE_WIDTH = 95
"""Characters of a line of measurements."""


class Callback:
    """What a run calls on its way; override what you need. Only the main process calls it, and waits for it.

    An exception that it raises ends the run, which the same call continues from the last training state.

    ::

        class Print(Callback):
            def on_validation(self, step, metrics):
                print(step, metrics["action_error"])

        finetune(config, callbacks=[Print()])
    """

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """``step`` optimiser steps are done; losses ``action`` and ``frame``, ``gradient_norm`` and ``learning_rate``
        of the last one."""

    def on_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """The policy after ``step`` steps was measured on the held-out episodes; ``metrics`` are those that are
        printed: ``action_error`` in radians, ``gripper_accuracy`` from 0 to 1, ``frame_psnr`` in decibels, and more."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """The policy after ``step`` steps was written to ``folder``, where ``PARPolicy.from_pretrained`` finds it: with
        training states, before rollouts, and at the end."""


class Monitor:
    """Shows one run; a context manager. It does nothing unless ``enabled``, as it is on the main process.

    ``start`` steps were done before; ``windows_per_step`` counts those of all processes.
    """

    def __init__(
        self,
        config: TrainingConfig,
        start: int,
        windows_per_step: int,
        enabled: bool,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._config, self._start, self._windows, self._enabled = config, start, windows_per_step, enabled
        self._callbacks = callbacks if enabled else ()
        self._waited, self._since, self._steps = 0.0, time.monotonic(), 0

    def __enter__(self) -> Monitor:
        config = self._config
        name = config.settings_file.removesuffix(".json")
        with contextlib.ExitStack() as stack:
            self._bar = stack.enter_context(StepProgress(name, self._start, config.steps, self._enabled))
            self._writer = self._wandb = None
            if self._enabled:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(config.out / "tensorboard"), purge_step=self._start)
                stack.callback(self._writer.close)
                if config.logging.wandb is not None:
                    self._wandb = start_wandb(config, config.logging.wandb)
                    stack.callback(self._wandb.finish)
            self._stack = stack.pop_all()
        self._since = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def stepped(self, step: int, *, wait: float, **values: float) -> None:
        """Shows optimiser step ``step`` (from 0): its losses, norm and rate, and the seconds it waited for data."""
        for callback in self._callbacks:
            callback.on_step(step + 1, values)
        self._waited += wait
        self._steps += 1
        if step % SHOWN_EVERY:
            self._bar.advance()
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        values |= {"samples_per_second": self._steps * self._windows / seconds, "data_wait": self._waited / seconds}
        self.log("train", values, step)
        waits = f", {values['data_wait']:.0%} data wait" if values["data_wait"] >= DATA_WAIT else ""
        rate = f"{values['samples_per_second']:.0f} samples/s"
        self._bar.advance(f"action {values['action']:.3f}, frame {values['frame']:.3f}, {rate}{waits}")
        self._waited, self._since, self._steps = 0.0, time.monotonic(), 0

    def measured(self, step: int, metrics: dict[str, float]) -> None:
        """Shows measurements on held-out episodes after ``step`` steps."""
        self.log("validation", metrics, step)
        for callback in self._callbacks:
            callback.on_validation(step, metrics)
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self.say("\n    ".join(textwrap.wrap(f"step {step}: {numbers}", LINE_WIDTH)))

    def rolled_out(self, step: int, success: dict[str, float]) -> None:
        """Shows success rates of a closed-loop evaluation after ``step`` steps."""
        self.log("rollout", success, step)
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.1%}" for name, value in success.items()))

    def log(self, group: str, values: dict[str, float], step: int) -> None:
        """Logs numbers as ``group/name``."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Logs an image (H, W, 3) uint8."""
        if self._writer is not None:
            self._writer.add_image(name, image, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(image)}, step=step)

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._bar.say(text)


def start_wandb(config: TrainingConfig, project: str) -> Any:
    """A run of Weights & Biases that goes on when the run in ``config.out`` does."""
    wandb = optional_module("wandb", "--wandb needs wandb", "wandb")
    identity = hash_bytes(str(config.out.resolve()).encode())
    return wandb.init(
        project=project, name=config.out.name, id=identity, resume="allow", dir=config.out, config=config.to_json()
    )
