"""The state of a batch of episodes: it reads a frame and plans a chunk (paper section 4.2.6), or imagines both.

Letters: B environments, L actions a chunk, A numbers per action, P joint positions, F frame tokens, D width, H x W
pixels a frame, C latent channels of h x w.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from par_agent.errors import UserError, user_errors
from par_agent.modeling.config import GenerationConfig
from par_agent.modeling.par import PARStream, PhysicalTokens
from par_agent.modeling.random_numbers import copied_generator, normal_rows, orders
from par_agent.policy.checkpoint import Checkpoint, InferenceConfig
from par_agent.policy.rows import row_generator
from par_agent.policy.transforms import Transforms
from par_agent.utils.device import moved


class Plan(NamedTuple):
    """What a policy intends."""

    actions: Tensor
    """(B, L, A) float32 chunk in the controller's units."""
    frames: Tensor | None
    """(B, H, W, 3) uint8 predicted frames after the chunk, cropped and resized as the model sees them; None: not asked
    for."""


class Imagination(NamedTuple):
    """A rollout of the model on its own predictions."""

    frames: Tensor
    """(B, n, H, W, 3) uint8, cropped and resized as the model sees them."""
    actions: Tensor
    """(B, n, L, A) float32 in the controller's units; chunk ``k`` leads to frame ``k``."""


class RowNoise:
    """Noise of frame generation; every row draws from its own generator."""

    def __init__(self, generators: list[torch.Generator], device: torch.device) -> None:
        self._generators, self._device = generators, device

    def start(self, shape: tuple[int, ...]) -> Tensor:
        return normal_rows(shape[1:], self._generators, self._device)

    step = start

    def order(self, batch: int, patches: int) -> Tensor:
        rows = [orders(1, patches, "cpu", generator) for generator in self._generators]
        return moved(torch.cat(rows), self._device)


