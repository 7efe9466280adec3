"""Training windows: consecutive chunk boundaries of rendered episodes, with the chunks before and after each.

Letters of shapes: see :mod:`par_agent.modeling`. A step is a chunk boundary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from par_agent.data.index import EpisodeIndex
from par_agent.data.latents import LatentSource
from par_agent.errors import UserError


@dataclass(frozen=True)
class Windows:
    """A batch of windows; joint positions in radians, extra observations in ManiSkill's units, actions in the
    controller's."""

    latents: Tensor
    """(B, N, C, h, w) float32 frames at the chunk boundaries."""
    next_latents: Tensor
    """(B, N, C, h, w) float32 frames at the next boundaries, or at the episode's end."""
    proprioception: Tensor
    """(B, N, P) float32 proprioception at the boundaries."""
    past_actions: Tensor
    """(B, N, L, A) float32 chunk executed before each boundary."""
    past_proprioception: Tensor
    """(B, N, P) float32 proprioception when that chunk began."""
    past_actions_known: Tensor
    """(B, N) bool; False at an episode's start."""
    target_actions: Tensor
    """(B, N, L + K, A) float32 chunk executed after each boundary, then the actions of the foresight; the episode's
    last action repeats past its end."""
    action_weights: Tensor
    """(B, N, L + K) float32, 0 in padding steps and for actions of the chunk past the episode's end; actions of the
    foresight count there, since the robot stays where it is."""
    steps: Tensor
    """(B, N) int64 number of each boundary in its episode."""
    context_length: Tensor
    """(B, N) int64 steps that a step may attend to: those of its episode in the window so far, itself included."""
    instructions: tuple[str, ...]
    """(B) language instructions, each in one of its episode's wordings."""
    episodes: tuple[str, ...]
    """(B) names of episode files, for messages; several of a packed window are joined by ``+``."""


class Piece(NamedTuple):
    """A part of a window: consecutive steps of one episode."""

    episode: int
    """Number in the index."""
    first: int
    """First step."""
    length: int
    """Steps."""


class _Read(NamedTuple):
    """Steps of one piece."""

    columns: dict[str, np.ndarray]
    """Name -> values (n, ...)."""
    stored: np.ndarray
    """The frames as the latent source read them."""
    frames: np.ndarray
    """(2, n) positions in ``stored`` of the frames at the boundaries and of the next ones."""


