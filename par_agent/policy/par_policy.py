"""`PARPolicy`: a trained PAR model as an agent for ManiSkill environments."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from par_agent.errors import UserError, user_errors
from par_agent.modeling.attention_maps import AttentionMaps, step_attention
from par_agent.modeling.config import GenerationConfig, InferenceConfig, PARConfig
from par_agent.modeling.par import PARModel, PhysicalTokens
from par_agent.policy.checkpoint import Checkpoint
from par_agent.policy.chunk_policy import ChunkPolicy, one_thread
from par_agent.policy.episode import EpisodeState, Imagination, Plan, RowNoise
from par_agent.policy.frames import Frames, next_frames
from par_agent.policy.hub import CardFacts, push
from par_agent.policy.instructions import Instructions, Task, listed
from par_agent.utils.device import floating_type, usable_device, use_tf32


class PARPolicy(ChunkPolicy[EpisodeState]):
    """Acts in one or many ManiSkill environments; plans a chunk from each frame it looks at and executes it.

    Observations are ManiSkill's own (``obs["sensor_data"][camera]["rgb"]``, ``obs["agent"]["qpos"]`` and, where the
    checkpoint was trained with some, entries of ``obs["extra"]``), batched torch tensors or, from ``CPUGymWrapper``,
    unbatched numpy arrays. :func:`par_agent.make_env` makes an environment that shows what the checkpoint reads.

    :meth:`act` and :meth:`get_action` are those of :class:`~par_agent.policy.chunk_policy.ChunkPolicy`.
    A policy holds the state of its episodes and serves one thread at a time: a call that comes while another thread's
    is not over is refused.

    Args:
        checkpoint: the model and its conventions.
        instruction: what to do, in the words of training: one text, or one per environment, whose number it fixes.
            None: that of ``task``, or else of the environment that the policy is checked against, as
            :func:`par_agent.make_env` does; without any of these it does not act.
        task: stands for its instruction: a name such as ``"PickCube"``, a :class:`~par_agent.tasks.TaskSpec`, or one of
            these per environment.
        device: where the checkpoint has to be; None: not checked.
        seed: fixes the policy's randomness until a ``reset`` gives another; a whole number, 0 or more.
        **inference: fields of :class:`~par_agent.modeling.config.InferenceConfig` in place of the checkpoint's.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        instruction: str | Sequence[str] | None = None,
        *,
        task: Task | Sequence[Task] | None = None,
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
        self.checkpoint, self.inference = checkpoint, dataclasses.replace(checkpoint.inference, **inference)
        length = checkpoint.model.config.action.chunk_length
        n_action_steps = length if self.inference.n_action_steps is None else self.inference.n_action_steps
        super().__init__(checkpoint.transforms, checkpoint.encoder, checkpoint.model.nova.device, n_action_steps, seed)
        if device is not None and usable_device(device) != self.device:
            raise UserError(
                f"device is {str(device)!r}, but the checkpoint is on {self.device}: load it with "
                f"Checkpoint.load(folder, {str(device)!r})"
            )
        if n_action_steps > length:
            raise UserError(f"n_action_steps is {n_action_steps}; this checkpoint plans chunks of {length} actions")
        if self.inference.past_actions and n_action_steps < length:
            raise UserError(
                f"n_action_steps is {n_action_steps} and past_actions is on: the model knows whole chunks of {length} "
                "actions that were executed; leave n_action_steps out, or give past_actions=False"
            )
        max_context = checkpoint.model.config.max_context
        if self.inference.context > max_context:
            raise UserError(
                f"context is {self.inference.context}; this checkpoint was trained on {max_context} physical tokens at "
                "most"
            )
        if self.transforms.image_size is None:
            warnings.warn(
                f"this checkpoint does not say how large the images of {', '.join(self.transforms.cameras)} were that "
                "it was trained on, and images of another size would show it another part: compare yours with its "
                'training data, and write their height and width into policy.json ("image_size")',
                stacklevel=2,
            )
        self._instructions = self._given(instruction, task)
        self._from_environment = not self._instructions.texts
        self._last_read: EpisodeState | None = None  # where imagining starts: after act() or plan()

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "par-mini",
        instruction: str | Sequence[str] | None = None,
        *,
        task: Task | Sequence[Task] | None = None,
        device: torch.device | str | None = "cpu",
        dtype: torch.dtype | str = "float32",
        seed: int = 0,
        revision: str | None = None,
        **inference: Any,
    ) -> PARPolicy:
        """Loads a bundled checkpoint by name, one from a folder, or one from the Hugging Face Hub.

        Args:
            name_or_folder: ``"par-mini"``, a folder made by ``par-agent finetune`` or :meth:`save_pretrained`, or
                ``"org/name"`` or ``"org/name@revision"`` on the Hub, kept in its cache and read from there when it
                cannot be reached.
            instruction, task: what to do; see the class.
            device: ``"cpu"``, ``"cuda"``, …; None: torch's default device.
            dtype: what the model computes in; ``"float16"`` or ``"bfloat16"`` take half the memory, and on a GPU far
                less time for a model on NOVA's weights. ``"tf32"``: float32 whose factors a GPU rounds to 10 bits, from
                here on in the whole process.
            revision: branch, tag or commit on the Hub; None: its ``main``.
            seed, **inference: see the class.

        Raises:
            UserError: there is no such checkpoint, it is damaged, or an argument is wrong.
        """
        if dtype == "tf32":
            use_tf32(True)
            dtype = "float32"
        checkpoint = Checkpoint.load(name_or_folder, device, dtype, revision)
        return cls(checkpoint, instruction, task=task, seed=seed, **inference)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes the checkpoint with this policy's way of acting as its default; ``dtype`` stores weights smaller."""
        dataclasses.replace(self.checkpoint, inference=self.inference).save(folder, dtype)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        license: str | None = None,
        datasets: Sequence[str] = (),
        success: Mapping[str, float] | None = None,
    ) -> str:
        """Uploads what :meth:`save_pretrained` writes, and a model card, to the Hugging Face Hub.

        Args:
            name: ``"org/name"``; made if there is none.
            private: whether a new repository is private; None: as the organisation has it.
            revision: branch to commit to, made if there is none; None: ``main``.
            license, datasets, success: for the card, see :class:`~par_agent.policy.hub.CardFacts`.

        Returns:
            Address of the commit.
        """
        return push(self, name, CardFacts(license, datasets, success), private, revision)

    @property
    def model(self) -> PARModel:
        """The network."""
        return self.checkpoint.model

    @property
    def config(self) -> PARConfig:
        """The network's sizes."""
        return self.checkpoint.model.config

    def to(self, device: torch.device | str, dtype: torch.dtype | str | None = None) -> PARPolicy:
        """Moves the checkpoint, in place, and forgets all episodes; returns the policy.

        Other policies that share the checkpoint have to be moved too.

        Args:
            device: ``"cpu"``, ``"cuda"``, …
            dtype: see :meth:`from_pretrained`; None: as it is.
        """
        place, kind = usable_device(device), None if dtype is None else floating_type(dtype)
        self.checkpoint.model.to(place, kind)
        self.checkpoint.encoder.to(place, kind)
        self.device, self._state, self._last_read = self.checkpoint.model.nova.device, None, None
        self._instructions = self._instructions.to(self.device)
        return self

    def __repr__(self) -> str:
        transforms, told = self.transforms, self.instruction
        return (
            f"PARPolicy({self.config.name}, sees {', '.join(transforms.cameras)}, commands "
            f"{transforms.control_mode}, executes {self.n_action_steps} of {self.config.action.chunk_length} actions a "
            f"chunk, on {self.device}, instruction {told!r})"
        )

    @property
    def instruction(self) -> str | tuple[str, ...] | None:
        """One text for all environments, or one for each; None: none was given. Assigning it resets all episodes."""
        texts = self._instructions.texts
        return texts or None if self._instructions.count is not None else next(iter(texts), None)

    @instruction.setter
    def instruction(self, instruction: str | Sequence[str]) -> None:
        self.reset(instruction=instruction)

    def offer_instruction(self, instruction: str | Sequence[str]) -> None:
        if self._from_environment and self.instruction != instruction:
            self.reset(instruction=instruction)
            self._from_environment = True

    @one_thread
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
        rows = self._rows(env_idx, instructions.count)
        if instruction is not None:
            new = self._given(instruction)
            count = instructions.count if state is None else len(state.used)
            instructions = new if rows is None else instructions.with_rows(rows.tolist(), new, count)
        self._forget(rows, seed)
        self._instructions, self._last_read = instructions, self._state
        self._from_environment = self._from_environment and instruction is None
        if rows is None or state is None:
            return
        state.stream.cache.reset(rows)
        state.fresh[rows] = True
        if instruction is not None and len(rows):
            features = [instructions.features[row] for row in rows.tolist()]
            part = self.checkpoint.model.start(features, self.inference.context)
            state.stream.cache.put(rows, part.cache)
            prefix = state.stream.prefix.clone()  # copies of the state share it
            prefix[rows] = part.prefix
            state.stream.prefix = prefix

    @one_thread
    def plan(self, obs: dict[str, Any], frames: bool = False, generation: GenerationConfig | None = None) -> Plan:
        """Plans the next chunk of every environment without changing what :meth:`act` does.

        Args:
            obs: a ManiSkill observation with the camera's image.
            frames: whether to predict the frames after the chunk as well, which costs far more than the chunk.
            generation: how frames are drawn, without guidance; None: in few steps.
        """
        positions = self._positions(obs).to(self.device)
        state = self._episodes(len(positions)).copy()
        self._read(state, obs, positions, torch.arange(len(positions), device=self.device))
        if not frames:
            return Plan(state.queue.clone(), None)
        # The noise comes from a copy's generators: imagining from this plan begins with the same frames.
        return Plan(state.queue.clone(), self._next_frames(state.copy(), generation).pixels)

    @one_thread
    def imagine(self, n: int, generation: GenerationConfig | None = None) -> Imagination:
        """Rolls the model forward on its own predictions for ``n`` chunks, from the frame that :meth:`act` or
        :meth:`plan` read last; acting goes on as if nothing had been imagined.

        A step executes the whole planned chunk. The predicted frame becomes the next one read, and the commanded joint
        positions become the measured ones; joints without a target of their own, the fingers, stay where they were.
        ``generation`` says how frames are drawn, without guidance; None: in few steps.
        """
        if self._last_read is None:
            raise UserError(
                "there is nothing to imagine from: no frame was read since reset(); call act() or plan() first"
            )
        if n < 1:
            raise UserError(f"{n} steps were to be imagined; it must be at least 1")
        if bool(self._last_read.fresh.any()):
            unseen = self._last_read.fresh.nonzero()[:, 0].tolist()
            raise UserError(f"environments {unseen} have seen no frame since their reset; call act() or plan() first")
        state = self._last_read.copy()
        frames, chunks = [], []
        for number in range(n):
            predicted = self._next_frames(state, generation)
            frames.append(predicted.pixels)
            chunks.append(state.queue.clone())
            if number + 1 < n:
                commanded = self.transforms.commanded_positions(state.queue, state.positions)
                self._plan(state, predicted, commanded, torch.arange(len(state.used), device=self.device))
        return Imagination(torch.stack(frames, 1), torch.stack(chunks, 1))

    @one_thread
    def attention(self, obs: dict[str, Any]) -> AttentionMaps:
        """Where :meth:`act` would attend if it read this observation, with its image, and planned now; acting goes on
        unchanged. The ablation PAR-NoAR has no transformer, hence no maps."""
        positions = self._positions(obs).to(self.device)
        state, rows = self._episodes(len(positions)), torch.arange(len(positions), device=self.device)
        tokens = self._physical_tokens(state, self._frames(obs, len(positions), rows), positions, rows)
        with user_errors():
            return step_attention(self.checkpoint.model, state.stream, tokens)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _given(self, instruction: Any, task: Any = None) -> Instructions:
        checkpoint = self.checkpoint
        return Instructions.given(instruction, task, checkpoint.text_encoder, checkpoint.instructions, self.device)

    def _begin(self, batch: int) -> EpisodeState:
        if not self._instructions.texts:
            known = listed(self.checkpoint.instructions) or "instructions that it does not name"
            raise UserError(
                "this policy was given no instruction: give from_pretrained task=... or instruction=..., or assign "
                f"policy.instruction; it was trained with: {known}"
            )
        model, features = self.checkpoint.model, list(self._instructions.for_rows(batch).features)
        action, width = model.config.action, model.config.nova.video_encoder.width
        latent_size = model.config.nova.latent_size
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=self.device)
        return EpisodeState(
            queue=zeros(batch, action.chunk_length, action.action_size),
            used=torch.full((batch,), self.n_action_steps, device=self.device),
            chunk=zeros(batch, action.chunk_length, action.action_size),
            generators=self._generators(batch),
            stream=model.start(features, self.inference.context),
            pixels=zeros(batch, *(self.encoder.stride * size for size in latent_size), 3, dtype=torch.uint8),
            latents=zeros(batch, model.config.nova.latent_channels, *latent_size),
            positions=zeros(batch, action.proprioception_size),
            z_frame=zeros(batch, model.frame_tokens, width, dtype=model.nova.dtype),
            fresh=torch.ones(batch, dtype=torch.bool, device=self.device),
        )

    def _read(self, state: EpisodeState, obs: dict[str, Any], positions: Tensor, rows: Tensor) -> None:
        super()._read(state, obs, positions, rows)
        self._last_read = state

    def _physical_tokens(self, state: EpisodeState, frames: Frames, positions: Tensor, rows: Tensor) -> PhysicalTokens:
        """What the model reads next; arguments as :meth:`_plan` has them."""
        known = ~state.fresh[rows] if self.inference.past_actions else torch.zeros_like(state.fresh[rows])
        normalised = self.transforms.normalise_proprioception(positions)
        return PhysicalTokens(frames.latents[:, None], normalised[:, None], state.chunk[rows][:, None], known[:, None])

    def _plan(self, state: EpisodeState, frames: Frames, positions: Tensor, rows: Tensor) -> None:
        """Paper section 4.2.6; nothing is planned if the model gives an action that is not finite."""
        model, action = self.checkpoint.model, self.checkpoint.model.config.action
        tokens = self._physical_tokens(state, frames, positions, rows)
        z_frame, z_action = model.step(state.stream, tokens, rows)
        noise = torch.zeros(len(rows), action.targets, action.action_size, device=self.device)
        if self.inference.random_start:
            noise = RowNoise([state.generators[row] for row in rows.tolist()], self.device).start(noise.shape)
        with user_errors():
            chunks = model.sample_actions(
                z_action, noise, self.inference.denoising_steps, shift=self.inference.denoising_shift
            )
        planned = self.transforms.denormalise_actions(chunks, positions)
        if bad := rows[~planned.isfinite().flatten(1).all(1)].tolist():
            raise UserError(
                f"the model gives actions that are not finite in environments {bad}; look at their observations (qpos "
                f"{positions[torch.isin(rows, rows.new_tensor(bad))].tolist()}), then call reset(env_idx={bad})"
            )
        state.chunk[rows] = chunks
        state.queue[rows] = planned
        state.pixels[rows], state.latents[rows] = frames.pixels, frames.latents.float()
        state.positions[rows] = positions
        state.z_frame[rows] = z_frame
        state.used[rows] = 0
        state.fresh[rows] = False

    def _next_frames(self, state: EpisodeState, generation: GenerationConfig | None) -> Frames:
        """Draws the frames after the planned chunks; the rows' generators move on."""
        noise, last = RowNoise(state.generators, self.device), Frames(state.pixels, state.latents)
        with user_errors():
            return next_frames(self.checkpoint.model, self.encoder, state.z_frame, last, noise, generation)
