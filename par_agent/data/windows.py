"""Training windows: consecutive chunk boundaries of rendered episodes, with the chunks before and after each.

Letters: K usable chunk boundaries of an episode, N steps a window, B windows a batch, L actions a chunk, T with
foresight, A numbers per action, P joint positions, C latent channels of h x w.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.statistics import RunningStatistics
from par_agent.errors import UserError
from par_agent.transforms import Transforms

HELD_OUT = 20
"""One episode in this many is kept for validation."""
GRIPPER = -1
"""Index of the gripper in an action; every other number is relative to the joint position of its index."""
STD_FLOOR = 1e-3
"""Smallest standard deviation, radians, that is divided by."""


@dataclass(frozen=True)
class Windows:
    """A batch of windows; joint positions in radians, actions in the controller's units."""

    latents: Tensor
    """(B, N, C, h, w) float32 frames at the chunk boundaries."""
    next_latents: Tensor
    """(B, N, C, h, w) float32 frames at the next boundaries, or at the episode's end."""
    positions: Tensor
    """(B, N, P) float32 joint positions at the boundaries."""
    before: Tensor
    """(B, N, L, A) float32 chunk executed before each boundary."""
    before_positions: Tensor
    """(B, N, P) float32 joint positions when that chunk began."""
    before_known: Tensor
    """(B, N) bool; False at an episode's start."""
    after: Tensor
    """(B, N, T, A) float32 chunk executed after each boundary, then the actions of the foresight; the episode's last
    action repeats past its end."""
    weights: Tensor
    """(B, N, T) float32, 0 in padding steps and for the chunk's actions past the episode's end; foresight sees the
    end as where the robot stays."""
    steps: Tensor
    """(B, N) int64 number of each boundary in its episode."""
    instructions: tuple[str, ...]
    """(B) language instructions."""
    episodes: tuple[str, ...]
    """(B) file names, to name what a faulty batch was made of."""


class EpisodeIndex:
    """Joint positions and chunks of all episodes of a dataset, in memory; frames stay on disk.

    Args:
        dataset: rendered demonstrations.
        chunk_length: actions a chunk, ``L``.
        foresight: control steps past the chunk, counted from its start, whose actions follow the chunk's.

    Raises:
        UserError: the dataset has no actions, or its frames do not lie at chunk boundaries of this length.
    """

    def __init__(self, dataset: RenderedDataset, chunk_length: int, foresight: tuple[int, ...] = ()) -> None:
        stride, phase = int(dataset.spec["stride"]), int(dataset.spec["phase"])
        if not dataset.has_actions:
            raise UserError(f"{dataset.folder} holds no actions (random motion); policies train on demonstrations")
        if chunk_length % stride:
            raise UserError(
                f"{dataset.folder} has a frame every {stride} control steps; the model's chunks are {chunk_length} "
                f"actions long, which is not a multiple: render it again with --stride {chunk_length}"
            )
        self.dataset, self.hop = dataset, chunk_length // stride
        self.boundaries: list[int] = []
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        ahead = np.array([*range(chunk_length), *foresight])
        row = 0
        self.instructions: list[str] = []
        for path in dataset.paths:
            episode = read_episode(path, frames=False)
            assert episode.actions is not None
            steps, total = episode.frame_steps, len(episode.actions)
            usable = int(np.sum((steps < total) & ((steps - phase) % stride == 0)))
            chunks = _chunks(episode.proprioception, episode.actions, steps[:usable], chunk_length, ahead)
            chunks["row"] = np.arange(row, row + usable)
            chunks["next_row"] = row + np.minimum(np.arange(usable) + self.hop, len(steps) - 1)
            for name in _COLUMNS:
                columns[name].append(chunks[name])
            row += len(steps)
            self.boundaries.append(usable)
            self.instructions.append(str(episode.attributes["instruction"]))
        self.columns = {name: np.concatenate(parts) for name, parts in columns.items()}
        self.offsets = np.concatenate([[0], np.cumsum(self.boundaries)])

    def split(self) -> tuple[list[int], list[int]]:
        """Episode numbers for training and for validation (one in :data:`HELD_OUT`)."""
        numbers = list(range(len(self.dataset)))
        train = [number for number in numbers if number % HELD_OUT]
        return train or numbers, numbers[::HELD_OUT]


_COLUMNS = ("row", "next_row", "positions", "before", "before_positions", "before_known", "after", "valid")


def _chunks(
    positions: np.ndarray, actions: np.ndarray, steps: np.ndarray, length: int, offsets: np.ndarray
) -> dict[str, np.ndarray]:
    """Per chunk boundary of one episode: joint positions and the chunks around it; ``offsets`` are the targets'."""
    ahead = steps[:, None] + offsets
    behind = steps[:, None] + np.arange(-length, 0)
    return {
        "positions": positions[steps],
        "before": actions[np.maximum(behind, 0)],
        "before_positions": positions[np.maximum(steps - length, 0)],
        "before_known": steps >= length,
        "after": actions[np.minimum(ahead, len(actions) - 1)],
        "valid": ((ahead < len(actions)) | (offsets >= length)).astype(np.float32),
    }


