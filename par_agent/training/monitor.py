"""What a run shows while it goes on: progress bar and TensorBoard, on the main process."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from tqdm import tqdm

from par_agent.training.config import FinetuneConfig

SHOWN_EVERY = 10
"""Steps between two updates of the losses shown."""


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step was like."""

    action: float
    """Action loss, averaged over the step's batches."""
    frame: float
    """Frame loss, likewise."""
    gradient_norm: float
    """Norm of the averaged gradient before clipping."""
    learning_rate: float
    """Rate of the step."""
    waited: float
    """Seconds that the main process waited for data."""


class Monitor:
    """Progress bar and TensorBoard of one run; a context manager. Does nothing where it is not ``enabled``."""

    def __init__(self, config: FinetuneConfig, start: int, windows_per_step: int, enabled: bool) -> None:
        self._config, self._start, self._windows, self._enabled = config, start, windows_per_step, enabled
        self._shown: dict[str, str] = {}
        self._waited, self._since, self._steps = 0.0, time.monotonic(), 0

    def __enter__(self) -> Monitor:
        config = self._config
        self._stack = contextlib.ExitStack()
        bar = tqdm(
            total=config.steps,
            initial=self._start,
            desc="finetune",
            unit="step",
            smoothing=0.05,
            disable=not self._enabled,
        )
        self._bar = self._stack.enter_context(bar)
        self._writer = None
        if self._enabled:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(config.out / "tensorboard"), purge_step=self._start)
            self._writer = self._stack.enter_context(writer)
        self._since = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def stepped(self, step: int, report: StepReport) -> None:
        """Shows optimiser step ``step`` (from 0)."""
        self._bar.update(1)
        self._waited += report.waited
        self._steps += 1
        if step % SHOWN_EVERY:
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        values = {
            "action": report.action,
            "frame": report.frame,
            "gradient_norm": report.gradient_norm,
            "learning_rate": report.learning_rate,
            "samples_per_second": self._steps * self._windows / seconds,
            "data_wait": self._waited / seconds,
        }
        self.log("train", values, step)
        self._show(
            action=f"{report.action:.3f}",
            frame=f"{report.frame:.3f}",
            rate=f"{values['samples_per_second']:.1f} samples/s",
            data_wait=f"{values['data_wait']:.0%}",
        )
        self._waited, self._since, self._steps = 0.0, time.monotonic(), 0

    def measured(self, step: int, metrics: dict[str, float]) -> None:
        """Shows measurements on held-out episodes after ``step`` steps."""
        self.log("validation", metrics, step)
        shown = {"action_error": "err={:.4f}rad", "gripper_accuracy": "grip={:.1%}"}
        self._show(**{name: text.format(metrics[name]) for name, text in shown.items() if name in metrics})
        self.say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

    def log(self, group: str, values: dict[str, float], step: int) -> None:
        """Writes numbers to TensorBoard, as ``group/name``."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        if self._enabled:
            self._bar.write(text)

    def _show(self, **values: str) -> None:
        self._shown |= values
        self._bar.set_postfix(self._shown)
