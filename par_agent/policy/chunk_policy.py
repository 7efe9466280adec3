"""What every policy that executes chunks of actions does: it counts them, looks when they are used up, forgets rows."""

from __future__ import annotations

import abc
import functools
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from par_agent.errors import UserError, user_errors
from par_agent.modeling.random_numbers import integers, seeded_generator
from par_agent.modeling.vae.frame_encoder import FrameEncoder
from par_agent.policy.flat_observations import FlatLayout, flat_layout, restored_observation
from par_agent.policy.frames import Frames
from par_agent.policy.observations import as_tensor, check_environment, check_task, proprioception, read_frames
from par_agent.policy.transforms import Transforms
from par_agent.tasks import TaskSpec

if TYPE_CHECKING:
    import gymnasium as gym


@dataclass
class Episodes:
    """What a policy remembers of its environments, one row each."""

    queue: Tensor
    """(B, n, A) planned actions in the controller's units."""
    used: Tensor
    """(B,) int64 actions of the queue that were executed; a row that has used all it executes plans again."""
    chunk: Tensor
    """(B, L, A) normalised chunk planned last."""
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
        self, transforms: Transforms, encoder: FrameEncoder, device: torch.device, n_action_steps: int, seed: int = 0
    ) -> None:
        self.transforms, self.encoder, self.device, self.n_action_steps = transforms, encoder, device, n_action_steps
        self.action_size = transforms.action_size
        self._seed = _checked_seed(seed)
        self._state: State | None = None
        self._layout: FlatLayout | None = None

    def check(self, target: TaskSpec | gym.Env, track: str = "paper") -> None:
        """Compares the checkpoint's conventions with a task, as ``track`` shows it, or with a ManiSkill environment.

        The environment may be wrapped, or be one of Gymnasium's vector environments. Where its observations are
        flattened (``FlattenRGBDObservationWrapper``), the policy learns how. A policy that was given no instruction
        takes the task's, in a vector environment of several tasks each row its own.
        """
        tasks: list[TaskSpec | None]
        if isinstance(target, TaskSpec):
            tasks = [target]
            check_task(self.transforms, target, track)
        else:
            tasks = check_environment(self.transforms, target)
            self._layout = flat_layout(target)
        told = tuple(task.instruction for task in tasks if task is not None and task.instruction)
        if len(told) == len(tasks):
            self.offer_instruction(told[0] if len({*told}) == 1 else told)

    def offer_instruction(self, instruction: str | Sequence[str]) -> None:
        """Tells what the environment is about, or each row's; a policy that was given no instruction takes it."""

    @property
    def needs_frame(self) -> bool:
        """Whether the next :meth:`act` looks at the camera; False while it only pops planned actions."""
        return self._state is None or bool((self._state.used >= self.n_action_steps).any())

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
        measured = self._positions(obs)
        self._state = state = self._episodes(len(measured))
        rows = (state.used >= self.n_action_steps).nonzero()[:, 0]
        if len(rows):
            self._read(state, obs, measured.to(self.device), rows)
        action = state.queue[torch.arange(len(state.used), device=self.device), state.used]
        state.used += 1
        return action.to(measured.device)

    @one_thread
    def get_action(self, obs: dict[str, Any]) -> Tensor:
        """Plans anew in every environment; the actions of the chunks that are executed before the next look.

        This is for loops that execute whole chunks themselves, as those of ManiSkill's Diffusion Policy do. They call
        this with the observation after the chunk's last action, and :meth:`reset` when episodes end, instead of
        :meth:`act`.

        Args:
            obs: a ManiSkill observation with the camera's image.

        Returns:
            (B, L, A) float32 in the controller's units, on the observation's device; ``L`` is ``n_action_steps``.
        """
        measured = self._positions(obs)
        self._state = state = self._episodes(len(measured))
        self._read(state, obs, measured.to(self.device), torch.arange(len(measured), device=self.device))
        state.used[:] = self.n_action_steps
        return state.queue[:, : self.n_action_steps].to(measured.device, copy=True)

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

    def _generators(self, batch: int) -> list[torch.Generator]:
        """A source of randomness for each row."""
        return [_generator(self._seed, row) for row in range(batch)]

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

    def _positions(self, obs: dict[str, Any]) -> Tensor:
        """(B, P) proprioception, on the observation's device."""
        return proprioception(restored_observation(obs, self._layout), self.transforms)

    def _read(self, state: State, obs: dict[str, Any], positions: Tensor, rows: Tensor) -> None:
        """Looks at the frames of ``rows`` (k,) and plans; ``positions`` (B, P) are those of all rows."""
        self._plan(state, self._frames(obs, len(positions), rows), positions[rows], rows)

    def _frames(self, obs: dict[str, Any], batch: int, rows: Tensor) -> Frames:
        """The frames of ``rows`` (k,)."""
        shown = restored_observation(obs, self._layout)
        frames = read_frames(shown, self.transforms, batch, rows).to(self.device)
        with user_errors():
            return Frames(frames, self.encoder.encode(frames))

    def _rows(self, env_idx: Any, count: int | None = None) -> Tensor | None:
        """Rows (k,) int64 that ``env_idx`` names, None: all; ``count``: environments that are known before a frame."""
        count = count if self._state is None else len(self._state.used)
        return None if env_idx is None else _chosen_rows(env_idx, count, self.device)

    def _forget(self, rows: Tensor | None, seed: int | None) -> None:
        """Ends the episodes of ``rows``, None: of all; with no ``seed`` their randomness goes on from where it is."""
        state = self._state
        if seed is not None:
            self._seed = seed = _checked_seed(seed)
        elif state is not None and rows is None:
            self._seed = int(integers(0, 2**31, (), "cpu", state.generators[0]))
        if rows is None or state is None:
            self._state = None
            return
        state.used[rows] = self.n_action_steps
        if seed is not None:
            for row in rows.tolist():
                state.generators[row] = _generator(seed, row)