class WindowSampler:
    """Random windows of one dataset, every episode once an epoch, in an order fixed by the seed.

    An episode of K boundaries is cut into ``ceil(K / N)`` windows whose starts are jittered, so that all boundaries,
    the first and the last included, are seen about equally often. Shorter episodes are padded.
    """

    def __init__(self, index: EpisodeIndex, latents: np.ndarray, episodes: list[int], window: int, seed: int) -> None:
        self.index, self.latents, self.window, self.seed = index, latents, window, seed
        pieces = [(e, j) for e in episodes for j in range(-(-index.boundaries[e] // (window * index.hop)))]
        self.pieces = np.array(pieces, dtype=np.int64)
        self._epoch, self._permutation = -1, np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pieces)

    def sample(self, first: int, count: int, *, augment: bool = True) -> Windows:
        """Windows number ``first`` to ``first + count - 1`` of the endless seeded stream."""
        parts = [self._window(number, augment) for number in range(first, first + count)]
        columns, rows, next_rows, variants, names, instructions = zip(*parts, strict=True)
        stacked = {name: torch.from_numpy(np.stack([part[name] for part in columns])) for name in columns[0]}
        return Windows(
            latents=self._read(variants, rows),
            next_latents=self._read(variants, next_rows),
            instructions=tuple(instructions),
            episodes=tuple(names),
            **stacked,
        )

    def _read(self, variants: tuple[int, ...], rows: tuple[np.ndarray, ...]) -> Tensor:
        frames = [self.latents[variant, numbers] for variant, numbers in zip(variants, rows, strict=True)]
        return torch.from_numpy(np.stack(frames)).float()

    def _window(
        self, number: int, augment: bool
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, int, str, str]:
        epoch, place = divmod(number, len(self.pieces))
        order = self._order(epoch) if augment else np.arange(len(self.pieces))
        episode, piece = self.pieces[order[place]]
        generator = np.random.default_rng([self.seed, 1, number])
        index, size, hop = self.index, self.window, self.index.hop
        total, span = index.boundaries[episode], (self.window - 1) * hop + 1
        jitter = int(generator.integers(-(size * hop // 2), size * hop // 2 + 1)) if augment else 0
        start = int(np.clip(piece * size * hop + jitter, 0, max(0, total - span)))
        inside = start + np.arange(size) * hop
        padding = inside >= total
        numbers = index.offsets[episode] + np.minimum(inside, total - 1)
        table = {name: values[numbers] for name, values in index.columns.items()}
        variant = int(generator.integers(self.latents.shape[0])) if augment else 0
        columns = {name: table[name] for name in ("positions", "before", "before_positions", "before_known", "after")}
        columns["weights"] = table["valid"] * ~padding[:, None]
        columns["steps"] = inside // hop
        path = index.dataset.paths[episode]
        name = f"{index.dataset.folder.name}/{path.name}"
        return columns, table["row"], table["next_row"], variant, name, index.instructions[episode]

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.pieces))
        return self._permutation


class MixedSampler:
    """Batches from several datasets in fixed proportions, reproducible from any step."""

    def __init__(self, samplers: list[WindowSampler], weights: list[float], batch_size: int) -> None:
        if len(weights) != len(samplers) or min(weights) <= 0:
            raise UserError(f"{len(samplers)} datasets need as many sampling weights above 0; got {weights}")
        self.samplers, self.batch_size = samplers, batch_size
        self._cumulative = np.concatenate([[0.0], np.cumsum(weights) / np.sum(weights)])
        self._cumulative[-1] = 1.0

    def batch(self, step: int) -> Windows:
        """The batch of an optimiser step."""
        first, last = self._drawn(step * self.batch_size), self._drawn((step + 1) * self.batch_size)
        parts = [
            sampler.sample(int(a), int(b - a))
            for sampler, a, b in zip(self.samplers, first, last, strict=True)
            if b > a
        ]
        return concatenate(parts)

    def _drawn(self, total: int) -> np.ndarray:
        """Windows drawn from each dataset after ``total`` in all."""
        return np.diff(np.floor(total * self._cumulative + 1e-9))


def concatenate(parts: list[Windows]) -> Windows:
    """Joins batches."""
    joined: dict[str, Any] = {}
    for name, first in vars(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        joined[name] = torch.cat(values) if isinstance(first, Tensor) else tuple(itertools.chain(*values))
    return Windows(**joined)


def fit_transforms(indices: list[EpisodeIndex], camera: str, image_size: tuple[int, int] | None) -> Transforms:
    """Conventions and statistics of datasets that share camera, crop and size.

    Raises:
        UserError: the datasets differ in crop, size, action size or joint positions.
    """
    specs = {(_tuple(index.dataset.spec["crop"]), _tuple(index.dataset.spec["size"])) for index in indices}
    shapes = {(index.columns["after"].shape[1:], index.columns["positions"].shape[1:]) for index in indices}
    if len(specs) > 1 or len(shapes) > 1:
        names = ", ".join(str(index.dataset.folder) for index in indices)
        raise UserError(f"{names} differ in crop, size, actions or joints; train on datasets rendered alike")
    crop, size = specs.pop()
    positions, actions = RunningStatistics(), RunningStatistics()
    action_size = indices[0].columns["after"].shape[2]
    relative = np.array([number != action_size + GRIPPER for number in range(action_size)])
    for index in indices:
        complete = index.columns["valid"].all(1)
        start = index.columns["positions"]
        positions.add(start)
        actions.add(index.columns["after"][complete] - (start[complete, :action_size] * relative)[:, None])
    proprioception, chunk = positions.result(), actions.result()
    return Transforms(
        camera=camera,
        image_size=image_size,
        crop=crop,
        size=size,
        relative=tuple(bool(value) for value in relative),
        proprioception_mean=_tuple(proprioception["mean"]),
        proprioception_std=_tuple(np.maximum(proprioception["std"], STD_FLOOR).tolist()),
        action_mean=_tuple(chunk["mean"]),
        action_std=_tuple(np.maximum(chunk["std"], STD_FLOOR).tolist()),
    )


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
