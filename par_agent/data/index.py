"""Joint positions and chunks of a dataset at its chunk boundaries, in memory; frames stay on disk.

Letters: K usable chunk boundaries of an episode, L actions a chunk, A numbers per action, P numbers of proprioception:
joint positions, then extra observations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from par_agent.data.episodes import Episode, RenderedDataset, damaged_episode
from par_agent.errors import UserError
from par_agent.policy.transforms import Extra, extra_size

HELD_OUT = 20
"""One episode in this many is kept for validation."""

COLUMNS = (
    "row",
    "next_row",
    "proprioception",
    "past_actions",
    "past_proprioception",
    "past_actions_known",
    "target_actions",
    "action_weights",
)


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
        """K of every episode."""
        self.instructions: list[tuple[str, ...]] = []
        """Wordings of the language instruction of every episode."""
        self.control_mode = ""
        """ManiSkill's name of the actions' controller."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
        frames, ahead = [0], np.array([*range(chunk_length), *foresight])
        for path in dataset.paths:
            episode = dataset.read(path, frames=False)
            self._check(path, episode, columns)
            assert episode.actions is not None
            steps, total = episode.frame_steps, len(episode.actions)
            usable = int(np.sum((steps < total) & ((steps - phase) % stride == 0)))
            positions = _proprioception(episode, extra)
            chunks = _chunks(positions, episode.actions, steps[:usable], chunk_length, ahead)
            chunks["row"] = np.arange(frames[-1], frames[-1] + usable)
            chunks["next_row"] = frames[-1] + np.minimum(np.arange(usable) + self.chunk_stride, len(steps) - 1)
            for name in COLUMNS:
                columns[name].append(chunks[name])
            frames.append(frames[-1] + len(steps))
            self.boundaries.append(usable)
            self.instructions.append(instructions_of(path, episode))
            self.control_mode = _control_mode(episode)
        self.columns = {name: np.concatenate(columns.pop(name)) for name in COLUMNS}
        """Name -> values of all boundaries; see :class:`par_agent.data.windows.Windows`."""
        self.offsets = np.concatenate([[0], np.cumsum(self.boundaries)])
        """First boundary of every episode, then the number of all boundaries."""
        self._frames = np.array(frames)

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
        return int(self._frames[-1])

    @property
    def action_size(self) -> int:
        """Numbers per action, ``A``."""
        return int(self.columns["target_actions"].shape[2])

    @property
    def joint_count(self) -> int:
        """Joint positions of the robot."""
        return int(self.columns["proprioception"].shape[1]) - extra_size(self.extra)

    def file_of(self, row: int) -> tuple[Path, int]:
        """The episode file that frame ``row`` of the dataset is in, and the row of that file's first frame."""
        number = int(np.searchsorted(self._frames, row, side="right")) - 1
        return self.dataset.paths[number], int(self._frames[number])

    def frames_of(self, episode: int) -> range:
        """Rows of an episode's frames in the dataset."""
        return range(*self._frames[[episode, episode + 1]].tolist())

    def split(self, demos: int | None = None) -> tuple[list[int], list[int]]:
        """Episode numbers for training, the first ``demos`` or all, and for validation (one in :data:`HELD_OUT`).

        Raises:
            UserError: there are fewer than ``demos``.
        """
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

    def _check(self, path: Path, episode: Episode, columns: dict[str, list[np.ndarray]]) -> None:
        """Compares an episode with the ones before it."""
        if episode.actions is None:
            raise damaged_episode(path, "it holds no actions")
        if columns["target_actions"]:
            found = episode.actions.shape[1], episode.proprioception.shape[1]
            wanted = (
                columns["target_actions"][0].shape[2],
                columns["proprioception"][0].shape[1] - extra_size(self.extra),
            )
            if found != wanted:
                raise UserError(
                    f"episode file {path} has {found[0]} numbers per action and {found[1]} joints, those before it "
                    f"have {wanted[0]} and {wanted[1]}; a dataset holds one robot's episodes: use two folders"
                )
            if _control_mode(episode) != self.control_mode:
                raise UserError(
                    f"episode file {path} holds actions of {_control_mode(episode)}, those before it of "
                    f"{self.control_mode}; a dataset holds one controller's actions: use two folders"
                )


class VideoIndex(EpisodeIndex):
    """Pairs of consecutive frames of a dataset; joint positions and actions are left out.

    Its windows have the sizes that the model reads. Proprioception (``joints`` numbers) and actions (``targets`` of
    them predicted) are all zero, ``past_actions_known`` is False everywhere, and ``action_weights`` are 1 except in
    padding steps.

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


def _control_mode(episode: Episode) -> str:
    return str(episode.attributes.get("control_mode", "pd_joint_pos"))


def instructions_of(path: Path, episode: Episode) -> tuple[str, ...]:
    """Wordings of an episode's instruction; its file is for the message.

    Raises:
        UserError: there is none.
    """
    if not episode.instructions:
        raise UserError(
            f"episode file {path} holds no language instruction; render the dataset again with --instruction TEXT"
        )
    return episode.instructions


def _proprioception(episode: Episode, extra: Extra) -> np.ndarray:
    """(T + 1, P) joint positions, then the extra observations."""
    count = len(episode.proprioception)
    observed = [episode.extra.get(name, np.zeros((count, size), np.float32)) for name, size in extra]
    return np.concatenate([episode.proprioception, *observed], 1)


def _chunks(
    positions: np.ndarray, actions: np.ndarray, steps: np.ndarray, length: int, offsets: np.ndarray
) -> dict[str, np.ndarray]:
    """Per chunk boundary of one episode: proprioception and the chunks around it; ``offsets`` are the targets'."""
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
