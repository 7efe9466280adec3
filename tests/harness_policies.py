"""Policies without a model, for the tests of the benchmark: real actions of ManiSkill's motion planner, replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from par_agent.tasks import TaskSpec

CHUNK = 32


class ReplayPolicy:
    """Replays the stored demonstration whose first joint positions are nearest to the observed ones.

    Args:
        task: the task to replay.
        demos: folder with one ``<task>-<seed>.npz`` of ``qpos`` (9,) and ``actions`` (E, 8) per demonstration.
        noise: standard deviation of noise on the joint targets, radians.
        fail_seed: raise after ten steps of the demonstration of this environment seed.
    """

    action_size = 8

    def __init__(self, task: TaskSpec, demos: str, noise: float = 0.0, fail_seed: int | None = None) -> None:
        self._demos = [(path, dict(np.load(path))) for path in sorted(Path(demos).glob(f"{task.name}-*.npz"))]
        self._noise = noise
        self._fail_seed = fail_seed

    @property
    def needs_frame(self) -> bool:
        return self._step % CHUNK == 0

    def reset(self, env_idx: Any = None, seed: int | None = None) -> None:
        self._step = 0
        self._generator = np.random.default_rng(seed)

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        if self._step == 0:
            qpos = obs["agent"]["qpos"][0].numpy()
            self._path, self._demo = min(self._demos, key=lambda item: np.abs(item[1]["qpos"] - qpos).max())
        if self.needs_frame:
            assert obs["sensor_data"]["render_camera"]["rgb"].shape == (1, 512, 512, 3)
        if self._step == 10 and self._path.stem.endswith(f"-{self._fail_seed}"):
            raise ArithmeticError("made to fail")
        actions = self._demo["actions"]
        action = actions[min(self._step, len(actions) - 1)].astype(np.float32)
        action[:7] += self._noise * self._generator.standard_normal(7).astype(np.float32)
        self._step += 1
        return torch.from_numpy(action)[None]


class SevenNumbersPolicy:
    """A policy whose actions do not fit the tasks."""

    action_size = 7

    def reset(self, env_idx: Any = None, seed: int | None = None) -> None:
        """Nothing to forget."""

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        return torch.zeros(1, 7)


class DyingPolicy(SevenNumbersPolicy):
    """A policy that takes its whole process down, once if it is given a file to remember that in."""

    action_size = 8

    def __init__(self, died: str = "") -> None:
        self._died = died

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        import os
        import signal

        if not self._died or not Path(self._died).exists():
            if self._died:
                Path(self._died).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1, 8)


class PlainResetPolicy:
    """A policy without ``needs_frame`` and whose ``reset`` takes no seed: it draws from torch's global generator."""

    action_size = 8

    def reset(self) -> None:
        """Nothing to forget."""

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        joints = obs["agent"]["qpos"][:, :7]
        return torch.cat([joints + 0.1 * torch.randn(1, 7), torch.ones(1, 1)], dim=1)


class CountingPolicy:
    """Plans every fourth step; the action says which row and which step it is for; fails at a step, if told to."""

    action_size = 8

    def __init__(self, rows: int = 3, fail_at: int = 99) -> None:
        self.rows, self.fail_at = rows, fail_at

    @property
    def needs_frame(self) -> bool:
        return self.step % 4 == 0

    def reset(self, env_idx: Any = None, seed: int | None = None) -> None:
        self.step, self.seed = 0, seed

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        self.step += 1
        if self.step == self.fail_at:
            raise ArithmeticError("made to fail")
        return torch.arange(self.rows)[:, None] + torch.full((1, 8), 0.01 * self.step)


class BlindPolicy(PlainResetPolicy):
    """Random motion that looks at no image."""

    needs_frame = False


class DyingOncePolicy(BlindPolicy):
    """Random motion by a policy that takes its whole process down once, and remembers that in a file."""

    def __init__(self, died: str) -> None:
        self._dying = DyingPolicy(died)

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        self._dying.act(obs)
        return super().act(obs)
