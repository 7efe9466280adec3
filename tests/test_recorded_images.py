"""Trajectory files that already hold images: imported as they are, without a renderer."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from par_agent.cli import main
from par_agent.cli import render as render_command
from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.index import EpisodeIndex
from par_agent.data.render_spec import RenderSpec
from par_agent.data.rendering import recorded_episode
from par_agent.data.trajectory import TrajectoryFile
from par_agent.errors import UserError
from par_agent.policy.transforms import crop_and_resize
from par_agent.tasks import PROTOCOL_SEED
from recordings import SHADER, require_renderer

LENGTHS = (9, 13, 6)


def write(folder: Path, env_id: str = "PickCubeSO100-v1", seeds: tuple[int, ...] = (3, 4, 5)) -> Path:
    """A file in ManiSkill's format of episodes with 6 actions, 6 joints and two cameras, without simulator states."""
    path = folder / "trajectory.rgb.pd_joint_pos.physx_cpu.h5"
    episodes = []
    with h5py.File(path, "w") as file:
        for number, (length, seed) in enumerate(zip(LENGTHS, seeds, strict=True)):
            generator = np.random.default_rng(number)
            group = file.create_group(f"traj_{number}")
            group["actions"] = generator.normal(size=(length, 6)).astype(np.float32)
            group["obs/agent/qpos"] = generator.normal(size=(length + 1, 6)).astype(np.float32)
            for camera in ("base_camera", "hand_camera"):
                images = generator.integers(0, 256, (length + 1, 20, 30, 3), dtype=np.uint8)
                group.create_dataset(f"obs/sensor_data/{camera}/rgb", data=images, compression="gzip")
            episodes.append({"episode_id": number, "episode_seed": seed, "elapsed_steps": length})
    environment = {"env_id": env_id, "env_kwargs": {"control_mode": "pd_joint_pos", "obs_mode": "rgb"}}
    path.with_suffix(".json").write_text(json.dumps({"env_info": environment, "episodes": episodes}))
    return path


def arguments(path: Path, out: Path, *more: str) -> list[str]:
    options = ["--recorded-images", "--cameras", "hand_camera", "--stride", "4", "--workers", "1"]
    return ["render", "--trajectory", str(path), "--out", str(out), *options, *more]


def test_frames_actions_and_joints_are_the_files_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nonexistent")
    path = write(tmp_path)
    assert main(arguments(path, tmp_path / "out", "--crop", "2", "4", "16", "16")) == 0
    dataset = RenderedDataset(tmp_path / "out")
    assert len(dataset) == 3 and dataset.cameras == ("hand_camera",) and dataset.summary["num_frames"] == 4 + 5 + 3
    assert dataset.image_size("hand_camera") == (20, 30) and dataset.image_size("base_camera") is None
    with h5py.File(path) as file:
        for number, length in enumerate(LENGTHS):
            episode, group = read_episode(dataset.paths[number]), file[f"traj_{number}"]
            steps = [*range(0, length, 4), length]
            assert episode.frame_steps.tolist() == steps
            images = [crop_and_resize(group["obs/sensor_data/hand_camera/rgb"][s], (2, 4, 16, 16), None) for s in steps]
            assert np.array_equal(episode.frames["hand_camera"], images)
            assert np.array_equal(episode.actions, group["actions"])
            assert np.array_equal(episode.proprioception, group["obs/agent/qpos"])
            assert episode.attributes["seed"] == 3 + number and episode.attributes["control_mode"] == "pd_joint_pos"
    index = EpisodeIndex(dataset, 4)
    assert (index.action_size, index.joint_count) == (6, 6)


