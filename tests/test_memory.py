"""Training data takes little memory however much there is on disk."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from par_agent.data.augmentation import Augmentation
from par_agent.data.episodes import Episode, RenderedDataset, write_episode
from par_agent.data.index import EpisodeIndex
from par_agent.data.latent_cache import CachedLatents
from par_agent.data.latents import LatentSource, LatentSpec
from par_agent.data.render_spec import RenderSpec
from par_agent.data.windows import WindowSampler
from par_agent.utils.files import write_json

SPEC = LatentSpec("render_camera", "abc", (3, 64, 64), variants=2, augmentation=Augmentation(2))
COUNTS = (20, 200)
"""Episodes."""


def write_dataset(folder: Path, episodes: int) -> Path:
    """Episodes of 4 frames of 64x64 pixels and 12 control steps."""
    generator = np.random.default_rng(0)
    steps = np.array([0, 4, 8, 12])
    for number in range(episodes):
        frames = generator.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
        positions = generator.normal(size=(13, 9)).astype(np.float32)
        attributes = {"instruction": "push", "seed": number}
        episode = Episode({"render_camera": frames}, steps, positions, positions[1:, :8], attributes)
        write_episode(folder / "episodes" / f"episode_{number:06d}.h5", episode)
    write_json(folder / "spec.json", RenderSpec("PushCube-v1", "demos.h5", episodes, "push", stride=4).to_json())
    summary = {"num_episodes": episodes, "actions": True, "extra": {}, "image_sizes": {}}
    write_json(folder / "dataset.json", summary)
    return folder


def peak_of_an_epoch(folder: Path, cache: bool) -> int:
    """Most bytes of arrays held at once from opening a dataset to the end of an epoch, making latents included."""
    tracemalloc.start()
    index = EpisodeIndex(RenderedDataset(folder), 4)
    encode = lambda frames: frames.permute(0, 3, 1, 2).float()  # noqa: E731
    source = CachedLatents(index, SPEC, encode) if cache else LatentSource(index, SPEC, encode)
    source.prepare()
    sampler = WindowSampler(index, source, list(range(len(index.dataset))), 2, seed=0)
    for number in range(0, len(sampler), 4):
        sampler.sample(number, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One dataset for each of the counts."""
    folder = tmp_path_factory.mktemp("datasets")
    return [write_dataset(folder / str(count), count) for count in COUNTS]


@pytest.mark.parametrize("cache", [True, False])
def test_memory_hardly_grows_with_the_dataset(datasets: list[Path], cache: bool) -> None:
    small, large = (peak_of_an_epoch(dataset, cache) for dataset in datasets)
    frames = (COUNTS[1] - COUNTS[0]) * 4 * 64 * 64 * 3
    assert large - small < 0.08 * frames