class WindowSampler:
    """Random windows of some episodes of a dataset, every episode once an epoch, in an order fixed by the seed.

    An episode of ``n`` steps, at least ``window``, is cut into ``ceil(n / window)`` windows whose starts are jittered,
    so that every step is seen. Those at its two ends are seen less often than the others. Shorter episodes, those of
    one instruction, are lined up in another order every epoch and the line is cut into windows; no step sees another
    episode (:attr:`Windows.context_length`).

    Raises:
        UserError: no episode has a chunk boundary, or ``window`` is below 1.
    """

    def __init__(self, index: EpisodeIndex, latents: LatentSource, episodes: list[int], window: int, seed: int) -> None:
        if window < 1:
            raise UserError(f"window is {window}; it must be at least 1 physical token")
        self.index, self.latents, self.window, self.seed = index, latents, window, seed
        self.episodes = len(episodes)
        """Episodes drawn from."""
        self._whole: list[list[Piece]] = []
        self._short: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        for episode in episodes:
            steps = -(-index.boundaries[episode] // index.chunk_stride)
            if steps >= window:
                self._whole += [[Piece(episode, first, window)] for first in range(0, steps, window)]
            elif steps:
                self._short.setdefault(index.instructions[episode], []).append((episode, steps))
        self._steps = window * len(self._whole) + sum(n for group in self._short.values() for _, n in group)
        self._count = len(self._whole) + sum(-(-sum(n for _, n in group) // window) for group in self._short.values())
        if not self._count:
            raise UserError(f"{index.dataset.folder}: no episode is long enough to hold a chunk boundary")
        self._epoch, self._windows = -1, list[list[Piece]]()

    def __len__(self) -> int:
        """Windows an epoch."""
        return self._count

    @property
    def padding(self) -> float:
        """Share of padding in the windows."""
        return 1 - self._steps / (self._count * self.window)

    def sample(self, first: int, count: int, *, augment: bool = True) -> Windows:
        """Windows number ``first`` to ``first + count - 1`` of the endless seeded stream."""
        packs = [self._read(number, augment) for number in range(first, first + count)]
        reads = [read for pack in packs for read in pack[1]]
        latents = self.latents.latents(np.concatenate([read.stored for read in reads]))
        frames, count_stored = [], 0
        for _, pack in packs:
            places = []
            for read in pack:
                places.append(count_stored + read.frames)
                count_stored += len(read.stored)
            frames.append(self._pad(np.concatenate(places, axis=1).T))
        shown = torch.from_numpy(np.stack(frames))
        columns = [self._join(pack) for _, pack in packs]
        folder, paths = self.index.dataset.folder, self.index.dataset.paths
        return Windows(
            latents=latents[shown[..., 0]],
            next_latents=latents[shown[..., 1]],
            **{name: torch.from_numpy(np.stack([part[name] for part in columns])) for name in columns[0]},
            instructions=tuple(
                self._wording(number, pieces[0].episode, augment) for number, (pieces, _) in enumerate(packs, first)
            ),
            episodes=tuple("+".join(f"{folder.name}/{paths[piece.episode].name}" for piece in p) for p, _ in packs),
        )

    def _read(self, number: int, augment: bool) -> tuple[list[Piece], list[_Read]]:
        epoch, place = divmod(number, self._count)
        pieces = (self._shuffled(epoch) if augment else self._in_order())[place]
        generator = np.random.default_rng([self.seed, 1, number]) if augment else None
        return pieces, [self._read_piece(piece, generator) for piece in pieces]

    def _read_piece(self, piece: Piece, generator: np.random.Generator | None) -> _Read:
        index, stride = self.index, self.index.chunk_stride
        total, span = index.boundaries[piece.episode], (self.window - 1) * stride + 1
        if total >= span:
            reach = self.window * stride // 2
            jitter = 0 if generator is None else int(generator.integers(-reach, reach + 1))
            first = int(np.clip(piece.first * stride + jitter, 0, total - span))
        else:
            phase = 0 if generator is None else int(generator.integers(stride))
            first = min(piece.first * stride + phase, total - 1)
        inside = np.arange(first, total, stride)[: piece.length]
        table = {name: values[index.offsets[piece.episode] + inside] for name, values in index.columns.items()}
        rows, places = np.unique([table.pop("row"), table.pop("next_row")], return_inverse=True)
        table["steps"], table["context_length"] = inside // stride, np.arange(1, len(inside) + 1)
        return _Read(table, self.latents.read(rows, generator), places.reshape(2, -1))

    def _join(self, pack: list[_Read]) -> dict[str, np.ndarray]:
        joined = {name: np.concatenate([read.columns[name] for read in pack]) for name in pack[0].columns}
        padded = {name: self._pad(values) for name, values in joined.items()}
        count = len(joined["action_weights"])
        padded["action_weights"][count:] = 0
        padded["context_length"][count:] = 1
        return padded

    def _pad(self, values: np.ndarray) -> np.ndarray:
        """Repeats the last row up to N rows."""
        return values[np.minimum(np.arange(self.window), len(values) - 1)]

    def _wording(self, number: int, episode: int, augment: bool) -> str:
        """The wording that window ``number`` shows; the first one without augmentation."""
        wordings = self.index.instructions[episode]
        if len(wordings) == 1 or not augment:
            return wordings[0]
        return wordings[int(np.random.default_rng([self.seed, 2, number]).integers(len(wordings)))]

    def _in_order(self) -> list[list[Piece]]:
        return self._whole + [window for group in self._short.values() for window in pack_episodes(group, self.window)]

    def _shuffled(self, epoch: int) -> list[list[Piece]]:
        """The windows of an epoch."""
        if self._epoch != epoch:
            generator = np.random.default_rng([self.seed, 0, epoch])
            windows = list(self._whole)
            for group in self._short.values():
                windows += pack_episodes([group[number] for number in generator.permutation(len(group))], self.window)
            self._windows = [windows[number] for number in generator.permutation(len(windows))]
            self._epoch = epoch
        return self._windows


def pack_episodes(episodes: Iterable[tuple[int, int]], size: int) -> list[list[Piece]]:
    """Lines episodes (number, steps) up and cuts the line into windows of ``size`` steps; the last may be shorter.

    >>> pack_episodes([(7, 3), (8, 2)], 4)
    [[Piece(episode=7, first=0, length=3), Piece(episode=8, first=0, length=1)], [Piece(episode=8, first=1, length=1)]]
    """
    windows: list[list[Piece]] = []
    space = 0
    for episode, steps in episodes:
        first = 0
        while first < steps:
            if not space:
                windows.append([])
                space = size
            length = min(space, steps - first)
            windows[-1].append(Piece(episode, first, length))
            first, space = first + length, space - length
    return windows


class MixedSampler:
    """Batches from several datasets in fixed proportions, reproducible from any step."""

    def __init__(self, samplers: list[WindowSampler], weights: list[float], batch_size: int) -> None:
        if len(weights) != len(samplers) or min(weights) <= 0:
            raise UserError(f"{len(samplers)} datasets need as many sampling weights above 0; got {weights}")
        self.samplers, self.batch_size = samplers, batch_size
        self._cumulative = np.concatenate([[0.0], np.cumsum(weights) / np.sum(weights)])
        self._cumulative[-1] = 1.0

    @property
    def demonstrations(self) -> dict[str, int]:
        """Episodes drawn from, by the name of the dataset's folder."""
        return {sampler.index.dataset.folder.name: sampler.episodes for sampler in self.samplers}

    @property
    def instructions(self) -> list[str]:
        """All wordings of the episodes' instructions, each once, in alphabetical order."""
        indices = [sampler.index for sampler in self.samplers]
        return sorted({text for index in indices for wordings in index.instructions for text in wordings})

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
