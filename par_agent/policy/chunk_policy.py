"""What every policy that executes chunks of actions does: it counts them, looks when they are used up, forgets rows."""

from __future__ import annotations

import abc
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from par_agent.errors import UserError, user_errors
from par_agent.modeling.random_numbers import integers
from par_agent.modeling.vae.frame_encoder import FrameEncoder
from par_agent.policy.frames import Frames
from par_agent.policy.observations import camera_images, check_environment, check_task, proprioception
from par_agent.policy.rows import checked_seed, chosen_rows, row_generator
from par_agent.policy.transforms import Transforms
from par_agent.tasks import TaskSpec

if TYPE_CHECKING:
    import gymnasium as gym


@dataclass
class Episodes:
    """What a policy remembers of its environments, one row each. Letters: B environments, A numbers per action."""

    queue: Tensor
    """(B, actions, A) planned actions in the controller's units."""
    used: Tensor
    """(B,) int64 actions of the queue that were executed; a row that has used all it executes plans again."""
    chunk: Tensor
    """(B, L, A) normalised chunk of L actions planned last."""
    generators: list[torch.Generator]
    """Source of each row's randomness."""


P = ParamSpec("P")
R = TypeVar("R")
State = TypeVar("State", bound=Episodes)
Owner = TypeVar("Owner", bound="ChunkPolicy[Any]")


def one_thread(method: Callable[Concatenate[Owner, P], R]) -> Callable[Concatenate[Owner, P], R]:
    """Runs a method without gradients, and refuses a call that comes while another thread's is not over."""

    @functools.wraps(method)
    def call(self: Owner, *args: P.args, **kwargs: P.kwargs) -> R:
        # setdefault is atomic
        mine = threading.get_ident()
        if self.__dict__.setdefault("_thread", mine) != mine:
            raise UserError(
                f"{method.__name__}() was called while another thread was using this policy; give each thread a policy "
                "of its own (PARPolicy(policy.checkpoint, ...) shares the weights), or hold a lock around its calls"
            )
        try:
            with torch.no_grad():
                return method(self, *args, **kwargs)
        finally:
            self.__dict__.pop("_thread", None)

    return call


class ChunkPolicy(abc.ABC, Generic[State]):
    """Plans a chunk from each frame that it looks at and executes it, in one or many environments."""

    def __init__(
        self, transforms: Transforms, encoder: FrameEncoder, device: torch.device, execute: int, seed: int = 0
    ) -> None:
        self.transforms, self.encoder, self.device, self.execute = transforms, encoder, device, execute
        self.action_size = transforms.action_size
        self._seed = checked_seed(seed)
        self._state: State | None = None

    def check(self, target: TaskSpec | gym.Env, track: str = "paper") -> None:
        """Compares the checkpoint's conventions with a task, as ``track`` shows it, or with a ManiSkill environment."""
        if isinstance(target, TaskSpec):
            check_task(self.transforms, target, track)
        else:
            check_environment(self.transforms, target)

    @property
    def needs_frame(self) -> bool:
        """Whether the next :meth:`act` looks at the camera; False while it only pops planned actions."""
        return self._state is None or bool((self._state.used >= self.execute).any())

    @one_thread
    def reset(self, env_idx: Tensor | Sequence[int] | int | None = None, seed: int | None = None) -> None:
        """Forgets the episodes of some rows, or of all; ``seed`` decides what they draw from now on.

        Raises:
            UserError: rows that do not exist, or no seed; nothing has changed then.
        """
        self._forget(self._rows(env_idx), seed)

    @one_thread
    def act(self, obs: dict[str, Any]) -> Tensor:
        """The next action of every environment.

        Args:
            obs: a ManiSkill observation. The camera's image may be missing while :attr:`needs_frame` is False.

        Returns:
            (B, A) float32 in the controller's units, on the observation's device; for an unbatched numpy observation
            (1, A) on the CPU.
        """
        measured = proprioception(obs, self.transforms)
        self._state = state = self._episodes(len(measured))
        rows = (state.used >= self.execute).nonzero()[:, 0]
        if len(rows):
            self._read(state, obs, measured.to(self.device), rows)
        action = state.queue[torch.arange(len(state.used), device=self.device), state.used]
        state.used += 1
        return action.to(measured.device)

    @abc.abstractmethod
    def _begin(self, batch: int) -> State:
        """Episodes before their first frame."""

    @abc.abstractmethod
    def _plan(self, state: State, frames: Frames, positions: Tensor, rows: Tensor) -> None:
        """Reads one frame of some rows and plans their next chunks; no other row changes.

        Args:
            state: of all rows.
            frames: those of the rows.
            positions: (k, P) proprioception measured with them, radians for joints.
            rows: (k,) int64, ascending.
        """

    def _episodes(self, batch: int) -> State:
        """The episodes so far, or new ones."""
        if self._state is None:
            return self._begin(batch)
        if len(self._state.used) != batch:
            raise UserError(
                f"the observation has {batch} environments, the last one had {len(self._state.used)}; call reset() "
                "when the number changes"
            )
        return self._state

    def _read(self, state: State, obs: dict[str, Any], positions: Tensor, rows: Tensor) -> None:
        """Looks at the frames of ``rows`` (k,) and plans; ``positions`` (B, P) are those of all rows."""
        self._plan(state, self._frames(obs, len(positions), rows), positions[rows], rows)

    def _frames(self, obs: dict[str, Any], batch: int, rows: Tensor) -> Frames:
        """The frames of ``rows`` (k,)."""
        images = camera_images(obs, self.transforms.camera, batch)[rows.to("cpu")]
        frames = self.transforms.frames(images).to(self.device)
        with user_errors():
            return Frames(frames, self.encoder.encode(frames))

    def _rows(self, env_idx: Any, count: int | None = None) -> Tensor | None:
        """Rows (k,) int64 that ``env_idx`` names, None: all; ``count``: environments that are known before a frame."""
        count = count if self._state is None else len(self._state.used)
        return None if env_idx is None else chosen_rows(env_idx, count, self.device)

    def _forget(self, rows: Tensor | None, seed: int | None) -> None:
        """Ends the episodes of ``rows``, None: of all; with no ``seed`` their randomness goes on from where it is."""
        state = self._state
        if seed is not None:
            self._seed = seed = checked_seed(seed)
        elif state is not None and rows is None:
            self._seed = int(integers(0, 2**31, (), "cpu", state.generators[0]))
        if rows is None or state is None:
            self._state = None
            return
        state.used[rows] = self.execute
        if seed is not None:
            for row in rows.tolist():
                state.generators[row] = row_generator(seed, row)