@pytest.mark.usefixtures("without_workers")
def test_what_was_recorded_is_what_is_rendered(tmp_path: Path) -> None:
    """ManiSkill's own recording of its own observation, with the states beside it: both ways give the same frames."""
    require_renderer()
    import gymnasium
    import mani_skill.envs  # noqa: F401  registers the environments
    from mani_skill.utils.wrappers.record import RecordEpisode

    options = {"sim_backend": "physx_cpu", "render_backend": "cpu", "sensor_configs": SHADER}
    env = gymnasium.make("PickCubeSO100-v1", obs_mode="rgb", control_mode="pd_joint_pos", **options)
    recorder = RecordEpisode(env, str(tmp_path), trajectory_name="trajectory", save_video=False)
    recorder.reset(seed=1)
    target = env.unwrapped.agent.robot.get_qpos()[0].numpy()
    for _ in range(3):
        target = target + 0.1
        recorder.step(target)
    recorder.close()
    path = tmp_path / "trajectory.h5"
    for name, option in (("rendered", "--workers=1"), ("recorded", "--recorded-images")):
        command = ["render", "--trajectory", str(path), "--out", str(tmp_path / name), "--cameras", "base_camera"]
        assert main([*command, "--stride", "2", "--extra", "goal_pos", "--include-failures", option]) == 0
    rendered, recorded = (read_episode(RenderedDataset(tmp_path / n).paths[0]) for n in ("rendered", "recorded"))
    assert rendered.frame_steps.tolist() == recorded.frame_steps.tolist() == [0, 2, 3]
    np.testing.assert_allclose(rendered.proprioception, recorded.proprioception, atol=1e-6)
    np.testing.assert_array_equal(rendered.actions, recorded.actions)
    np.testing.assert_allclose(rendered.extra["goal_pos"], recorded.extra["goal_pos"], atol=1e-6)
    a, b = rendered.frames["base_camera"].astype(int), recorded.frames["base_camera"].astype(int)
    assert (abs(a - b) > 1).mean() < 1e-3 and a.std() > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": ("render_camera",)}, "holds no images of 'render_camera'; it holds base_camera, hand_camera"),
        ({"cameras": ("hand_camera",), "crop": (10, 10, 16, 16)}, "does not lie inside the 20x30 image"),
    ],
)
def test_what_the_file_does_not_hold_is_named(tmp_path: Path, change: dict, message: str) -> None:
    spec = RenderSpec("PickCubeSO100-v1", "t.h5", 1, "Pick.", recorded=True, **change)
    with TrajectoryFile(write(tmp_path)) as file, pytest.raises(UserError, match=message):
        recorded_episode(spec, file, 0)


def test_damaged_short_and_reserved_episodes_are_refused(tmp_path: Path) -> None:
    spec = RenderSpec("PickCubeSO100-v1", "t.h5", 1, "Pick.", ("hand_camera",), recorded=True)
    path = write(tmp_path, seeds=(3, 4, PROTOCOL_SEED))
    with TrajectoryFile(path) as file, pytest.raises(UserError, match=f"starts from seed {PROTOCOL_SEED}"):
        recorded_episode(spec, file, 2)
    with h5py.File(path, "a") as file:
        del file["traj_0/obs/agent/qpos"], file["traj_1/obs/agent/qpos"], file["traj_2/actions"]
        file["traj_1/obs/agent/qpos"] = np.zeros((13, 6), np.float32)
    for index, message in enumerate(
        (
            "traj_0/obs/agent/qpos is missing",
            r"traj_1/obs/agent/qpos has the shape \(13, 6\); expected \(14, any\)",
            "traj_2/actions is missing",
        )
    ):
        with TrajectoryFile(path) as file, pytest.raises(UserError, match=message):
            recorded_episode(spec, file, index)


def test_unknown_tasks_need_an_instruction(tmp_path: Path) -> None:
    path = write(tmp_path, env_id="WaterThePlants-v1")
    config = render_command.RenderConfig(tmp_path / "out", trajectory=path, recorded_images=True)
    with pytest.raises(UserError, match=r"WaterThePlants-v1 has no instruction here; say what .* --instruction TEXT"):
        config.spec()
    command = arguments(path, tmp_path / "out", "--instruction", "Water the plants.")
    assert main(command) == 0
    assert RenderedDataset(tmp_path / "out").spec.instruction == "Water the plants."


def test_several_wordings_of_an_instruction_go_with_every_episode(tmp_path: Path) -> None:
    path, texts = write(tmp_path), ("Lift it.", "Pick it up.")
    command = arguments(path, tmp_path / "out", "--instruction", *texts, "Lift it.")
    assert main(command) == 0 and main(command) == 0
    dataset = RenderedDataset(tmp_path / "out")
    assert dataset.spec.instruction == texts
    assert EpisodeIndex(dataset, 4).instructions == [texts] * 3
    with pytest.raises(UserError, match="instruction is empty; leave it out"):
        render_command.RenderConfig(out=tmp_path, trajectory=path, instruction=("Lift it.", " ")).spec()


def test_recorded_images_of_nothing_are_refused(tmp_path: Path) -> None:
    config = render_command.RenderConfig(tmp_path / "out", random_motion="PickCube", recorded_images=True)
    with pytest.raises(UserError, match=r"--recorded-images, .* are for a trajectory file; give --trajectory"):
        config.spec()


def test_images_that_repeat_older_ones_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    spec = RenderSpec("PickCubeSO100-v1", str(path), 3, "lift", ("hand_camera",), stride=4, recorded=True)
    for last, message in ((0, None), (1, r"control steps \[9\] repeat older ones.*without --recorded-images")):
        with h5py.File(path, "a") as file:
            ages = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, last], np.int32)
            file["traj_0/obs/sensor_data/hand_camera"].pop("age", None)
            file["traj_0/obs/sensor_data/hand_camera/age"] = ages
        with TrajectoryFile(path) as trajectories:
            if message is None:
                recorded_episode(spec, trajectories, 0)
                continue
            with pytest.raises(UserError, match=message):
                recorded_episode(spec, trajectories, 0)
