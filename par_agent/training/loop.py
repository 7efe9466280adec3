"""The training loop: steps, training states, and measurements on held-out episodes.

An optimiser step averages the gradients of ``processes x accumulation`` batches. Batches are numbered, and a batch
and its noise follow from its number and the run's seed alone: which process computes it, and when, changes nothing.
The number of batches drawn so far is therefore all that has to be kept of the data's order and of random generators.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn

from par_agent.data.prefetch import prefetch
from par_agent.data.windows import MixedSampler, Windows
from par_agent.errors import UserError
from par_agent.training.config import TrainingConfig
from par_agent.training.monitor import Callback, Monitor
from par_agent.training.optimisation import EMA, learning_rate, make_optimizer, set_learning_rate
from par_agent.training.state import (
    Progress,
    SaveClock,
    check_steps,
    full_tensor,
    interruptible,
    latest_training_state,
    load_training_state,
    save_training_state,
)
from par_agent.utils.files import naming
from par_agent.utils.json_fields import build

EXPLOSION_FACTOR = 100.0
"""A loss of this many times the running mean ends the run before the step is made."""
LOSS_FLOOR = 0.1
"""The running mean counts as at least this: a tiny loss may double without exploding."""


Rollouts = Callable[[Path], dict[str, float]]
"""Rolls out the policy in a folder; returns numbers to log, such as success rates."""


class SavedPolicy(Protocol):
    """What a run makes: a policy that can be written to a folder."""

    trained: dict[str, Any]
    """How it was trained, for the record."""

    def save(self, folder: Path) -> None:
        """Writes the folder."""


class TrainingLoop(abc.ABC):
    """One run: the objective that accelerate has wrapped, its optimiser, its averaged weights, and how far it is.

    Called with windows, their number and a device, ``objective`` gives a :class:`PARLoss`; its ``model`` is trained.
    ``rollouts`` evaluates in closed loop every ``rollout_every`` steps, on the main process; 0: never.
    """

    def __init__(
        self,
        config: TrainingConfig,
        objective: nn.Module,
        train: MixedSampler,
        accelerator: Accelerator,
        rollouts: Rollouts | None = None,
        rollout_every: int = 0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.accelerator, self._callbacks = config, accelerator, callbacks
        self._train, self._rollouts, self._rollout_every = train, rollouts, rollout_every
        optimizer = make_optimizer(objective, config.learning_rate, config.optimiser.weight_decay)
        self.objective: nn.Module
        self.optimizer: torch.optim.Optimizer
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.model: nn.Module = accelerator.unwrap_model(self.objective).model
        self.average = EMA(self.model, config.optimiser.ema)
        self.progress = Progress()
        self.states: Path = config.out / "training_states"
        self._counted = time.monotonic()
        self._processor = time.process_time()

    @abc.abstractmethod
    def policy(self) -> SavedPolicy:
        """The averaged model as a policy; with FSDP every process has to call this."""

    @abc.abstractmethod
    def measure(self, policy: SavedPolicy, monitor: Monitor) -> tuple[dict[str, float], float]:
        """Measurements of the policy on held-out episodes, and the one number that is best where it is lowest.

        Pictures go to the monitor. Only the main process calls this.
        """

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of a training state, by file."""
        return {"model": self.model.state_dict(), "ema": self.average.tensors}

    def averaged_weights(self) -> dict[str, Tensor]:
        """The model's weights, averaged where they are trained; with FSDP every process has to call this."""
        return {name: full_tensor(value) for name, value in (self.model.state_dict() | self.average.tensors).items()}

    @property
    def batches_per_step(self) -> int:
        """Batches of one optimiser step, on all processes together."""
        return self.config.accumulation * self.accelerator.num_processes

    def trained(self) -> dict[str, Any]:
        """How the policy was trained, for the record."""
        progress = self.progress
        return {
            "steps": progress.step,
            "minutes": round(progress.seconds / 60, 4),
            "processor_minutes": round(progress.processor_seconds / 60, 4),
            "demonstrations": self._train.demonstrations,
            "instructions": self._train.instructions,
            "options": self.config.to_json(),
        }

    def resume(self) -> None:
        """Goes back to the newest training state, if there is one.

        Raises:
            UserError: it is damaged, of another model, or further than the last step.
        """
        if (found := latest_training_state(self.states)) is None:
            return
        state = load_training_state(found, self.weights(), self.model, self.optimizer)
        with naming(found / "state.json"):
            self.progress = build(Progress, state, ())
        check_steps(self.config.out, self.progress.step, self.config.steps)
        self.accelerator.print(f"resumed from {found}")

    def run(self) -> None:
        """Trains up to the last step.

        Raises:
            UserError: the loss explodes or is not finite, or the disk is full; the last training state is intact.
            Interrupted: the processes, or one of them, were told to end.
        """
        with interruptible(self.states, self.config.logging.save_minutes) as clock:
            self._run(clock)
            self.save_policy()  # also of a run that had been stopped between its last training state and this

    def _run(self, clock: SaveClock) -> None:
        config, progress = self.config, self.progress
        windows, main = self.batches_per_step * config.batch_size, self.accelerator.is_main_process
        monitoring = Monitor(config, progress.step, windows, main, self._callbacks)
        with self._batches() as batches, monitoring as monitor:
            self._counted, self._processor = time.monotonic(), time.process_time()
            while progress.step < config.steps:
                due, told = self._step(batches, clock, monitor)
                self._count_time()
                last = progress.step == config.steps
                measured = last or progress.step % config.logging.validate_every == 0
                rolled_out = self._rollout_every and (last or progress.step % self._rollout_every == 0)
                if told and not last:
                    if not (measured or rolled_out):  # resuming from a state saved here would skip its validation
                        self._save_training_state()
                    self.accelerator.wait_for_everyone()  # each then tells what the main process has saved
                    clock.end()
                if measured:
                    self._validate(monitor)
                if due or last:
                    self._save_training_state()
                    clock.restart()
                if due and not last:
                    self.save_policy()
                if rolled_out:
                    self._roll_out(monitor)
                self._counted, self._processor = time.monotonic(), time.process_time()

    def save_policy(self) -> None:
        """Writes the averaged model as the run's policy; every process has to call this."""
        policy = self.policy()
        if self.accelerator.is_main_process:
            policy.save(self.config.out / "policy")
            for callback in self._callbacks:
                callback.on_checkpoint(self.progress.step, self.config.out / "policy")

    # --- inside ---------------------------------------------------------------------------------------------------

    def _batches(self) -> AbstractContextManager[Iterator[tuple[int, Windows]]]:
        """This process's batches up to the last step, each with its number."""
        processes, draw = self.accelerator.num_processes, self._train.batch
        first = self.progress.batches + self.accelerator.process_index

        def numbered(turn: int) -> tuple[int, Windows]:
            return first + turn * processes, draw(first + turn * processes)

        return prefetch(numbered, 0, (self.config.steps - self.progress.step) * self.config.accumulation)

    def _step(self, batches: Iterator[tuple[int, Windows]], clock: SaveClock, monitor: Monitor) -> tuple[bool, bool]:
        """Makes one optimiser step; tells whether to save the training state, and whether the run is to end.

        The main process's clock decides the one, any process the other, so that all of them end after the same step.
        """
        config, progress, accelerator = self.config, self.progress, self.accelerator
        rate = learning_rate(progress.step, config.steps, config.optimiser.warmup, config.learning_rate)
        set_learning_rate(self.optimizer, rate)
        losses, waited = torch.zeros(2, device=accelerator.device), 0.0
        seen: list[tuple[Tensor, tuple[str, ...]]] = []
        for _ in range(config.accumulation):
            before = time.monotonic()
            number, windows = next(batches)
            waited += time.monotonic() - before
            with accelerator.accumulate(self.objective):
                loss = self.objective(windows, number, accelerator.device)
                accelerator.backward(loss.total)
            losses += torch.stack([loss.action, loss.frame]).detach() / config.accumulation
            seen.append((loss.total.detach(), windows.episodes))
        norm = float(full_tensor(accelerator.clip_grad_norm_(self.objective.parameters(), config.optimiser.clip)))
        action, frame, due, told = self._agree(losses, clock)
        total = action + frame
        limit = math.inf if progress.loss is None else EXPLOSION_FACTOR * max(progress.loss, LOSS_FLOOR)
        if not (math.isfinite(norm) and total <= limit):
            raise self._broken_down(total, norm, limit, seen)
        progress.loss = total if progress.loss is None else progress.loss + 0.02 * (total - progress.loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model, progress.step)
        monitor.stepped(progress.step, action=action, frame=frame, gradient_norm=norm, learning_rate=rate, wait=waited)
        progress.step += 1
        progress.batches += self.batches_per_step
        return due, told

    def _agree(self, losses: Tensor, clock: SaveClock) -> tuple[float, float, bool, bool]:
        """Losses (2,) averaged over processes, whether it is time to save, and whether to end."""
        flags = losses.new_tensor([clock.due and self.accelerator.is_main_process, clock.told])
        action, frame, due, told = self.accelerator.reduce(torch.cat([losses, flags]), "mean").tolist()
        return action, frame, due > 0, told > 0

    def _broken_down(
        self, loss: float, norm: float, limit: float, seen: list[tuple[Tensor, tuple[str, ...]]]
    ) -> UserError:
        """The error of a step that must not be made; every process has to call this.

        Names the episodes of the batches whose own loss is at fault, or else of the whole step.
        """
        faulty = [names for value, names in seen if not float(value) <= limit]
        named = gather_object(faulty) or gather_object([names for _, names in seen])
        episodes = ", ".join(sorted({name for names in named for name in names}))
        return UserError(
            f"training broke down at step {self.progress.step}: the loss is {loss:.4g}, the gradient's norm "
            f"{norm:.4g}; episodes {episodes}. The last training state is intact. Look at these episodes, or go on "
            f"from --init {self.config.out / 'policy'} with a lower --learning-rate and another --out"
        )

    def _validate(self, monitor: Monitor) -> None:
        """Measures the averaged model on held-out episodes and keeps it if it is the best so far."""
        progress, policy = self.progress, self.policy()
        if not self.accelerator.is_main_process:
            return
        metrics, error = self.measure(policy, monitor)
        monitor.measured(progress.step, metrics)
        if progress.best is None or error < progress.best:
            progress.best = error
            policy.trained["held_out"] = metrics
            policy.save(self.config.out / "policy-best")

    def _roll_out(self, monitor: Monitor) -> None:
        """Evaluates the averaged model in simulation; a UserError there does not end the training."""
        self.save_policy()
        if not self.accelerator.is_main_process or self._rollouts is None:
            return
        try:
            metrics = self._rollouts(self.config.out / "policy")
        except UserError as error:
            monitor.say(f"step {self.progress.step}: no rollouts: {error}")
            return
        monitor.rolled_out(self.progress.step, metrics)

    def _save_training_state(self) -> None:
        """Saves the training state."""
        state = dataclasses.asdict(self.progress)
        step, keep = state.pop("step"), self.config.logging.keep
        main = self.accelerator.is_main_process
        save_training_state(self.states, step, self.weights(), self.model, self.optimizer, state, keep, write=main)

    def _count_time(self) -> None:
        """Adds the time of a step to the run's; the time of measuring and saving does not count."""
        self.progress.seconds += time.monotonic() - self._counted
        self.progress.processor_seconds += time.process_time() - self._processor


def channels_last(module: nn.Module, accelerator: Accelerator) -> None:
    """Stores convolution weights channels last, which is quicker; FSDP does not support it and is left as it is."""
    if accelerator.distributed_type != DistributedType.FSDP:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
