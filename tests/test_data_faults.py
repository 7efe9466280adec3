"""Data that training must not start on: damaged episodes, missing instructions, another robot's arrays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from par_agent.data.augmentation import Augmentation
from par_agent.data.conventions import check_conventions, fit_transforms, joint_targets
from par_agent.data.episodes import RenderedDataset, read_episode, write_episode
from par_agent.data.index import EpisodeIndex, VideoIndex
from par_agent.data.latent_cache import CachedLatents
from par_agent.data.latents import LatentSource, LatentSpec
from par_agent.data.windows import WindowSampler
from par_agent.errors import UserError
from par_agent.utils.files import read_json, write_json
from tiny import LENGTH, tiny_dataset, tiny_transforms

SPEC = LatentSpec("render_camera", "abc", (3, 16, 16), variants=2, augmentation=Augmentation(1))
SIX = ((0.1,) * 6,) * LENGTH
"""Statistics of a robot with six joints."""


def pixels(frames: torch.Tensor) -> torch.Tensor:
    """An encoder whose latents are the pixels."""
    return frames.permute(0, 3, 1, 2).float()


def episode(folder: Path, number: int) -> Path:
    return folder / "episodes" / f"episode_{number:06d}.h5"


def damage_frames(path: Path) -> None:
    """Changes bytes in the middle of a compressed frame, as a bad disk would; the file can still be opened."""
    with h5py.File(path, "r") as file:
        place = file["frames/render_camera"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    middle = place.byte_offset + place.size // 2
    content[middle : middle + 8] = bytes(255 - value for value in content[middle : middle + 8])
    path.write_bytes(content)


def change(path: Path, name: str, values: np.ndarray) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = values


def test_a_damaged_episode_in_the_middle_is_named_with_the_flag_that_skips_it(tmp_path: Path) -> None:
    index = EpisodeIndex(RenderedDataset(tiny_dataset(tmp_path)), LENGTH)
    damage_frames(episode(tmp_path, 3))
    with pytest.raises(UserError, match=r"episode_000003\.h5 is damaged .*--skip-corrupt"):
        CachedLatents(index, SPEC, pixels).prepare()
    frames = LatentSource(index, SPEC, pixels)
    windows = WindowSampler(index, frames, list(range(6)), 1, seed=0)
    with pytest.raises(UserError, match=r"episode_000003\.h5 is damaged"):
        windows.sample(0, len(windows))


def test_skipping_leaves_out_the_damaged_ones_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_dataset(tmp_path)
    whole = EpisodeIndex(RenderedDataset(tmp_path), LENGTH)
    CachedLatents(whole, SPEC, pixels).prepare()
    damage_frames(episode(tmp_path, 3))
    episode(tmp_path, 5).write_bytes(episode(tmp_path, 5).read_bytes()[:900])
    dataset = RenderedDataset(tmp_path, skip_corrupt=True)
    assert [path.name[-4] for path in dataset.skipped] == ["3", "5"] and len(dataset) == 4
    assert "episode_000003.h5 is damaged" in "".join(capsys.readouterr())
    index = EpisodeIndex(dataset, LENGTH)
    latents = CachedLatents(index, SPEC, pixels)
    latents.prepare()
    assert latents.file.shape[1] == index.num_frames < whole.num_frames
    assert len(list((tmp_path / "latents").glob("*.npy"))) == 2, "the cache of all episodes is another file"
    sampler = WindowSampler(index, latents, list(range(4)), 1, seed=0)
    windows = sampler.sample(0, len(sampler), augment=False)
    for row, name in enumerate(windows.episodes):
        frames = read_episode(tmp_path / "episodes" / name.split("/")[1]).frames["render_camera"]
        step = int(windows.steps[row, 0])
        assert torch.equal(windows.latents[row, 0], pixels(torch.from_numpy(frames[step : step + 1]))[0])


SECOND: dict[str, tuple[str, object, str]] = {
    "another type": ("actions", np.zeros((6, 8), np.float64), "actions is stored as float64; expected float32"),
    "another rank": ("actions", np.zeros(6, np.float32), r"actions has the shape \(6,\); expected \(any, any\)"),
    "missing": ("proprioception", None, "proprioception is missing"),
    "no actions": ("actions", None, "it holds no actions"),
    "a link": ("actions", h5py.ExternalLink("/etc/passwd", "actions"), "actions is a link"),
    "NaN": ("actions", np.full((6, 8), np.nan, np.float32), "actions hold NaN"),
    "too large": (
        "proprioception",
        np.full((7, 9), 1e30, np.float32),
        "hold numbers too large in row 0",
    ),
    "complex": ("proprioception", np.zeros((7, 9), np.complex64), "proprioception is stored as complex64"),
    "booleans": ("actions", np.zeros((6, 8), bool), "actions is stored as bool"),
    "wide frames": ("frames/render_camera", np.zeros((3, 16, 16, 3), np.int16), "is stored as int16; expected uint8"),
    "shifted": (
        "frame_steps",
        np.array([1, 4, 6], np.int32),
        r"steps \[1, 4, 6\] of 6; the dataset's are at \[0, 4, 6\]",
    ),
    "no frames": ("frames/render_camera", None, "no frames of render_camera"),
    "cut frames": ("frames/render_camera", np.zeros((3, 8, 16, 3), np.uint8), "frames of 8x16 pixels"),
    "gray frames": ("frames/render_camera", np.zeros((3, 16, 16), np.uint8), r"expected \(any, any, any, 3\)"),
}
"""What episode 1, of 6 control steps, may have in place of an array, and what is said of it."""


@pytest.mark.parametrize("fault", SECOND)
def test_every_kind_of_fault_is_named_and_can_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture, fault: str
) -> None:
    name, value, message = SECOND[fault]
    dataset = RenderedDataset(tiny_dataset(tmp_path, episodes=3))
    with h5py.File(episode(tmp_path, 1), "a") as file:
        del file[name]
        if value is not None:
            file[name] = value
    with pytest.raises(UserError, match=rf"episode_000001\.h5 is damaged \(.*{message}.*--skip-corrupt"):
        EpisodeIndex(dataset, LENGTH)
    dataset = RenderedDataset(tmp_path, skip_corrupt=True)
    assert dataset.skipped == [episode(tmp_path, 1)] and "episode_000001.h5 is damaged" in "".join(capsys.readouterr())
    assert EpisodeIndex(dataset, LENGTH).boundaries


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 2}, r"steps \[0, 4, 5\] of 5; the dataset's are at \[0, 2, 4, 5\]"),
        ({"crop": [4, 8, 16, 17]}, r"frames of 16x16 pixels; the dataset's are \(16, 17\)"),
        ({"cameras": ["hand"]}, "no frames of hand"),
        ({"stride": "4"}, r"spec\.json: RenderSpec\.stride is '4'; expected a whole number"),
        ({"phase": 4}, r"spec\.json: RenderSpec: phase is 4"),
        ({"crop": None, "stride": None}, r"spec\.json: RenderSpec\.stride is None"),
        ({"kind": 1}, r"spec\.json: unknown fields in RenderSpec: kind"),
    ],
)
def test_a_spec_that_is_not_that_of_the_episodes_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    tiny_dataset(tmp_path)
    write_json(tmp_path / "spec.json", read_json(tmp_path / "spec.json") | changes)
    with pytest.raises(UserError, match=message):
        EpisodeIndex(RenderedDataset(tmp_path), LENGTH)


def test_a_spec_without_one_of_its_fields_is_refused(tmp_path: Path) -> None:
    tiny_dataset(tmp_path)
    spec = read_json(tmp_path / "spec.json")
    del spec["crop"]
    write_json(tmp_path / "spec.json", spec)
    with pytest.raises(UserError, match=r"spec\.json: missing fields in RenderSpec: crop"):
        RenderedDataset(tmp_path)


def test_a_dataset_of_damaged_episodes_alone_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        damage_frames(episode(tiny_dataset(tmp_path, episodes=3) if number == 0 else tmp_path, number))
    with pytest.raises(UserError, match="every one of its 3 episodes is damaged"):
        RenderedDataset(tmp_path, skip_corrupt=True)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("actions", np.zeros((3, 8), np.float32), "3 actions and 8 joint positions; expected one position more"),
        ("actions", np.full((7, 8), np.nan, np.float32), "actions hold NaN"),
        ("proprioception", np.full((8, 9), np.inf, np.float32), "proprioception hold NaN or infinity in row 0: inf"),
        (
            "proprioception",
            np.eye(8, 9, -3, np.float32) * 1e30,
            r"proprioception hold numbers too large in row 3",
        ),
        ("frame_steps", np.array([0, 4, 9], np.int32), r"frames at control steps \[0, 4, 9\] of 7"),
        ("frame_steps", np.array([4, 0, 7], np.int32), "frames at control steps"),
        ("frame_steps", np.array([0, 7], np.int32), "3 frames of render_camera at 2 control steps"),
    ],
)
def test_arrays_that_do_not_fit_one_another_are_refused(
    tmp_path: Path, name: str, values: np.ndarray, message: str
) -> None:
    dataset = RenderedDataset(tiny_dataset(tmp_path))
    change(episode(tmp_path, 2), name, values)
    with pytest.raises(UserError, match=rf"episode_000002\.h5 is damaged \({message}"):
        EpisodeIndex(dataset, LENGTH)


@pytest.mark.parametrize("text", [None, "", "  ", 5, [1.5, 2.5]])
def test_an_episode_without_instruction_is_named(tmp_path: Path, text: object) -> None:
    dataset = RenderedDataset(tiny_dataset(tmp_path))
    with h5py.File(episode(tmp_path, 4), "a") as file:
        del file.attrs["instruction"]
        if text is not None:
            file.attrs["instruction"] = text
    words = r"holds no language instruction.*--instruction TEXT|is damaged \(attributes?.instruction is .*expected a"
    with pytest.raises(UserError, match=rf"episode_000004\.h5 ({words})"):
        EpisodeIndex(dataset, LENGTH)
    if text is None:
        with pytest.raises(UserError, match=r"episode_000004\.h5 holds no language instruction"):
            VideoIndex(dataset, 9, 8, LENGTH, LENGTH)


@pytest.mark.parametrize("frames", [np.zeros((3, 8, 8), np.uint8), np.zeros((3, 8, 8, 3), np.int16)])
def test_frames_that_are_not_rgb_bytes_are_not_written(tmp_path: Path, frames: np.ndarray) -> None:
    path = RenderedDataset(tiny_dataset(tmp_path / "data")).paths[0]
    odd = dataclasses.replace(read_episode(path), frames={"render_camera": frames})
    with pytest.raises(UserError, match=r"odd\.h5 would hold frames of render_camera of shape .* expected RGB"):
        write_episode(tmp_path / "odd.h5", odd)


@pytest.mark.parametrize(("name", "value"), [("proprioception", np.nan), ("actions", 1e30), ("extra", np.inf)])
def test_numbers_that_no_robot_has_are_never_written(tmp_path: Path, name: str, value: float) -> None:
    whole = read_episode(episode(tiny_dataset(tmp_path, episodes=1), 0))
    rows = np.zeros((6, 2), np.float32) if name == "extra" else getattr(whole, name).copy()
    rows[4, 1] = value
    odd = dataclasses.replace(whole, **{name: {"goal_pos": rows} if name == "extra" else rows})
    with pytest.raises(UserError, match=r"odd\.h5 would hold .* in row 4: .*: leave that episode out"):
        write_episode(tmp_path / "odd.h5", odd)
    assert not (tmp_path / "odd.h5").exists()
    assert not (tmp_path / "odd.h5").exists()


def test_another_robots_episode_in_the_middle_is_named(tmp_path: Path) -> None:
    dataset = RenderedDataset(tiny_dataset(tmp_path))
    change(episode(tmp_path, 2), "actions", np.zeros((7, 6), np.float32))
    with pytest.raises(UserError, match=r"episode_000002\.h5 has 6 numbers per action .* before it\s+have 8 and 9"):
        EpisodeIndex(dataset, LENGTH)


def test_episodes_shorter_than_a_chunk_are_refused(tmp_path: Path) -> None:
    index = EpisodeIndex(RenderedDataset(tiny_dataset(tmp_path, episodes=2, stride=10)), 10)
    with pytest.raises(UserError, match=r"no episode of .* is as long as one chunk"):
        fit_transforms([index], "render_camera", None)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    tiny_dataset(tmp_path, episodes=1)
    episode(tmp_path, 0).unlink()
    summary = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(summary | {"num_episodes": 0}))
    with pytest.raises(UserError, match="holds no episodes"):
        RenderedDataset(tmp_path)


@pytest.mark.parametrize(
    ("mode", "size", "joints", "expected"),
    [
        ("pd_joint_pos", 8, 9, "jjjjjjjg"),  # Panda: two fingers, one command
        ("pd_joint_pos", 7, 12, "jjjjjjg"),  # xArm6 with its many-jointed gripper
        ("pd_joint_pos", 6, 6, "jjjjjj"),  # SO100: the gripper is a joint like the others
        ("pd_ee_delta_pose", 7, 9, "ggggggg"),
        ("pd_joint_pos", 4, 2, "gggg"),
    ],
)
def test_joint_targets_follow_from_the_controller(mode: str, size: int, joints: int, expected: str) -> None:
    assert joint_targets(mode, size, joints) == tuple(letter == "j" for letter in expected)


@pytest.mark.parametrize(
    ("change_to", "message"),
    [
        ({"crop": (0, 0, 16, 16)}, r"rendered with crop \(4, 8, 16, 16\); the policy .* --crop 0 0 16 16"),
        (
            {"relative": (True,) * 6, "action_mean": SIX, "action_std": SIX},
            "has 8 numbers per action, the policy was trained with 6: another robot",
        ),
        (
            {"proprioception_mean": (0.1,) * 12, "proprioception_std": (0.1,) * 12},
            "has 9 joint positions, the policy was trained with 12",
        ),
        (
            {"relative": (False,) * 8, "control_mode": "pd_joint_vel"},
            "are pd_joint_pos; the policy was trained with pd_joint_vel: give --new-robot",
        ),
    ],
)
def test_data_unlike_the_checkpoints_is_refused(tmp_path: Path, change_to: dict, message: str) -> None:
    index = EpisodeIndex(RenderedDataset(tiny_dataset(tmp_path)), LENGTH)
    check_conventions([index], tiny_transforms(), "the policy")
    with pytest.raises(UserError, match=message):
        check_conventions([index], dataclasses.replace(tiny_transforms(), **change_to), "the policy")
