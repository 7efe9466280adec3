"""The cache of latents: it proves what it holds, goes on where it was stopped, and ends well on a full disk."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from other_process import lock_held_elsewhere
from par_agent.data.augmentation import Augmentation
from par_agent.data.episodes import RenderedDataset, read_episode, write_episode
from par_agent.data.index import EpisodeIndex
from par_agent.data.latent_cache import CachedLatents, LatentFile
from par_agent.data.latents import Encoder, LatentSpec
from par_agent.errors import UserError
from par_agent.utils.files import write_json
from tiny import LENGTH, tiny_dataset

SPEC = LatentSpec("render_camera", "abc", (3, 16, 16), variants=2, augmentation=Augmentation(1), encoder_config="a")
EPISODES = 6


class Pixels:
    """An encoder whose latents are the pixels; it counts episodes, and is stopped at one, if it comes that far."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.calls = at, 0

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        if self.calls == self.at:
            raise KeyboardInterrupt
        self.calls += 1
        return frames.permute(0, 3, 1, 2).float()


def prepared(folder: Path, spec: LatentSpec, encode: Encoder) -> LatentFile:
    """The file of a dataset's latents."""
    latents = CachedLatents(EpisodeIndex(RenderedDataset(folder), LENGTH), spec, encode)
    latents.prepare()
    return latents.file


def compute(folder: Path, spec: LatentSpec = SPEC, at: int | None = None) -> tuple[np.ndarray, int]:
    """All latents of a dataset, and how many episodes were encoded for that."""
    encoder = Pixels(at)
    file = prepared(folder, spec, encoder)
    return file.read(range(file.shape[1])), encoder.calls