@dataclass
class EpisodeState:
    """What a policy remembers of its environments, one row each."""

    checkpoint: Checkpoint
    """The model and its conventions."""
    inference: InferenceConfig
    """How the policy acts."""
    stream: PARStream
    """The model's past."""
    queue: Tensor
    """(B, L, A) planned actions in the controller's units."""
    used: Tensor
    """(B,) int64 actions of the queue that were executed; a row that has used all it executes plans again."""
    chunk: Tensor
    """(B, L, A) normalised chunk planned last."""
    positions: Tensor
    """(B, P) joint positions measured with the frame read last, radians."""
    z_frame: Tensor
    """(B, F, D) conditions of the next frame."""
    fresh: Tensor
    """(B,) bool, True before a row's first plan."""
    generators: list[torch.Generator]
    """Source of each row's randomness."""

    @classmethod
    def start(
        cls, checkpoint: Checkpoint, inference: InferenceConfig, features: list[Tensor], seed: int
    ) -> EpisodeState:
        """Episodes before their first frame; ``features``: (length, text_dim) of each row's instruction."""
        config, batch, device = checkpoint.model.config, len(features), features[0].device
        action, width = config.action, config.nova.video_encoder.width

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, dtype=torch.float32, device=device)

        return cls(
            checkpoint,
            inference,
            stream=checkpoint.model.start(features, inference.context),
            queue=zeros(action.chunk_length, action.action_size),
            used=torch.full((batch,), inference.executed(action.chunk_length), device=device),
            chunk=zeros(action.chunk_length, action.action_size),
            positions=zeros(action.proprioception_size),
            z_frame=zeros(checkpoint.model.frame_tokens, width).to(checkpoint.model.nova.dtype),
            fresh=torch.ones(batch, dtype=torch.bool, device=device),
            generators=[row_generator(seed, row) for row in range(batch)],
        )

    def copy(self) -> EpisodeState:
        """An equal state that goes its own way."""
        cache = self.stream.cache.take(torch.arange(len(self.used), device=self.used.device))
        tensors: dict[str, Any] = {name: v.clone() for name, v in vars(self).items() if isinstance(v, Tensor)}
        generators = [copied_generator(generator) for generator in self.generators]
        return dataclasses.replace(self, stream=PARStream(cache, self.stream.prefix), generators=generators, **tensors)

    def reset(self, rows: Tensor, features: list[Tensor] | None) -> None:
        """Begins the episodes of ``rows`` (k,) int64 anew.

        ``features`` holds (length, text_dim) of each row's new instruction; None: the rows keep theirs.
        """
        model = self.checkpoint.model
        self.stream.cache.reset(rows)
        self.used[rows] = self.inference.executed(model.config.action.chunk_length)
        self.fresh[rows] = True
        if features:
            part = model.start(features, self.inference.context)
            self.stream.cache.put(rows, part.cache)
            prefix = self.stream.prefix.clone()  # copies of the state share it
            prefix[rows] = part.prefix
            self.stream.prefix = prefix

    def inputs(self, latents: Tensor, positions: Tensor, rows: Tensor) -> PhysicalTokens:
        """The physical tokens that the model reads next; see :meth:`plan` for the arguments."""
        known = ~self.fresh[rows] if self.inference.past_actions else torch.zeros_like(self.fresh[rows])
        proprioception = self._transforms.normalise_proprioception(positions)
        return PhysicalTokens(latents[:, None], proprioception[:, None], self.chunk[rows][:, None], known[:, None])

    def plan(self, latents: Tensor, positions: Tensor, rows: Tensor) -> None:
        """Reads one frame of some rows and plans their next chunks; no other row changes.

        Args:
            latents: (k, C, h, w) scaled latents of the rows' frames.
            positions: (k, P) joint positions measured with them, radians.
            rows: (k,) int64, ascending.

        Raises:
            UserError: the model gives an action that is not finite; nothing is planned then.
        """
        model, action = self.checkpoint.model, self.checkpoint.model.config.action
        z_frame, z_action = model.step(self.stream, self.inputs(latents, positions, rows), rows)
        start = torch.zeros(len(rows), action.targets, action.action_size, device=latents.device)
        if self.inference.random_start:
            start = normal_rows(start.shape[1:], [self.generators[row] for row in rows.tolist()], latents.device)
        with user_errors():
            chunks = model.sample_actions(z_action, start, self.inference.denoising_steps)
        planned = self._transforms.denormalise_actions(chunks, positions)
        if bad := rows[~planned.isfinite().flatten(1).all(1)].tolist():
            raise UserError(
                f"the model gives actions that are not finite in environments {bad}; look at their observations (qpos "
                f"{positions[torch.isin(rows, rows.new_tensor(bad))].tolist()}), then call reset(env_idx={bad})"
            )
        self.chunk[rows] = chunks
        self.queue[rows] = planned
        self.positions[rows] = positions
        self.z_frame[rows] = z_frame
        self.used[rows] = 0
        self.fresh[rows] = False

    def next_frames(self, config: GenerationConfig | None = None) -> Tensor:
        """Draws scaled latents (B, C, h, w) of the frames after the planned chunks; the rows' generators move on.

        Raises:
            UserError: the model predicts no frames, or guidance was asked for.
        """
        noise = RowNoise(self.generators, self.z_frame.device)
        with user_errors():
            return self.checkpoint.model.sample_frame(self.z_frame, noise, config)

    def imagine(self, steps: int, config: GenerationConfig | None = None) -> Imagination:
        """Rolls a copy of this state forward on the model's own predictions for ``steps`` chunks.

        A step executes the whole planned chunk. The predicted frame becomes the next one read, and the commanded joint
        positions become the measured ones; joints without a target of their own, the fingers, stay where they were.

        Raises:
            UserError: fewer than 1 step, a row that has seen no frame, or a model that predicts none.
        """
        if steps < 1:
            raise UserError(f"{steps} steps were to be imagined; it must be at least 1")
        if bool(self.fresh.any()):
            unseen = self.fresh.nonzero()[:, 0].tolist()
            raise UserError(f"environments {unseen} have seen no frame since their reset; call act() or plan() first")
        state = self.copy()
        rows = torch.arange(len(state.used), device=state.used.device)
        frames, chunks = [], []
        for number in range(steps):
            latents = state.next_frames(config)
            frames.append(self.checkpoint.encoder.decode(latents))
            chunks.append(state.queue.clone())
            if number + 1 < steps:
                state.plan(latents, self._transforms.commanded_positions(state.queue, state.positions), rows)
        return Imagination(torch.stack(frames, 1), torch.stack(chunks, 1))

    @property
    def _transforms(self) -> Transforms:
        assert self.checkpoint.transforms is not None, "a policy's checkpoint has transforms"
        return self.checkpoint.transforms
