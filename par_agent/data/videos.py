"""Rendered episodes read as videos: their frames alone, for training the frame path without actions."""

from __future__ import annotations

import numpy as np

from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.windows import EpisodeIndex
from par_agent.errors import UserError


class VideoIndex(EpisodeIndex):
    """Which frames follow each other in a dataset; joint positions and actions are left out, where there are any.

    Windows of it hold consecutive frames. Their numbers are all zero, ``before_known`` is False everywhere, and
    ``weights`` are 1 except in padding steps.

    Args:
        dataset: rendered episodes, with or without actions.
        joints: joint positions that the model reads, ``P``.
        action_size: numbers per action that it reads, ``A``.
        chunk_length: actions per chunk, ``L``.
        targets: actions that it predicts together, ``T``.

    Raises:
        UserError: no episode has two frames.
    """

    def __init__(
        self, dataset: RenderedDataset, joints: int, action_size: int, chunk_length: int, targets: int
    ) -> None:
        self.dataset, self.hop = dataset, 1
        self.boundaries: list[int] = []
        self.instructions: list[str] = []
        rows, start = [], 0
        for path in dataset.paths:
            episode = read_episode(path, frames=False)
            count = len(episode.frame_steps)
            rows.append(np.arange(start, start + count - 1))
            start += count
            self.boundaries.append(count - 1)
            self.instructions.append(str(episode.attributes["instruction"]))
        row = np.concatenate(rows)
        if not len(row):
            raise UserError(f"{dataset.folder} has one frame per episode; videos need at least two")
        total = len(row)
        self.columns = {
            "row": row,
            "next_row": row + 1,
            "positions": np.zeros((total, joints), np.float32),
            "before": np.zeros((total, chunk_length, action_size), np.float32),
            "before_positions": np.zeros((total, joints), np.float32),
            "before_known": np.zeros(total, bool),
            "after": np.zeros((total, targets, action_size), np.float32),
            "valid": np.ones((total, targets), np.float32),
        }
        self.offsets = np.concatenate([[0], np.cumsum(self.boundaries)])
