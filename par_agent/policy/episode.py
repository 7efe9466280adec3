"""A batch of episodes as PAR lives them: read a frame, plan a chunk (paper section 4.2.6), or imagine both.

Letters: B environments, L actions a chunk, A numbers per action, P joint positions, F frame tokens, D width, H x W
pixels a frame, C latent channels of h x w.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from par_agent.errors import UserError, user_errors
from par_agent.modeling.config import GenerationConfig
from par_agent.modeling.par import PARStream, PhysicalTokens
from par_agent.modeling.random_numbers import copied_generator, integers, normal_rows, orders, seeded_generator
from par_agent.policy.checkpoint import Checkpoint, InferenceConfig
from par_agent.policy.observations import as_tensor
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


@dataclass
class EpisodeState:
    """What a policy remembers of its environments, one row each."""

    stream: PARStream
    """The model's past."""
    queue: Tensor
    """(B, L, A) planned actions in the controller's units."""
    used: Tensor
    """(B,) int64 actions of the queue that were executed; when all that count are, the row plans again."""
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

    def copy(self) -> EpisodeState:
        """An equal state that goes its own way."""
        cache = self.stream.cache.take(torch.arange(len(self.used), device=self.used.device))
        tensors = {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}
        generators = [copied_generator(generator) for generator in self.generators]
        return dataclasses.replace(self, stream=PARStream(cache, self.stream.prefix), generators=generators, **tensors)


class RowNoise:
    """Noise of frame generation, every row from its own generator."""

    def __init__(self, generators: list[torch.Generator], device: torch.device) -> None:
        self._generators, self._device = generators, device

    def start(self, shape: tuple[int, ...]) -> Tensor:
        return normal_rows(shape[1:], self._generators, self._device)

    step = start

    def order(self, batch: int, patches: int) -> Tensor:
        rows = [orders(1, patches, "cpu", generator) for generator in self._generators]
        return moved(torch.cat(rows), self._device)


def begin(checkpoint: Checkpoint, inference: InferenceConfig, features: list[Tensor], seed: int) -> EpisodeState:
    """Episodes before their first frame; ``features``: (length, text_dim) of each row's instruction."""
    config, batch, device = checkpoint.model.config, len(features), features[0].device
    action, width = config.action, config.nova.video_encoder.width

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, *shape, dtype=torch.float32, device=device)

    return EpisodeState(
        stream=checkpoint.model.start(features, inference.context),
        queue=zeros(action.chunk_length, action.action_size),
        used=torch.full((batch,), inference.execute or action.chunk_length, device=device),
        chunk=zeros(action.chunk_length, action.action_size),
        positions=zeros(action.proprioception_size),
        z_frame=zeros(checkpoint.model.frame_tokens, width).to(checkpoint.model.nova.dtype),
        fresh=torch.ones(batch, dtype=torch.bool, device=device),
        generators=[row_generator(seed, row) for row in range(batch)],
    )


def forget(
    checkpoint: Checkpoint,
    inference: InferenceConfig,
    state: EpisodeState,
    rows: Tensor,
    features: list[Tensor] | None,
) -> None:
    """Begins the episodes of some rows anew.

    Args:
        checkpoint: the model and its conventions.
        inference: how to act.
        state: the episodes.
        rows: (k,) int64.
        features: (length, text_dim) of each of these rows' new instruction; None: they keep theirs.
    """
    state.stream.cache.reset(rows)
    state.used[rows] = inference.execute or checkpoint.model.config.action.chunk_length
    state.fresh[rows] = True
    if features:
        part = checkpoint.model.start(features, inference.context)
        state.stream.cache.put(rows, part.cache)
        prefix = state.stream.prefix.clone()  # copies of the state share it
        prefix[rows] = part.prefix
        state.stream.prefix = prefix


def next_inputs(
    transforms: Transforms,
    inference: InferenceConfig,
    state: EpisodeState,
    latents: Tensor,
    positions: Tensor,
    rows: Tensor,
) -> PhysicalTokens:
    """The physical tokens that the model reads next; see :func:`plan_chunks` for the arguments."""
    known = ~state.fresh[rows] if inference.past_actions else torch.zeros_like(state.fresh[rows])
    return PhysicalTokens(
        latents[:, None],
        transforms.normalise_proprioception(positions)[:, None],
        state.chunk[rows][:, None],
        known[:, None],
    )


