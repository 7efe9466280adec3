"""Joint positions and chunks of a dataset at its chunk boundaries, in memory; frames stay on disk.

Letters of shapes: see :mod:`par_agent.modeling`. Physical steps are the chunk boundaries.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from par_agent.data.episodes import Episode, RenderedDataset
from par_agent.errors import UserError
from par_agent.policy.transforms import Extra

HELD_OUT = 20
"""One episode in this many is kept for validation."""


class EpisodeIndex:
    """Joint positions and chunks of all episodes of a dataset: about ``8 L (A + 1)`` bytes a frame.

    Args:
        dataset: rendered demonstrations.
        chunk_length: actions a chunk, ``L``.
        foresight: control steps past the chunk, counted from its start, whose actions follow the chunk's.
        extra: extra observations that follow the joint positions; zeros where the dataset does not have one.

    Raises:
        UserError: the dataset has no actions, an episode is damaged, without instruction or unlike the others, or its
            frames do not lie at chunk boundaries of this length.
    """

    def __init__(
        self, dataset: RenderedDataset, chunk_length: int, foresight: tuple[int, ...] = (), extra: Extra = ()
    ) -> None:
        stride, phase = dataset.spec.stride, dataset.spec.phase
        if not dataset.has_actions:
            raise UserError(f"{dataset.folder} holds no actions (random motion); policies train on demonstrations")
        if chunk_length % stride:
            raise UserError(
                f"{dataset.folder} has a frame every {stride} control steps; the model's chunks are {chunk_length} "
                f"actions long, which is not a multiple: render it again with --stride {chunk_length}"
            )
        self.dataset, self.chunk_stride, self.extra = dataset, chunk_length // stride, extra
        self.boundaries: list[int] = []
        """N of every episode."""
        self.instructions: list[tuple[str, ...]] = []
        """Wordings of the language instruction of every episode."""
        robot: tuple[int, int, str] | None = None
        columns = defaultdict[str, list[np.ndarray]](list)
        frames, ahead = [0], np.array([*range(chunk_length), *foresight])
        for path in dataset.paths:
            episode = dataset.read(path, frames=False)
            assert episode.actions is not None  # the dataset compares its episodes in that
            mode = str(episode.attributes.get("control_mode", "pd_joint_pos"))
            found = episode.actions.shape[1], episode.proprioception.shape[1], mode
            _compare(path, found, robot or found)
            robot = found
            steps, total = episode.frame_steps, len(episode.actions)
            usable = int(np.sum((steps < total) & ((steps - phase) % stride == 0)))
            chunks = _chunks(episode, extra, steps[:usable], chunk_length, ahead)
            chunks["row"] = np.arange(frames[-1], frames[-1] + usable)
            chunks["next_row"] = frames[-1] + np.minimum(np.arange(usable) + self.chunk_stride, len(steps) - 1)
            for name, values in chunks.items():
                columns[name].append(values)
            frames.append(frames[-1] + len(steps))
            self.boundaries.append(usable)
            self.instructions.append(instructions_of(path, episode))
        assert robot is not None
        self.action_size, self.joint_count, self.control_mode = robot
        """Numbers per action ``A``, joint positions of the robot, and ManiSkill's name of the actions' controller."""
        self.columns = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
        """Name -> values of all boundaries; see :class:`par_agent.data.windows.Windows`."""
        self.offsets = np.concatenate([[0], np.cumsum(self.boundaries)])
        """First boundary of every episode, then the number of all boundaries."""
        self._frames = np.array(frames)

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
        return int(self._frames[-1])

    def file_of(self, row: int) -> tuple[Path, int]:
        """The episode file that frame ``row`` of the dataset is in, and the row of that file's first frame."""
        number = int(np.searchsorted(self._frames, row, side="right")) - 1
        return self.dataset.paths[number], int(self._frames[number])

    def frames_of(self, episode: int) -> range:
        """Rows of an episode's frames in the dataset."""
        return range(*self._frames[[episode, episode + 1]].tolist())

    def split(self, demos: int | None = None) -> tuple[list[int], list[int]]:
        """Episode numbers for training, the first ``demos`` or all, and for validation (one in :data:`HELD_OUT`)."""
        numbers = list(range(len(self.dataset)))
        train = [number for number in numbers if number % HELD_OUT] or numbers
        if demos is not None and demos > len(train):
            raise UserError(
                f"{self.dataset.folder} has {len(train)} episodes to train on, not {demos} ({len(numbers)} with the "
                "held-out ones); leave --demos out to use them all"
            )
        return train[:demos], numbers[::HELD_OUT]

    def rows(self, episodes: list[int]) -> np.ndarray:
        """Rows of episodes in :attr:`columns`."""
        return np.concatenate([np.arange(*self.offsets[[episode, episode + 1]]) for episode in episodes])


class VideoIndex(EpisodeIndex):
    """Pairs of consecutive frames of a dataset; joint positions and actions are left out.

    Its windows have the sizes that the model reads. Proprioception (``joints`` numbers) and actions (``targets`` of
    them predicted) are all zero, ``past_actions_known`` is False everywhere, and ``action_weights`` are 1 except in
    padding steps.
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


def _compare(path: Path, found: tuple[int, int, str], wanted: tuple[int, int, str]) -> None:
    """Compares an episode's numbers per action, joints and control mode with those of the episodes before it."""
    if found[:2] != wanted[:2]:
        raise UserError(
            f"episode file {path} has {found[0]} numbers per action and {found[1]} joints, those before it "
            f"have {wanted[0]} and {wanted[1]}; a dataset holds one robot's episodes: use two folders"
        )
    if found[2] != wanted[2]:
        raise UserError(
            f"episode file {path} holds actions of {found[2]}, those before it of {wanted[2]}; a dataset holds one "
            "controller's actions: use two folders"
        )


def instructions_of(path: Path, episode: Episode) -> tuple[str, ...]:
    """Wordings of an episode's instruction, at least one; its file is for the message."""
    if not episode.instructions:
        raise UserError(
            f"episode file {path} holds no language instruction; render the dataset again with --instruction TEXT"
        )
    return episode.instructions


def _chunks(
    episode: Episode, extra: Extra, steps: np.ndarray, length: int, offsets: np.ndarray
) -> dict[str, np.ndarray]:
    """Per chunk boundary of an episode: proprioception and the chunks around it; ``offsets`` are the targets'."""
    actions, count = episode.actions, len(episode.proprioception)
    assert actions is not None
    observed = [episode.extra.get(name, np.zeros((count, size), np.float32)) for name, size in extra]
    positions = np.concatenate([episode.proprioception, *observed], 1)
    ahead = steps[:, None] + offsets
    behind = steps[:, None] + np.arange(-length, 0)
    return {
        "proprioception": positions[steps],
        "past_actions": actions[np.maximum(behind, 0)],
        "past_proprioception": positions[np.maximum(steps - length, 0)],
        "past_actions_known": steps >= length,
        "target_actions": actions[np.minimum(ahead, len(actions) - 1)],
        "action_weights": ((ahead < len(actions)) | (offsets >= length)).astype(np.float32),
    }
