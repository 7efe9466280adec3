"""Training windows: consecutive chunk boundaries of rendered episodes, with the chunks before and after each.

Letters: K usable chunk boundaries of an episode, N steps a window, B windows a batch, L actions a chunk, A numbers per
action, P joint positions, C latent channels of h x w.
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
    """(B, N, L, A) float32 chunk executed after each boundary; its last action repeats past the episode's end."""
    weights: Tensor
    """(B, N, L) float32, 0 past the episode's end and in padding steps."""
    steps: Tensor
    """(B, N) int64 number of each boundary in its episode."""
    visible: Tensor
    """(B, N) int64 steps of the same episode in the window so far, the step itself included: what it may look at."""
    instructions: tuple[str, ...]
    """(B) language instructions."""
    episodes: tuple[str, ...]
    """(B) file names, to name what a faulty batch was made of; several in a packed window, joined by ``+``."""


class Piece(NamedTuple):
    """A part of a window: up to N consecutive boundaries of one episode."""

    episode: int
    """Number in the index."""
    place: int
    """Which of the episode's pieces."""
    length: int
    """Steps."""


class _Read(NamedTuple):
    """Steps of one piece."""

    columns: dict[str, np.ndarray]
    """Name -> values (n, ...)."""
    stored: np.ndarray
    """What the latent source gave for the frames."""
    frames: np.ndarray
    """(2, n) positions in ``stored`` of the frames at the boundaries and of the next ones."""


class WindowSampler:
    """Random windows of one dataset, every episode once an epoch, in an order fixed by the seed.

    An episode of K boundaries is cut into ``ceil(K / N)`` pieces of N steps whose starts are jittered, so that all
    boundaries, the first and the last included, are seen about equally often. Episodes shorter than a window are packed
    into windows together, those of one instruction only; no step sees another episode (:attr:`Windows.visible`).

    Args:
        index: the dataset.
        latents: its frames' latents.
        episodes: numbers of the episodes to draw from.
        window: N.
        seed: decides order, jitter and augmentation.

    Raises:
        UserError: no episode has a chunk boundary, or N is below 1.
    """

    def __init__(self, index: EpisodeIndex, latents: LatentSource, episodes: list[int], window: int, seed: int) -> None:
        if window < 1:
            raise UserError(f"window is {window}; it must be at least 1 physical token")
        self.index, self.latents, self.window, self.seed = index, latents, window, seed
        groups: dict[str, list[Piece]] = {}
        for episode in episodes:
            groups.setdefault(index.instructions[episode], []).extend(_pieces(index, episode, window))
        self.windows = [pack for pieces in groups.values() for pack in pack_pieces(pieces, window)]
        if not self.windows:
            raise UserError(f"{index.dataset.folder}: no episode is long enough to hold a chunk boundary")
        self._epoch, self._permutation = -1, np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def padding(self) -> float:
        """Share of the windows' steps that hold nothing."""
        return 1 - sum(piece.length for pack in self.windows for piece in pack) / (len(self.windows) * self.window)

    def sample(self, first: int, count: int, *, augment: bool = True) -> Windows:
        """Windows number ``first`` to ``first + count - 1`` of the endless seeded stream."""
        packs = [self._read(number, augment) for number in range(first, first + count)]
        reads = [read for pack in packs for read in pack[1]]
        latents = self.latents.latents(np.concatenate([read.stored for read in reads]))
        starts = np.cumsum([0, *(len(read.stored) for read in reads)])[:-1].tolist()
        frames, done = [], 0
        for _, pack in packs:
            places = [start + read.frames for start, read in zip(starts[done:], pack, strict=False)]
            frames.append(self._pad(np.concatenate(places, axis=1).T))
            done += len(pack)
        shown = torch.from_numpy(np.stack(frames))
        columns = [self._join(pack) for _, pack in packs]
        return Windows(
            latents=latents[shown[..., 0]],
            next_latents=latents[shown[..., 1]],
            **{name: torch.from_numpy(np.stack([part[name] for part in columns])) for name in columns[0]},
            instructions=tuple(self.index.instructions[pieces[0].episode] for pieces, _ in packs),
            episodes=tuple("+".join(self._name(piece.episode) for piece in pieces) for pieces, _ in packs),
        )

    def _read(self, number: int, augment: bool) -> tuple[list[Piece], list[_Read]]:
        epoch, place = divmod(number, len(self.windows))
        pieces = self.windows[self._order(epoch)[place] if augment else place]
        generator = np.random.default_rng([self.seed, 1, number]) if augment else None
        return pieces, [self._read_piece(piece, generator) for piece in pieces]

    def _read_piece(self, piece: Piece, generator: np.random.Generator | None) -> _Read:
        index, size, hop = self.index, self.window, self.index.hop
        total, span = index.boundaries[piece.episode], (size - 1) * hop + 1
        jitter = 0 if generator is None else int(generator.integers(-(size * hop // 2), size * hop // 2 + 1))
        latest = max(total - span, min(hop, total) - 1)
        start = int(np.clip(piece.place * size * hop + jitter, 0, latest))
        inside = np.arange(start, total, hop)[:size]
        table = {name: values[index.offsets[piece.episode] + inside] for name, values in index.columns.items()}
        rows, places = np.unique([table.pop("row"), table.pop("next_row")], return_inverse=True)
        table["weights"] = table.pop("valid")
        table["steps"], table["visible"] = inside // hop, np.arange(1, len(inside) + 1)
        return _Read(table, self.latents.read(rows, generator), places.reshape(2, -1))

    def _join(self, pack: list[_Read]) -> dict[str, np.ndarray]:
        joined = {name: np.concatenate([read.columns[name] for read in pack]) for name in pack[0].columns}
        padded = {name: self._pad(values) for name, values in joined.items()}
        count = len(joined["weights"])
        padded["weights"][count:] = 0
        padded["visible"][count:] = 1
        return padded

    def _pad(self, values: np.ndarray) -> np.ndarray:
        """Repeats the last row up to N rows."""
        return values[np.minimum(np.arange(self.window), len(values) - 1)]

    def _name(self, episode: int) -> str:
        return f"{self.index.dataset.folder.name}/{self.index.dataset.paths[episode].name}"

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.windows))
        return self._permutation


def _pieces(index: EpisodeIndex, episode: int, window: int) -> list[Piece]:
    """The pieces that an episode is cut into."""
    total = index.boundaries[episode]
    length = min(window, -(-total // index.hop))
    return [Piece(episode, place, length) for place in range(-(-total // (window * index.hop)))]


def pack_pieces(pieces: Iterable[Piece], size: int) -> list[list[Piece]]:
    """Packs pieces into windows of ``size`` steps: the longest first, each where it leaves the least space.

    >>> [[piece.length for piece in pack] for pack in pack_pieces([Piece(0, 0, n) for n in (3, 2, 4, 1)], 5)]
    [[4, 1], [3, 2]]
    """
    packs: list[list[Piece]] = []
    by_space: dict[int, list[int]] = {}
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        space = next((s for s in range(piece.length, size) if by_space.get(s)), size)
        if space == size:
            packs.append([piece])
            number = len(packs) - 1
        else:
            number = by_space[space].pop()
            packs[number].append(piece)
        by_space.setdefault(space - piece.length, []).append(number)
    return packs


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
