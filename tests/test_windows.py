"""Training windows and cached latents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from par_agent.data.augmentation import Augmentation, Change
from par_agent.data.conventions import fit_transforms
from par_agent.data.episodes import RenderedDataset, read_episode, write_episode
from par_agent.data.index import EpisodeIndex
from par_agent.data.latent_cache import CachedLatents
from par_agent.data.latents import LatentSource, LatentSpec, changes
from par_agent.data.windows import MixedSampler, WindowSampler
from par_agent.errors import UserError
from tiny import LENGTH, SIZE, tiny_dataset

SPEC = LatentSpec("render_camera", "abc", (3, 16, 16), variants=3, augmentation=Augmentation(2))


def pixels(frames: torch.Tensor) -> torch.Tensor:
    """An encoder whose latents are the pixels."""
    return frames.permute(0, 3, 1, 2).float()


def sampler(folder: Path, window: int = 2, hop_stride: int = LENGTH) -> WindowSampler:
    dataset = RenderedDataset(tiny_dataset(folder, stride=hop_stride))
    index = EpisodeIndex(dataset, LENGTH)
    latents = CachedLatents(index, SPEC, pixels)
    latents.prepare()
    return WindowSampler(index, latents, list(range(6)), window, seed=0)


@pytest.mark.parametrize("stride", [LENGTH, LENGTH // 2])
def test_windows_hold_what_the_episode_holds(tmp_path: Path, stride: int) -> None:
    source = sampler(tmp_path, hop_stride=stride)
    windows = source.sample(0, 3 * len(source))
    seen_end = seen_start = 0
    for row, name in enumerate(windows.episodes):
        episode = read_episode(tmp_path / "episodes" / name.split("/")[1])
        frames, total = pixels(torch.from_numpy(episode.frames["render_camera"])), len(episode.actions)
        for n in range(2):
            if windows.action_weights[row, n].sum() == 0:
                continue
            matches = np.abs(episode.proprioception - windows.proprioception[row, n].numpy()).sum(1)
            step = int(matches.argmin())
            assert matches[step] == 0 and step in episode.frame_steps
            count = min(LENGTH, total - step)
            np.testing.assert_array_equal(windows.target_actions[row, n, :count], episode.actions[step : step + count])
            assert windows.action_weights[row, n].tolist() == [1.0] * count + [0.0] * (LENGTH - count)
            assert bool(windows.past_actions_known[row, n]) == (step >= LENGTH)
            if step >= LENGTH:
                np.testing.assert_array_equal(windows.past_actions[row, n], episode.actions[step - LENGTH : step])
                np.testing.assert_array_equal(
                    windows.past_proprioception[row, n], episode.proprioception[step - LENGTH]
                )
            following = min(step + LENGTH, total)
            shown = [list(episode.frame_steps).index(value) for value in (step, following)]
            variant = next(v for v in range(3) if _is_variant(windows.latents[row, n], frames[shown[0]], episode, v))
            assert _is_variant(windows.next_latents[row, n], frames[shown[1]], episode, variant)
            assert windows.instructions[row] == episode.attributes["instruction"]
            seen_end += step + LENGTH >= total
            seen_start += step == 0
    assert seen_end > 3 and seen_start > 3


def test_every_wording_of_an_instruction_is_shown(tmp_path: Path) -> None:
    texts = ("push the cube", "slide the cube", "move the cube ahead")
    dataset = RenderedDataset(tiny_dataset(tmp_path))
    for path in dataset.paths[:3]:
        episode = read_episode(path)
        write_episode(path, dataclasses.replace(episode, attributes=episode.attributes | {"instruction": texts}))
        assert read_episode(path).attributes["instruction"] == texts
    index = EpisodeIndex(dataset, LENGTH)
    assert index.instructions[:4] == [texts, texts, texts, ("push cube 1",)]
    latents = CachedLatents(index, SPEC, pixels)
    latents.prepare()
    source = WindowSampler(index, latents, list(range(6)), 2, seed=0)
    shown: dict[str, set[str]] = {}
    for number in range(8 * len(source)):
        window = source.sample(number, 1)
        assert window.instructions == source.sample(number, 1).instructions
        shown.setdefault(window.episodes[0].split("/")[1].split("+")[0], set()).add(window.instructions[0])
    assert [shown[path.name] for path in dataset.paths[:4]] == [set(texts)] * 3 + [{"push cube 1"}]
    still = source.sample(0, len(source), augment=False)
    assert {t for t, name in zip(still.instructions, still.episodes, strict=True) if name[-4] in "012"} == {texts[0]}


def _is_variant(latent: torch.Tensor, frame: torch.Tensor, episode: object, variant: int) -> bool:
    change = changes(int(episode.attributes["seed"]), SPEC)[variant]  # type: ignore[attr-defined]
    moved = change(frame.permute(1, 2, 0)[None].numpy().astype(np.uint8))[0]
    return bool((latent.permute(1, 2, 0).numpy() == moved).all())


def test_foresight_shows_what_lies_past_the_chunk(tmp_path: Path) -> None:
    dataset = RenderedDataset(tiny_dataset(tmp_path))
    index = EpisodeIndex(dataset, LENGTH, foresight=(LENGTH, LENGTH + 3))
    for number, path in enumerate(dataset.paths):
        actions = read_episode(path).actions
        assert actions is not None
        for boundary in range(index.boundaries[number]):
            row, start = index.offsets[number] + boundary, boundary * LENGTH
            last = len(actions) - 1
            expected = actions[[min(start + LENGTH, last), min(start + LENGTH + 3, last)]]
            np.testing.assert_array_equal(index.columns["target_actions"][row, LENGTH:], expected)
            assert index.columns["action_weights"][row, LENGTH:].tolist() == [1.0, 1.0]


def test_every_episode_once_an_epoch_in_a_seeded_order(tmp_path: Path) -> None:
    source = sampler(tmp_path)
    size = len(source)
    epochs = [source.sample(epoch * size, size).episodes for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    assert len(set(epochs[0])) == 6
    again = source.sample(3, 4)
    split = [source.sample(number, 1) for number in range(3, 7)]
    torch.testing.assert_close(again.latents, torch.cat([part.latents for part in split]), rtol=0, atol=0)


def test_a_run_resumed_in_the_middle_of_an_epoch_repeats_and_misses_nothing(tmp_path: Path) -> None:
    source = sampler(tmp_path)
    whole = source.sample(0, len(source))
    resumed = sampler(tmp_path / "again").sample(4, len(source) - 4)  # as in another process: nothing is remembered
    for name in ("latents", "target_actions", "steps"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)[4:]), name
    assert [n.split("/")[1] for n in resumed.episodes] == [n.split("/")[1] for n in whole.episodes[4:]]


def test_frames_encoded_when_needed_are_those_of_the_cache(tmp_path: Path) -> None:
    cached = sampler(tmp_path, hop_stride=LENGTH // 2)
    fresh = WindowSampler(cached.index, LatentSource(cached.index, SPEC, pixels), list(range(6)), 2, seed=0)
    a, b = (source.sample(0, len(source), augment=False) for source in (cached, fresh))
    assert torch.equal(a.latents, b.latents) and torch.equal(a.next_latents, b.next_latents)


def test_without_cache_every_window_is_changed_anew_and_alike_in_all_its_frames(tmp_path: Path) -> None:
    index = EpisodeIndex(RenderedDataset(tiny_dataset(tmp_path)), LENGTH)
    source = WindowSampler(index, LatentSource(index, SPEC, pixels), list(range(6)), 2, seed=0)
    found = set()
    for number in range(8 * len(source)):
        window = source.sample(number, 1)
        frames = read_episode(tmp_path / "episodes" / window.episodes[0].split("/")[1]).frames["render_camera"]
        shown = [frames[n] for n in window.steps[0].tolist()]
        moves = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
        fits = [
            move
            for move in moves
            if np.array_equal(Change(move)(np.stack(shown)), window.latents[0].permute(0, 2, 3, 1).numpy())
        ]
        assert fits, window.episodes
        found.add(fits[0])
    assert len(found) > 12
    assert torch.equal(source.sample(3, 1).latents, source.sample(3, 1).latents)


def test_mixture_keeps_its_proportions_from_any_step(tmp_path: Path) -> None:
    sources = [sampler(tmp_path / name) for name in "ab"]
    mixed = MixedSampler(sources, [3.0, 1.0], batch_size=6)
    names = [name.split("/")[0] for step in range(40) for name in mixed.batch(step).episodes]
    assert len(names) == 240 and names.count("a") == 180
    torch.testing.assert_close(
        mixed.batch(7).target_actions, MixedSampler(sources, [3.0, 1.0], 6).batch(7).target_actions
    )
    with pytest.raises(UserError, match="2 datasets need as many sampling weights"):
        MixedSampler(sources, [1.0], 6)


def test_transforms_bring_targets_to_unit_scale(tmp_path: Path) -> None:
    dataset = RenderedDataset(tiny_dataset(tmp_path, episodes=40))
    index = EpisodeIndex(dataset, LENGTH)
    transforms = fit_transforms([index], "render_camera", (24, 32))
    whole = index.columns["action_weights"].all(1)
    after, positions = (torch.from_numpy(index.columns[name][whole]) for name in ("target_actions", "proprioception"))
    chunks = transforms.normalise_actions(after, positions)
    torch.testing.assert_close(chunks.mean(0), torch.zeros(LENGTH, SIZE), rtol=0, atol=1e-4)
    torch.testing.assert_close(chunks.std(0, unbiased=False), torch.ones(LENGTH, SIZE), rtol=0, atol=1e-3)
    assert transforms.relative == (True,) * 7 + (False,) and transforms.crop == (4, 8, 16, 16)


def test_unfit_data_is_refused(tmp_path: Path) -> None:
    coarse = RenderedDataset(tiny_dataset(tmp_path / "coarse", stride=3))
    with pytest.raises(UserError, match=r"a frame every 3 control steps; the model's chunks are 4 .* --stride 4"):
        EpisodeIndex(coarse, LENGTH)
    video = RenderedDataset(tiny_dataset(tmp_path / "video", actions=False))
    with pytest.raises(UserError, match="holds no actions"):
        EpisodeIndex(video, LENGTH)
    dataset = EpisodeIndex(RenderedDataset(tiny_dataset(tmp_path / "plain")), LENGTH)
    with pytest.raises(UserError, match="holds no camera 'base_camera'; it has render_camera"):
        CachedLatents(dataset, LatentSpec("base_camera", "abc", (3, 16, 16)), pixels)
    with pytest.raises(UserError, match=r"give latents \(3, 16, 16\); the model reads \(8, 2, 2\)"):
        CachedLatents(dataset, LatentSpec("render_camera", "abc", (8, 2, 2)), pixels).prepare()
    assert not (tmp_path / "plain" / "latents").exists()