def plan_chunks(
    checkpoint: Checkpoint,
    inference: InferenceConfig,
    state: EpisodeState,
    latents: Tensor,
    positions: Tensor,
    rows: Tensor,
) -> None:
    """Reads one frame of some rows and plans their next chunks; no other row changes.

    Args:
        checkpoint: the model and its conventions.
        inference: how to act.
        state: the episodes.
        latents: (k, C, h, w) scaled latents of the rows' frames.
        positions: (k, P) joint positions measured with them, radians.
        rows: (k,) int64, ascending.

    Raises:
        UserError: the model gives an action that is not finite; nothing is planned then.
    """
    transforms, model = checkpoint.transforms, checkpoint.model
    assert transforms is not None
    inputs = next_inputs(transforms, inference, state, latents, positions, rows)
    z_frame, z_action = model.step(state.stream, inputs, rows)
    action = model.config.action
    start = torch.zeros(len(rows), action.targets, action.action_size, device=latents.device)
    if inference.random_start:
        start = normal_rows(start.shape[1:], [state.generators[row] for row in rows.tolist()], latents.device)
    with user_errors():
        chunks = model.sample_actions(z_action, start, inference.denoising_steps)
    planned = transforms.denormalise_actions(chunks, positions)
    if bad := rows[~planned.isfinite().flatten(1).all(1)].tolist():
        raise UserError(
            f"the model gives actions that are not finite in environments {bad}; look at their observations (qpos "
            f"{positions[torch.isin(rows, rows.new_tensor(bad))].tolist()}), then call reset(env_idx={bad})"
        )
    state.chunk[rows] = chunks
    state.queue[rows] = planned
    state.positions[rows] = positions
    state.z_frame[rows] = z_frame
    state.used[rows] = 0
    state.fresh[rows] = False


def next_frames(checkpoint: Checkpoint, state: EpisodeState, config: GenerationConfig | None = None) -> Tensor:
    """Draws scaled latents (B, C, h, w) of the frames after the planned chunks; the rows' generators move on.

    Raises:
        UserError: the model predicts no frames, or guidance was asked for.
    """
    noise = RowNoise(state.generators, state.z_frame.device)
    with user_errors():
        return checkpoint.model.sample_frame(state.z_frame, noise, config)


def imagine(
    checkpoint: Checkpoint,
    inference: InferenceConfig,
    state: EpisodeState,
    steps: int,
    config: GenerationConfig | None = None,
) -> Imagination:
    """Rolls the model forward on its own predictions; ``state`` stays as it is.

    A step executes the whole planned chunk: the predicted frame becomes the next one read, and the commanded joint
    positions become the measured ones (joints without a target of their own, the fingers, stay where they were).

    Args:
        checkpoint: the model and its conventions.
        inference: how to act.
        state: episodes that have planned a chunk.
        steps: chunks to imagine.
        config: how frames are drawn.

    Raises:
        UserError: fewer than 1 step, a row that has seen no frame, or a model that predicts none.
    """
    if steps < 1:
        raise UserError(f"{steps} steps were to be imagined; it must be at least 1")
    if bool(state.fresh.any()):
        unseen = state.fresh.nonzero()[:, 0].tolist()
        raise UserError(f"environments {unseen} have seen no frame since their reset; call act() or plan() first")
    assert checkpoint.transforms is not None
    state = state.copy()
    rows = torch.arange(len(state.used), device=state.used.device)
    frames, chunks = [], []
    for number in range(steps):
        latents = next_frames(checkpoint, state, config)
        frames.append(checkpoint.encoder.decode(latents))
        chunks.append(state.queue.clone())
        if number + 1 < steps:
            positions = checkpoint.transforms.commanded_positions(state.queue, state.positions)
            plan_chunks(checkpoint, inference, state, latents, positions, rows)
    return Imagination(torch.stack(frames, 1), torch.stack(chunks, 1))


def checked_seed(seed: Any) -> int:
    """The seed as a number.

    Raises:
        UserError: it is no whole number of at least 0.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise UserError(f"seed is {seed!r}; it must be a whole number, 0 or more")
    return number


def row_generator(seed: int, row: int) -> torch.Generator:
    """Each row draws from its own stream, so that a batch plays like its rows alone."""
    mixed = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)[0]
    return seeded_generator(int(mixed) >> 1)


def next_seed(generators: list[torch.Generator]) -> int:
    """A seed for the episodes that follow these rows' without one of their own."""
    return int(integers(0, 2**31, (), "cpu", generators[0]))


def reseed(generators: list[torch.Generator], rows: Tensor, seed: int | None) -> None:
    """Gives the rows (n,) int64 the streams of another seed; None: theirs go on."""
    if seed is not None:
        for row in rows.tolist():
            generators[row] = row_generator(seed, row)


def chosen_rows(env_idx: Tensor | Sequence[int] | int, count: int | None, device: torch.device) -> Tensor:
    """Rows (n,) int64 that ``env_idx`` names.

    Args:
        env_idx: row numbers, each once, or a mask (count,) bool. Whole numbers are always row numbers; ``uint8``
            and floats are neither: done flags are given as bool.
        count: environments; None: not known yet, so that numbers are not compared with it.
        device: where the rows are wanted.

    Raises:
        UserError: something else, a row that does not exist or is named twice, or a mask of another length.
    """
    rows = as_tensor(env_idx, "env_idx")
    known = "" if count is None else f"; there are {count} environments"
    if rows.dtype == torch.bool:
        if rows.ndim != 1 or (count is not None and len(rows) != count):
            raise UserError(f"env_idx is a mask of shape {tuple(rows.shape)}; expected one bool per environment{known}")
        return rows.nonzero()[:, 0].to(device)
    if rows.shape == (0,):
        return torch.zeros(0, dtype=torch.long, device=device)
    if rows.ndim > 1 or rows.dtype not in _ROW_NUMBERS:
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


_ROW_NUMBERS = (torch.int8, torch.int16, torch.int32, torch.int64)
