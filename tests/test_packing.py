"""Windows longer than episodes: packed without much padding, and no step sees another episode."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.index import EpisodeIndex
from par_agent.data.windows import Piece, WindowSampler, pack_episodes
from par_agent.errors import UserError
from tiny import LENGTH, tiny_dataset, tiny_features, tiny_inputs, tiny_model


class RowNumbers:
    """Latents that are the numbers of the frames' rows."""

    def prepare(self) -> None:
        return

    def read(self, rows: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
        return rows.astype(np.float32).reshape(-1, 1, 1, 1)

    def latents(self, stored: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(stored)


def sampler(folder: Path, window: int, episodes: int = 12, stride: int = LENGTH) -> WindowSampler:
    index = EpisodeIndex(RenderedDataset(tiny_dataset(folder, episodes, stride)), LENGTH)
    return WindowSampler(index, RowNumbers(), list(range(episodes)), window, seed=0)


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 20))
def test_packing_keeps_every_step_once_and_in_order(lengths: list[int], size: int) -> None:
    windows = pack_episodes(enumerate(lengths), size)
    filled = [sum(piece.length for piece in window) for window in windows]
    assert filled[:-1] == [size] * (len(windows) - 1) and all(1 <= count <= size for count in filled[-1:])
    steps = [(piece.episode, step) for window in windows for piece in window for step in range(*_span(piece))]
    assert steps == [(number, step) for number, length in enumerate(lengths) for step in range(length)]


def _span(piece: Piece) -> tuple[int, int]:
    return piece.first, piece.first + piece.length


def made_index(boundaries: list[int], stride: int) -> Any:
    """An index of episodes of so many chunk boundaries; its columns tell each boundary's row alone."""
    rows = np.arange(sum(boundaries))
    zeros = np.zeros((len(rows), 1), np.float32)
    names = ("proprioception", "past_actions", "past_proprioception", "past_actions_known", "target_actions")
    folder = Path("made")
    return SimpleNamespace(
        boundaries=boundaries,
        offsets=np.cumsum([0, *boundaries]),
        chunk_stride=stride,
        instructions=[("push",)] * len(boundaries),
        columns={"row": rows, "next_row": rows, "action_weights": zeros + 1, **dict.fromkeys(names, zeros)},
        dataset=SimpleNamespace(folder=folder, paths=[folder / str(number) for number in range(len(boundaries))]),
    )


@given(
    st.lists(st.integers(0, 25), min_size=1, max_size=8).filter(any),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 3),
    st.booleans(),
)
def test_a_step_sees_its_own_episode_alone_and_an_epoch_shows_all_episodes(
    boundaries: list[int], stride: int, window: int, seed: int, augment: bool
) -> None:
    index = made_index(boundaries, stride)
    source = WindowSampler(index, RowNumbers(), list(range(len(boundaries))), window, seed)
    windows = source.sample(0, len(source), augment=augment)
    episode_of = np.repeat(np.arange(len(boundaries)), boundaries)
    shown = []
    for number in range(len(source)):
        rows = windows.latents[number].flatten().long().tolist()
        lengths, used = windows.context_length[number].tolist(), windows.action_weights[number].flatten() > 0
        for step in range(int(used.sum())):
            own = rows[step] - index.offsets[episode_of[rows[step]]]
            assert windows.steps[number, step] == own // stride
            goes_on = step > 0 and episode_of[rows[step]] == episode_of[rows[step - 1]]
            assert lengths[step] == (lengths[step - 1] + 1 if goes_on else 1)
            assert not goes_on or rows[step] == rows[step - 1] + stride
            shown.append(rows[step])
    assert {episode_of[row] for row in shown} == {number for number, count in enumerate(boundaries) if count}
    if not augment and stride == 1:
        assert set(shown) == set(range(sum(boundaries)))


@pytest.mark.parametrize("stride", [LENGTH, LENGTH // 2])
def test_a_packed_window_holds_its_episodes_one_after_the_other(tmp_path: Path, stride: int) -> None:
    source = sampler(tmp_path, window=7, stride=stride)
    windows = source.sample(0, len(source))
    assert len({name for names in windows.episodes for name in names.split("+")}) == 12
    for row, names in enumerate(windows.episodes):
        starts = (windows.context_length[row] == 1) & (windows.action_weights[row].sum(-1) > 0)
        assert int(starts.sum()) == len(names.split("+"))
        for name in names.split("+"):
            episode = read_episode(tmp_path / "episodes" / name.split("/")[1])
            assert windows.instructions[row] == episode.attributes["instruction"]


def test_packed_steps_are_those_of_the_episodes_alone(tmp_path: Path) -> None:
    packed, alone = sampler(tmp_path, window=8), sampler(tmp_path / "again", window=1)
    whole = packed.sample(0, len(packed), augment=False)
    single = alone.sample(0, len(alone), augment=False)
    used = whole.action_weights.sum(-1) > 0
    assert int(used.sum()) == len(single.steps)
    order = [whole.latents[used].flatten().argsort(), single.latents.flatten().argsort()]
    for name in (
        "next_latents",
        "proprioception",
        "past_actions",
        "past_actions_known",
        "target_actions",
        "action_weights",
        "steps",
    ):
        a, b = getattr(whole, name)[used][order[0]], getattr(single, name)[:, 0][order[1]]
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_padding_of_long_windows_stays_small(tmp_path: Path) -> None:
    long = sampler(tmp_path, window=20, episodes=200)
    windows = long.sample(0, len(long))
    share = (windows.action_weights.sum(-1) == 0).float().mean().item()
    assert long.padding == pytest.approx(share) and share < 0.1


@pytest.mark.parametrize("stride", [LENGTH, LENGTH // 2])
def test_every_epoch_packs_in_another_order_and_misses_no_episode(tmp_path: Path, stride: int) -> None:
    source = sampler(tmp_path, window=9, stride=stride)
    epochs = [source.sample(epoch * len(source), len(source)) for epoch in range(3)]
    orders = ["+".join(sorted(windows.episodes)) for windows in epochs]
    assert len(set(orders)) == 3
    for windows in epochs:
        assert len({name for names in windows.episodes for name in names.split("+")}) == 12
        if stride == LENGTH:
            assert int((windows.action_weights.sum(-1) > 0).sum()) == sum(source.index.boundaries)


def test_no_step_of_a_packed_window_depends_on_the_other_episode() -> None:
    model, inputs = tiny_model(), tiny_inputs(2, 5)
    steps = torch.arange(5).expand(2, 5)
    context_length = torch.tensor([[1, 2, 1, 2, 3], [1, 2, 3, 1, 2]])
    changed = dataclasses.replace(inputs, latents=inputs.latents.clone(), actions=inputs.actions.clone())
    changed.latents[0, :2] += 1
    changed.actions[1, :3] += 1
    before = model(tiny_features(2), inputs, steps, context_length)
    after = model(tiny_features(2), changed, steps, context_length)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[0, 2:], b[0, 2:]) and torch.equal(a[1, 3:], b[1, 3:])
        assert not torch.equal(a[0, :2], b[0, :2])


def test_a_window_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="window is 0; it must be at least 1"):
        sampler(tmp_path, window=0)
