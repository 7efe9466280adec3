"""`PARPolicy`: a trained PAR model as an agent for ManiSkill environments."""

from __future__ import annotations

import dataclasses
import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from par_agent.errors import UserError, user_errors
from par_agent.modeling.attention_maps import AttentionMaps, step_attention
from par_agent.modeling.config import GenerationConfig
from par_agent.policy.checkpoint import Checkpoint, InferenceConfig
from par_agent.policy.episode import EpisodeState, Imagination, Plan
from par_agent.policy.folders import checkpoint_folder
from par_agent.policy.instructions import Instructions
from par_agent.policy.observations import camera_images, check_environment, check_task, proprioception
from par_agent.policy.rows import checked_seed, chosen_rows, next_seed, reseed
from par_agent.tasks import TaskSpec
from par_agent.utils.device import usable_device, use_tf32

if TYPE_CHECKING:
    import gymnasium as gym

P = ParamSpec("P")
R = TypeVar("R")


def _one_thread(method: Callable[Concatenate[PARPolicy, P], R]) -> Callable[Concatenate[PARPolicy, P], R]:
    """Runs a method without gradients, and refuses a call that comes while another thread's is not over."""

    @functools.wraps(method)
    def call(self: PARPolicy, *args: P.args, **kwargs: P.kwargs) -> R:
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


