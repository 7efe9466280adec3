"""Rendered episodes read as videos: their frames alone, for training the frame path without actions."""

from __future__ import annotations

import numpy as np

from par_agent.data.episodes import RenderedDataset
from par_agent.data.index import EpisodeIndex, instructions_of
from par_agent.errors import UserError


class VideoIndex(EpisodeIndex):
    """Pairs of consecutive frames of a dataset; joint positions and actions are left out.

    Proprioception and actions of its windows are all zero, ``past_actions_known`` is False everywhere, and
    ``action_weights`` are 1 except in padding steps.

    Args:
        dataset: rendered episodes, with or without actions.
        joints: joint positions that the model reads, ``P``.
        action_size: numbers per action that it reads, ``A``.
        chunk_length: actions per chunk, ``L``.
        targets: actions that it predicts together, ``T``.

    Raises:
        UserError: no episode has two frames, or one holds no language instruction.
    """

    def __init__(
        self, dataset: RenderedDataset, joints: int, action_size: int, chunk_length: int, targets: int
    ) -> None:
        self.dataset, self.chunk_stride = dataset, 1
        episodes = [dataset.read(path, frames=False) for path in dataset.paths]
        frames = np.array([len(episode.frame_steps) for episode in episodes])
        self.boundaries: list[int] = (frames - 1).tolist()
        self.instructions = [instructions_of(path, one) for path, one in zip(dataset.paths, episodes, strict=True)]
        self._frames = np.concatenate([[0], np.cumsum(frames)])
        self.offsets = np.concatenate([[0], np.cumsum(frames - 1)])
        total = int(self.offsets[-1])
        if not total:
            raise UserError(f"{dataset.folder} has one frame per episode; videos need at least two")
        row = np.delete(np.arange(frames.sum()), self._frames[1:] - 1)
        past, target = (total, chunk_length, action_size), (total, targets, action_size)
        self.columns = {
            "row": row,
            "next_row": row + 1,
            "proprioception": np.zeros((total, joints), np.float32),
            "past_actions": np.broadcast_to(np.float32(0), past),
            "past_proprioception": np.zeros((total, joints), np.float32),
            "past_actions_known": np.zeros(total, bool),
            "target_actions": np.broadcast_to(np.float32(0), target),
            "action_weights": np.ones((total, targets), np.float32),
        }