def _generator(seed: int, row: int) -> torch.Generator:
    """Each row has its own, so that it acts the same in any batch."""
    mixed = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0]
    return seeded_generator(int(mixed) >> 1)


def _checked_seed(seed: Any) -> int:
    """The seed as a number."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise UserError(f"seed is {seed!r}; it must be a whole number, 0 or more")
    return number


def _chosen_rows(env_idx: Tensor | Sequence[int] | int, count: int | None, device: torch.device) -> Tensor:
    """Rows (n,) int64 that ``env_idx``, numbers or a mask (count,) bool, names of ``count`` environments; None: of an
    unknown number."""
    rows = as_tensor(env_idx, "env_idx")
    known = "" if count is None else f"; there are {count} environments"
    if rows.dtype == torch.bool:
        if rows.ndim != 1 or (count is not None and len(rows) != count):
            raise UserError(f"env_idx is a mask of shape {tuple(rows.shape)}; expected one bool per environment{known}")
        return rows.nonzero()[:, 0].to(device)
    if rows.shape == (0,):
        return torch.zeros(0, dtype=torch.long, device=device)
    if rows.ndim > 1 or rows.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise UserError(
            f"env_idx is {rows.dtype} of shape {tuple(rows.shape)}; expected row numbers, as int64 in one dimension, "
            "or a mask with one bool per environment (done flags of another type: flags > 0)"
        )
    rows = rows.reshape(-1).long()
    if len(rows.unique()) < len(rows):
        raise UserError(
            f"env_idx {rows.tolist()} names a row twice; if these are done flags, give them as bool: flags > 0"
        )
    if int(rows.min()) < 0 or (count is not None and int(rows.max()) >= count):
        raise UserError(f"env_idx {rows.tolist()} names rows that do not exist{known}")
    return rows.to(device)