def cache_files(folder: Path) -> list[str]:
    return sorted(path.name.partition("1")[2] for path in (folder / "latents").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_dataset(tmp_path / "data", EPISODES)


def test_the_cache_is_an_array_that_numpy_reads_and_is_computed_once(folder: Path) -> None:
    latents, encoded = compute(folder)
    assert encoded == EPISODES and cache_files(folder) == [".json", ".npy"]
    (path,) = (folder / "latents").glob("*.npy")
    np.testing.assert_array_equal(np.load(path), latents)
    frames = read_episode(folder / "episodes" / "episode_000000.h5").frames["render_camera"]
    np.testing.assert_array_equal(latents[0, : len(frames)], frames.transpose(0, 3, 1, 2))
    again, encoded = compute(folder)
    np.testing.assert_array_equal(again, latents)
    assert not encoded


def test_rows_are_read_in_any_pattern(folder: Path) -> None:
    latents, _ = compute(folder)
    file = prepared(folder, SPEC, Pixels())
    for rows in ([0], [1, 2, 3], [0, 2, 3, 7], [file.shape[1] - 1]):
        np.testing.assert_array_equal(file[1, np.array(rows)], latents[1, rows])


def test_an_episode_whose_frames_changed_under_the_same_shape_is_encoded_anew_and_no_other(folder: Path) -> None:
    before, _ = compute(folder)
    path = folder / "episodes" / "episode_000002.h5"
    episode = read_episode(path)
    write_episode(path, replace(episode, frames={"render_camera": 255 - episode.frames["render_camera"]}))
    after, encoded = compute(folder)
    assert encoded == 1
    rows = EpisodeIndex(RenderedDataset(folder), LENGTH).frames_of(2)
    np.testing.assert_array_equal(after[0, list(rows)], 255 - before[0, list(rows)])
    others = np.setdiff1d(np.arange(before.shape[1]), rows)
    np.testing.assert_array_equal(after[:, others], before[:, others])


def test_another_configuration_of_the_encoder_makes_all_latents_anew(folder: Path) -> None:
    compute(folder)
    assert compute(folder, replace(SPEC, encoder_config="b"))[1] == EPISODES
    assert compute(folder, replace(SPEC, encoder_config="b"))[1] == 0


def test_latents_go_on_where_they_were_stopped(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compute(folder, at=4)
    assert cache_files(folder) == [".partial", ".progress.json"]
    latents, encoded = compute(folder)
    assert encoded == EPISODES - 4, "what was done is kept"
    np.testing.assert_array_equal(latents, compute(tiny_dataset(tmp_path / "whole", EPISODES))[0])
    assert cache_files(folder) == [".json", ".npy"]


@pytest.mark.parametrize(
    "record",
    [
        {"of": {}, "episodes": -3, "frames": -9},
        {"made": 2, "encoder": "a", "episodes": {"episode_000000.h5": ["0", "0"]}},
        {"made": 2, "encoder": "a", "episodes": {"episode_000000.h5": []}},
        {"made": 2, "encoder": "a", "episodes": ["episode_000000.h5"]},
        [],
    ],
)
def test_a_record_that_proves_nothing_is_as_none(folder: Path, record: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        compute(folder, at=4)
    (progress,) = (folder / "latents").glob("*.progress.json")
    write_json(progress, record)
    assert compute(folder)[1] == EPISODES


def test_whatever_happens_to_a_file_of_the_cache_the_latents_are_right(folder: Path) -> None:
    expected, _ = compute(folder)
    generator = np.random.default_rng(0)
    final, record = sorted((folder / "latents").iterdir(), reverse=True)
    files = {final: final.read_bytes(), record: record.read_bytes()}
    encoded = 0
    for number in range(36):
        path = (final, final, record)[number % 3]
        content = bytearray(files[path])
        place = int(generator.integers(len(content)))
        if number % 4 == 0:
            content = content[:place]
        elif number % 4 == 1:
            content += generator.bytes(64)
        else:
            content[place : place + 1 + number % 9] = generator.bytes(1 + number % 9)
        if number % 2:
            path.write_bytes(content)
        else:  # stopped while it was made
            final.with_suffix(".partial").write_bytes(content if path == final else files[final])
            final.with_suffix(".progress.json").write_bytes(content if path == record else files[record])
            final.unlink()
        latents, count = compute(folder)
        np.testing.assert_array_equal(latents, expected)
        encoded += count
        assert final.read_bytes() == files[final] and len(cache_files(folder)) == 2
    assert 36 < encoded < 30 * EPISODES, "mutations were noticed, and some cost one episode only"


def test_two_processes_do_not_compute_the_same_latents(folder: Path) -> None:
    lock = folder / "latents" / "render_camera-abc-2x1.lock"
    with (
        lock_held_elsewhere(lock),
        pytest.raises(UserError, match=r"another process computes the latents of .* now; wait"),
    ):
        compute(folder)
    assert not (folder / "latents").exists()
    assert compute(folder)[1] == EPISODES


def test_an_episode_that_changes_meanwhile_is_not_taken_for_what_it_was(folder: Path) -> None:
    path = folder / "episodes" / "episode_000003.h5"
    episode = read_episode(path)

    def meanwhile(frames: torch.Tensor) -> torch.Tensor:
        write_episode(path, replace(episode, frames={"render_camera": 255 - episode.frames["render_camera"]}))
        return frames.permute(0, 3, 1, 2).float()

    prepared(folder, SPEC, meanwhile)
    assert compute(folder)[1] == 1


def test_a_folder_that_cannot_be_made_is_called_what_it_is_and_how_to_do_without(folder: Path) -> None:
    (folder / "latents").symlink_to(folder / "gone")
    message = r"cannot write to .*latents: .* is a link to .*gone, which does not exist.*--no-cache"
    with pytest.raises(UserError, match=message):
        compute(folder)


def test_space_for_all_latents_is_reserved_before_hours_of_work(folder: Path) -> None:
    size = EpisodeIndex(RenderedDataset(folder), LENGTH).num_frames * 2 * 3 * 16 * 16 * 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
        with pytest.raises(
            UserError, match=r"cannot reserve the .* GB of .*: File too large; allow larger .*--no-cache"
        ):
            compute(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (folder / "latents").exists()
    assert compute(folder)[1] == EPISODES


FULL = """
import errno, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_latent_cache import compute
from par_agent.errors import UserError
def refuse(*_):
    raise OSError(errno.EOPNOTSUPP, "not supported")
for reserve in (os.posix_fallocate, refuse):
    os.posix_fallocate = reserve
    try:
        compute(Path(sys.argv[1]))
    except UserError as error:
        print(error)
"""


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(folder: Path) -> None:
    disk = folder / "latents"
    disk.mkdir()
    mounted = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mounted += [f'mount -t tmpfs -o size=32k none "{disk}" && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    program = [sys.executable, "-c", FULL, str(folder), str(Path(__file__).parent)]
    ended = subprocess.run([*mounted, *program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    reserved, written = ended.stdout.splitlines()
    partial = disk / "render_camera-abc-2x1.partial"
    assert reserved.startswith(f"cannot reserve the 6.2e-05 GB of {partial}: No space left on device; make room, or")
    assert written.startswith(
        f"cannot write below {disk}: [Errno 28] No space left on device. What is finished is kept"
    )
