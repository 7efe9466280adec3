"""Shows the progress of a run on the main process: progress bar, TensorBoard, Weights & Biases."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from par_agent.training.config import TrainingConfig
from par_agent.utils.hashes import hash_bytes
from par_agent.utils.references import optional_module

SHOWN_EVERY = 10
"""Steps between two updates of the losses shown."""


class Monitor:
    """Shows one run; a context manager. It does nothing unless ``enabled``, as it is on the main process.

    ``start`` steps were done before; ``windows_per_step`` counts those of all processes.
    """

    def __init__(self, config: TrainingConfig, start: int, windows_per_step: int, enabled: bool) -> None:
        self._config, self._start, self._windows, self._enabled = config, start, windows_per_step, enabled
        self._shown: dict[str, str] = {}
        self._waited, self._since, self._steps = 0.0, time.monotonic(), 0

    def __enter__(self) -> Monitor:
        config, off = self._config, not self._enabled
        name = config.settings_file.removesuffix(".json")
        with contextlib.ExitStack() as stack:
            bar = tqdm(total=config.steps, initial=self._start, desc=name, unit="step", smoothing=0.05, disable=off)
            self._bar = stack.enter_context(bar)
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
        self._bar.update(1)
        self._waited += wait
        self._steps += 1
        if step % SHOWN_EVERY:
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        values |= {"samples_per_second": self._steps * self._windows / seconds, "data_wait": self._waited / seconds}
        self.log("train", values, step)
        self._show(
            action=f"{values['action']:.3f}",
            frame=f"{values['frame']:.3f}",
            rate=f"{values['samples_per_second']:.1f} samples/s",
            data_wait=f"{values['data_wait']:.0%}",
        )
        self._waited, self._since, self._steps = 0.0, time.monotonic(), 0

    def measured(self, step: int, metrics: dict[str, float]) -> None:
        """Shows measurements on held-out episodes after ``step`` steps."""
        self.log("validation", metrics, step)
        shown = {
            "action_error": ("err", "{:.4f}"),
            "gripper_accuracy": ("grip", "{:.1%}"),
            "frame_psnr": ("frames", "{:.1f}dB"),
        }
        found = {label: text.format(metrics[name]) for name, (label, text) in shown.items() if name in metrics}
        self._show(**found)
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

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
        if self._enabled:
            self._bar.write(text)

    def _show(self, **values: str) -> None:
        self._shown |= values
        self._bar.set_postfix(self._shown)


def start_wandb(config: TrainingConfig, project: str) -> Any:
    """A run of Weights & Biases that goes on when the run in ``config.out`` does."""
    wandb = optional_module("wandb", "--wandb needs wandb", "wandb")
    identity = hash_bytes(str(config.out.resolve()).encode())
    return wandb.init(
        project=project, name=config.out.name, id=identity, resume="allow", dir=config.out, config=config.to_json()
    )