class PARPolicy:
    """Acts in one or many ManiSkill environments; plans a chunk from each frame it looks at and executes it.

    Observations are ManiSkill's own (``obs["sensor_data"][camera]["rgb"]``, ``obs["agent"]["qpos"]`` and, where the
    checkpoint was trained with some, entries of ``obs["extra"]``), batched torch tensors or, from ``CPUGymWrapper``,
    unbatched numpy arrays. :func:`par_agent.make_env` makes an environment that shows what the checkpoint reads.

    A policy holds the state of its episodes and serves one thread at a time: a call that comes while another thread's
    is not over is refused.

    Args:
        checkpoint: the model and its conventions.
        instruction: what to do, in the words of training: one text, or one per environment, whose number it fixes.
        device: where the checkpoint has to be; None: not checked.
        seed: fixes the policy's randomness until a ``reset`` gives another; a whole number, 0 or more.
        **inference: fields of :class:`~par_agent.policy.checkpoint.InferenceConfig` in place of the checkpoint's.

    Raises:
        UserError: an unknown or impossible option, an instruction that is too long or holds no words, or a checkpoint
            that was not trained yet or is on another device.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        instruction: str | Sequence[str],
        *,
        device: torch.device | str | None = None,
        seed: int = 0,
        **inference: Any,
    ) -> None:
        known = [field.name for field in dataclasses.fields(InferenceConfig)]
        if unknown := sorted(set(inference) - set(known)):
            raise UserError(f"PARPolicy does not know the option {unknown[0]!r}; it knows {', '.join(known)}")
        if checkpoint.transforms is None:
            raise UserError(
                "this checkpoint cannot act yet: its action parts are random and nothing was fitted to data; train it "
                "with `par-agent finetune --init FOLDER`"
            )
        self.checkpoint, self.transforms = checkpoint, checkpoint.transforms
        self.inference = dataclasses.replace(checkpoint.inference, **inference)
        self.device = checkpoint.model.nova.device
        if device is not None and usable_device(device) != self.device:
            raise UserError(
                f"device is {str(device)!r}, but the checkpoint is on {self.device}: load it with "
                f"Checkpoint.load(folder, {str(device)!r})"
            )
        self.action_size = self.transforms.action_size
        length = checkpoint.model.config.action.chunk_length
        self.execute = self.inference.executed(length)
        if self.execute > length:
            raise UserError(f"execute is {self.execute}; this checkpoint plans chunks of {length} actions")
        if self.inference.past_actions and self.execute < length:
            raise UserError(
                f"execute is {self.execute} and past_actions is on: the model knows whole chunks of {length} actions "
                "that were executed; leave execute out, or give past_actions=False"
            )
        max_context = checkpoint.model.config.max_context
        if self.inference.context > max_context:
            raise UserError(
                f"context is {self.inference.context}; this checkpoint was trained on {max_context} physical tokens at "
                "most"
            )
        if self.transforms.image_size is None:
            warnings.warn(
                f"this checkpoint does not say how large the images of {self.transforms.camera} were that it was "
                "trained on, and images of another size would show it another part: compare yours with its training "
                'data, and write their height and width into policy.json ("image_size")',
                stacklevel=2,
            )
        self._instructions = Instructions.read(instruction, checkpoint.text_encoder, self.device)
        self._seed = checked_seed(seed)
        self._state: EpisodeState | None = None
        self._last_read: EpisodeState | None = None  # where imagining starts: after act() or plan()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "par-mini",
        instruction: str | Sequence[str] = "Push and move a cube to a goal region in front of it.",
        *,
        device: torch.device | str | None = "cpu",
        dtype: torch.dtype | str = "float32",
        seed: int = 0,
        **inference: Any,
    ) -> PARPolicy:
        """Loads a bundled checkpoint by name, or one from a folder.

        Args:
            name_or_folder: ``"par-mini"`` or a folder made by ``par-agent finetune`` or :meth:`save_pretrained`.
            instruction: what to do; :data:`par_agent.tasks.TASKS` has the tasks' own. See the class.
            device: ``"cpu"``, ``"cuda"``, …; None: torch's default device.
            dtype: what the model computes in; ``"float16"`` or ``"bfloat16"`` take half the memory, and on a GPU far
                less time for a model on NOVA's weights. ``"tf32"``: float32 whose factors a GPU rounds to 10 bits, from
                here on in the whole process.
            seed: see the class.
            **inference: see the class.

        Raises:
            UserError: no such checkpoint, or a damaged one.
        """
        if dtype == "tf32":
            use_tf32(True)
            dtype = "float32"
        return cls(
            Checkpoint.load(checkpoint_folder(name_or_folder), device, dtype), instruction, seed=seed, **inference
        )

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the checkpoint with this policy's way of acting as its default; ``dtype`` stores weights smaller."""
        dataclasses.replace(self.checkpoint, inference=self.inference).save(folder, dtype)

    def check(self, target: TaskSpec | gym.Env, track: str = "paper") -> None:
        """Compares the checkpoint's conventions with a task, as ``track`` shows it, or with a ManiSkill environment.

        Raises:
            UserError: another camera, image size, number of joints or controller.
        """
        if isinstance(target, TaskSpec):
            check_task(self.transforms, target, track)
        else:
            check_environment(self.transforms, target)

    @property
    def needs_frame(self) -> bool:
        """Whether the next :meth:`act` looks at the camera; False while it only pops planned actions."""
        return self._state is None or bool((self._state.used >= self.execute).any())

    @property
    def instruction(self) -> str | tuple[str, ...]:
        """One text for all environments, or one for each. Assigning it resets all episodes."""
        return self._instructions.texts[0] if self._instructions.for_all else self._instructions.texts

    @instruction.setter
    def instruction(self, instruction: str | Sequence[str]) -> None:
        self.reset(instruction=instruction)

    @_one_thread
    def reset(
        self,
        env_idx: Tensor | Sequence[int] | int | None = None,
        seed: int | None = None,
        instruction: str | Sequence[str] | None = None,
    ) -> None:
        """Forgets episodes.

        Args:
            env_idx: rows to forget: their numbers, each once, or a mask (B,) bool. Whole numbers are always row numbers
                ([0, 1] are rows 0 and 1), floats and ``uint8`` are refused: give done flags as bool. None: all rows,
                and the number of environments may change.
            seed: new seed of these rows' randomness, a whole number, 0 or more; None: it goes on from where it is.
            instruction: what these rows do from now on: one text, or one per row in their order; None: as before.

        Raises:
            UserError: a row that does not exist or is named twice, a mask of another length, another seed or
                instruction; nothing has changed then.
        """
        state, instructions = self._state, self._instructions
        count = instructions.count if state is None else len(state.used)
        rows = None if env_idx is None else chosen_rows(env_idx, count, self.device)
        if instruction is not None:
            new = Instructions.read(instruction, self.checkpoint.text_encoder, self.device)
            instructions = new if rows is None else instructions.with_rows(rows.tolist(), new, count)
        if seed is not None:
            self._seed = seed = checked_seed(seed)
        elif state is not None and rows is None:
            self._seed = next_seed(state.generators)
        self._instructions = instructions
        if rows is None or state is None:
            self._state = self._last_read = None
            return
        self._last_read = state
        features = None if instruction is None else [instructions.features[row] for row in rows.tolist()]
        state.reset(rows, features)
        reseed(state.generators, rows, seed)

    @_one_thread
    def act(self, obs: dict[str, Any]) -> Tensor:
        """The next action of every environment.

        Args:
            obs: a ManiSkill observation. The camera's image may be missing while :attr:`needs_frame` is False.

        Returns:
            (B, A) float32 in the controller's units, on the observation's device; for an unbatched numpy observation
            (1, A) on the CPU.

        Raises:
            UserError: a missing key, or a wrong shape or type, with what to change in the environment.
        """
        measured = proprioception(obs, self.transforms)
        positions = measured.to(self.device)
        self._state = state = self._state_for(len(positions))
        due = state.used >= self.execute
        if bool(due.any()):
            self._read(state, obs, positions, due)
        rows = torch.arange(len(state.used), device=self.device)
        action = state.queue[rows, state.used]
        state.used += 1
        return action.to(measured.device)

    @_one_thread
    def plan(self, obs: dict[str, Any], frames: bool = False, generation: GenerationConfig | None = None) -> Plan:
        """Plans the next chunk of every environment without changing what :meth:`act` does.

        Args:
            obs: a ManiSkill observation with the camera's image.
            frames: whether to predict the frames after the chunk as well, which costs far more than the chunk.
            generation: how frames are drawn, without guidance; None: in few steps.

        Returns:
            The chunk (B, L, A) float32 in the controller's units and the frames (B, H, W, 3) uint8 or None, on the
            policy's device.

        Raises:
            UserError: see :meth:`act`; or frames of a model that predicts none.
        """
        positions = proprioception(obs, self.transforms).to(self.device)
        state = self._state_for(len(positions)).copy()
        self._read(state, obs, positions, torch.ones_like(state.fresh))
        if not frames:
            return Plan(state.queue.clone(), None)
        # The noise comes from a copy's generators: imagining from this plan begins with the same frames.
        latents = state.copy().next_frames(generation)
        return Plan(state.queue.clone(), self.checkpoint.encoder.decode(latents))

    @_one_thread
    def imagine(self, n: int, generation: GenerationConfig | None = None) -> Imagination:
        """Rolls the model forward on its own predictions for ``n`` chunks, from the frame that :meth:`act` or
        :meth:`plan` read last; acting goes on as if nothing had been imagined.

        ``generation`` says how frames are drawn, without guidance; None: in few steps.

        Returns:
            Frames (B, n, H, W, 3) uint8 and chunks (B, n, L, A) float32 in the controller's units, on the policy's
            device; see :meth:`par_agent.policy.episode.EpisodeState.imagine`.

        Raises:
            UserError: nothing was read yet, ``n`` is below 1, or the model predicts no frames.
        """
        if self._last_read is None:
            raise UserError(
                "there is nothing to imagine from: no frame was read since reset(); call act() or plan() first"
            )
        return self._last_read.imagine(n, generation)

    @_one_thread
    def attention(self, obs: dict[str, Any]) -> AttentionMaps:
        """Where :meth:`act` would attend if it read this observation, with its image, and planned now; acting goes on
        unchanged.

        Raises:
            UserError: see :meth:`act`; or the model has no transformer (ablation PAR-NoAR).
        """
        positions = proprioception(obs, self.transforms).to(self.device)
        state = self._state_for(len(positions))
        rows = torch.arange(len(positions), device=self.device)
        inputs = state.inputs(self._latents(obs, len(positions), rows), positions, rows)
        with user_errors():
            return step_attention(self.checkpoint.model, state.stream, inputs)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _state_for(self, batch: int) -> EpisodeState:
        """The episodes so far, or new ones."""
        if self._state is None:
            features = self._instructions.for_rows(batch).features
            return EpisodeState.start(self.checkpoint, self.inference, list(features), self._seed)
        if len(self._state.used) != batch:
            raise UserError(
                f"the observation has {batch} environments, the last one had {len(self._state.used)}; call reset() "
                "when the number changes"
            )
        return self._state

    def _read(self, state: EpisodeState, obs: dict[str, Any], positions: Tensor, due: Tensor) -> None:
        """Reads the frame of the rows that are due (B,) bool, and plans their next chunk."""
        rows = due.nonzero()[:, 0]
        state.plan(self._latents(obs, len(positions), rows), positions[rows], rows)
        self._last_read = state

    def _latents(self, obs: dict[str, Any], batch: int, rows: Tensor) -> Tensor:
        """Latents (k, C, h, w) of the images of ``rows`` (k,)."""
        images = camera_images(obs, self.transforms.camera, batch)[rows.to("cpu")]
        frames = self.transforms.frames(images).to(self.device)
        with user_errors():
            return self.checkpoint.encoder.encode(frames)
