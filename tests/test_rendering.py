"""Rendering recorded and random motion in the real simulator, and `par-agent render` stopped in every way."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from held import Held, Moment, gone_process
from par_agent.cli import main
from par_agent.cli import render as render_command
from par_agent.data.episodes import Episode, RenderedDataset, episode_paths, read_episode
from par_agent.data.render_spec import RenderSpec
from par_agent.data.rendering import Renderer, RenderJob, episode_renderer
from par_agent.data.trajectory import TrajectoryFile
from par_agent.errors import UserError
from par_agent.evaluation.object_search import find_object
from par_agent.policy.transforms import crop_and_resize
from par_agent.simulation.randomization import randomize, randomized
from par_agent.tasks import PROTOCOL_SEED, get_task
from par_agent.utils.files import only_process, write_json
from recordings import Views, make_environment, record, require_renderer, run_in_this_process

LENGTHS = (7, 10, 4, 5, 6, 5, 4, 6)
BOUNDARIES = {0: [0, 5, 7], 1: [0, 5, 10]}
CAMERAS = ("render_camera", "base_camera")  # the first takes time, in which a command can be stopped


@pytest.fixture(scope="module", autouse=True)
def _renderer() -> None:
    require_renderer()


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[Path, list[list[Views]]]:
    """A PickCube trajectory file, and what the cameras showed live at the boundaries of its first two episodes."""
    path = tmp_path_factory.mktemp("demos") / "trajectory.h5"
    return path, record(path, "PickCube-v1", LENGTHS, BOUNDARIES)


@pytest.fixture(scope="module")
def shared_renderer(recording) -> Renderer:
    return Renderer(RenderSpec("PickCube-v1", str(recording[0]), 2, "Lift it.", CAMERAS, stride=5))


@pytest.fixture
def renderer(shared_renderer) -> Iterator[Renderer]:
    spec = shared_renderer.spec
    yield shared_renderer
    shared_renderer.spec = spec


def render(renderer: Renderer, path: Path, index: int, **changes: Any) -> Episode:
    renderer.spec = replace(renderer.spec, **changes)
    with TrajectoryFile(path) as file:
        return renderer.render_demonstration(file.read(index), index)


def same_picture(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for single pixels on edges: poses go through rounding when they are recorded."""
    return a.shape == b.shape and float((a != b).mean()) < 1e-4


def test_frames_are_what_the_cameras_showed_live(renderer, recording):
    path, seen = recording
    for index in (1, 0):  # in any order
        episode = render(renderer, path, index)
        assert episode.frame_steps.tolist() == BOUNDARIES[index]
        for number, views in enumerate(seen[index]):
            for camera, image in views.items():
                assert same_picture(episode.frames[camera][number], image), (index, number, camera)
    assert seen[0][0]["render_camera"].shape == (512, 512, 3) and seen[0][0]["base_camera"].shape == (128, 128, 3)


def test_nothing_but_the_boundaries_is_rendered(renderer, recording, monkeypatch):
    taken = []
    real = renderer.base.render_rgb_array
    monkeypatch.setattr(renderer.base, "render_rgb_array", lambda camera: taken.append(camera) or real(camera))
    monkeypatch.setattr(renderer.base, "step", lambda *_: pytest.fail("physics was stepped"))
    render(renderer, recording[0], 1)
    assert taken == ["render_camera"] * 3


def test_joint_positions_actions_and_origin_are_the_recordings(renderer, recording):
    episode = render(renderer, recording[0], 1)
    with TrajectoryFile(recording[0]) as file:
        demonstration = file.read(1)
    assert np.array_equal(episode.proprioception, demonstration.joint_positions("panda"))
    assert episode.proprioception.shape == (11, 9)
    assert np.array_equal(episode.actions, demonstration.actions) and episode.actions.shape == (10, 8)
    assert episode.attributes == {
        "instruction": "Lift it.",
        "env_id": "PickCube-v1",
        "seed": 1,
        "source": "trajectory.h5",
        "source_episode": 1,
        "control_mode": "pd_joint_pos",
        "image_size.render_camera": "512x512",
        "image_size.base_camera": "128x128",
    }


def test_extra_observations_are_stored_for_every_step_where_the_task_has_them(renderer, recording):
    episode = render(renderer, recording[0], 1, extra=("goal_pos", "tcp_pose", "obj_pose"))
    assert {name: values.shape for name, values in episode.extra.items()} == {"goal_pos": (11, 3), "tcp_pose": (11, 7)}
    with TrajectoryFile(recording[0]) as file:
        goal = file.read(1).states["actors"]["goal_site"][:, :3]
    assert np.array_equal(episode.extra["goal_pos"], goal)
    assert np.ptp(episode.extra["tcp_pose"], axis=0).max() > 0.001
    assert len(episode.frames["render_camera"]) == len(episode.frame_steps) == 3


def test_crop_and_size_apply_to_every_frame_of_one_camera(renderer, recording):
    crop, size = (30, 20, 90, 100), (45, 40)
    whole = render(renderer, recording[0], 0, cameras=("base_camera",))
    episode = render(renderer, recording[0], 0, crop=crop, size=size)
    assert list(episode.frames) == ["base_camera"] and episode.frames["base_camera"].shape == (3, 45, 40, 3)
    for frame, image in zip(episode.frames["base_camera"], whole.frames["base_camera"], strict=True):
        assert np.array_equal(frame, crop_and_resize(image, crop, size))


def test_a_phase_shifts_the_boundaries(renderer, recording):
    episode = render(renderer, recording[0], 0, phase=2, cameras=("base_camera",))
    assert episode.frame_steps.tolist() == [2, 7]
    live_at_7 = recording[1][0][2]["base_camera"]
    assert same_picture(episode.frames["base_camera"][1], live_at_7)
    assert not same_picture(episode.frames["base_camera"][0], live_at_7)


def test_the_protocols_initial_states_are_refused(renderer, recording, tmp_path):
    path = Path(shutil.copy(recording[0], tmp_path / "trajectory.h5"))
    document = json.loads(recording[0].with_suffix(".json").read_text())
    document["episodes"][1] |= {"episode_seed": PROTOCOL_SEED, "reset_kwargs": {}}
    path.with_suffix(".json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=rf"episode 1 starts from seed {PROTOCOL_SEED}.*leave it out of training"):
        render(renderer, path, 1)


def test_an_unknown_camera_is_refused_with_the_known_ones(recording):
    with pytest.raises(UserError, match=r"no camera 'wrist'; it has render_camera, base_camera"):
        Renderer(RenderSpec("PickCube-v1", str(recording[0]), 1, "", ("wrist",)))


def test_what_a_seed_makes_beside_the_states_is_rendered_too(tmp_path):
    """PegInsertionSide's peg has a random length, which is in no recorded state."""
    path = tmp_path / "trajectory.h5"
    seen = record(path, "PegInsertionSide-v1", (1, 1), {0: [0], 1: [0]})
    peg = Renderer(RenderSpec("PegInsertionSide-v1", str(path), 2, "", stride=5))
    for index in (1, 0):
        frames = render(peg, path, index).frames["render_camera"]
        assert same_picture(frames[0], seen[index][0]["render_camera"]), index


def test_random_motion_is_video_of_a_moving_arm(renderer):
    renderer.spec = RenderSpec(
        "PickCube-v1", "random-motion", 3, "", ("base_camera",), stride=4, phase=1, motion_steps=6, first_seed=50
    )
    episode, other = renderer.render_random_motion(1), renderer.render_random_motion(0)
    assert episode.actions is None and episode.frame_steps.tolist() == [1, 5, 6]
    assert (episode.attributes["seed"], episode.attributes["source"]) == (51, "random-motion")
    assert episode.proprioception.shape == (7, 9)
    assert (np.abs(np.diff(episode.proprioception[:, :7], axis=0)).max(1) > 1e-4).all(), "the arm rests"
    frames = episode.frames["base_camera"]
    assert not same_picture(frames[0], frames[2]) and not same_picture(frames[0], other.frames["base_camera"][0])


def test_random_motion_depends_on_nothing_but_its_seed():
    """This seed's arm touches a cube, and ends elsewhere where traces of the motion before are left in the scene."""
    renderer = Renderer(
        RenderSpec("StackCube-v1", "random-motion", 7, "", ("base_camera",), stride=24, motion_steps=24)
    )
    first = renderer.render_random_motion(6)
    for before in (0, 6, 2):
        renderer.render_random_motion(before)
        again = renderer.render_random_motion(6)
        assert np.array_equal(again.proprioception, first.proprioception), before
        assert np.array_equal(again.frames["base_camera"], first.frames["base_camera"]), before


def test_random_motion_starts_from_the_seeds_initial_state(renderer):
    renderer.spec = RenderSpec("PickCube-v1", "random-motion", 2, "", ("base_camera",), first_seed=7)
    episode = renderer.render_random_motion(1)
    env = make_environment("PickCube-v1")
    env.reset(seed=8)
    assert episode.frame_steps.tolist() == [0] and len(episode.proprioception) == 1
    assert np.array_equal(episode.proprioception[0], env.unwrapped.agent.robot.get_qpos()[0].numpy())
    assert np.array_equal(episode.frames["base_camera"][0], env.unwrapped.see()["sensor_data"]["base_camera"]["rgb"][0])


def arguments(recording: tuple[Path, list], out: Path, workers: int = 1, stride: int = 5) -> list[str]:
    options = ["--workers", str(workers), "--stride", str(stride), "--include-failures", "--cameras", *CAMERAS]
    return ["--trajectory", str(recording[0]), "--out", str(out), *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(recording, tmp_path_factory) -> Path:
    """All of the recording, rendered in this process, one episode after the other."""
    out = tmp_path_factory.mktemp("finished")
    config = render_command.RenderConfig(out, trajectory=recording[0], stride=5, cameras=CAMERAS, include_failures=True)
    spec = config.spec()
    write_json(out / "spec.json", spec.to_json())
    render_one = episode_renderer(partial(Renderer, spec), out)
    with TrajectoryFile(recording[0]) as file:
        for index in range(len(LENGTHS)):
            list(render_one(RenderJob(index, file.read(index))))
    write_json(out / "dataset.json", render_command.summarise(out))
    return out


@pytest.fixture
def threads(monkeypatch) -> None:
    monkeypatch.setattr(render_command, "open_runner", run_in_this_process)


def test_a_finished_dataset_holds_what_the_cameras_showed(finished, recording):
    dataset = RenderedDataset(finished)
    assert dataset.summary["num_steps"] == sum(LENGTHS)
    assert dataset.spec.instruction == get_task("PickCube").wordings
    assert {camera: dataset.image_size(camera) for camera in CAMERAS} == {
        camera: recording[1][1][0][camera].shape[:2] for camera in CAMERAS
    }
    found = read_episode(dataset.paths[1])
    assert sorted(found.frames) == sorted(CAMERAS)
    for camera in CAMERAS:
        for frame, views in zip(found.frames[camera], recording[1][1], strict=True):
            assert same_picture(frame, views[camera]), camera


def test_the_same_command_again_renders_nothing(finished, recording, monkeypatch):
    before = contents(finished)
    monkeypatch.setattr(render_command, "open_runner", lambda *_: pytest.fail("a worker was started"))
    assert main(["render", *arguments(recording, finished)]) == 0
    assert contents(finished) == before


def test_other_settings_in_the_same_folder_are_refused(finished, recording, capsys):
    before = contents(finished)
    assert main(["render", *arguments(recording, finished, stride=4)]) == 2
    assert "begun with other settings (stride: 5 there, 4 asked for); choose another --out" in capsys.readouterr().err
    assert contents(finished) == before


def test_two_commands_never_render_into_one_folder(recording, tmp_path):
    with only_process(tmp_path / ".lock", ""), pytest.raises(UserError, match="another process renders into"):
        render_command.main(render_command.RenderConfig(tmp_path, trajectory=recording[0], include_failures=True))
    assert list(tmp_path.iterdir()) == []


def test_more_episodes_than_recorded_are_refused(recording, tmp_path):
    with pytest.raises(UserError, match=r"--num 9 asks for more episodes than the 8 in"):
        render_command.RenderConfig(tmp_path, trajectory=recording[0], num=9, include_failures=True).spec()


def test_a_mistyped_camera_is_refused_and_corrected_in_the_same_folder(recording, tmp_path, threads, capsys):
    mistyped = [word.replace("base_camera", "bas_camera") for word in arguments(recording, tmp_path)]
    assert main(["render", *mistyped]) == 2
    assert "no camera 'bas_camera'; it has render_camera, base_camera" in capsys.readouterr().err
    assert contents(tmp_path) == {}
    assert main(["render", *arguments(recording, tmp_path), "--num", "1"]) == 0
    assert len(RenderedDataset(tmp_path)) == 1


def test_a_full_disk_leaves_whole_episodes_and_the_same_command_goes_on(
    finished, recording, tmp_path, threads, monkeypatch, capsys
):
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "episode_000002" not in path.name:
            return real(path, content)
        real(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["render", *arguments(recording, tmp_path)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"par-agent: error: cannot write below {tmp_path}: [Errno 28] No space left on device")
    assert message.endswith("make room, then run the same command again")
    whole = ["episodes/episode_000000.h5", "episodes/episode_000001.h5", "spec.json"]
    assert contents(tmp_path) == {name: (finished / name).read_bytes() for name in whole}

    monkeypatch.setattr(Path, "write_bytes", real)
    assert main(["render", *arguments(recording, tmp_path)]) == 0
    assert contents(tmp_path) == contents(finished)


def test_files_that_were_removed_are_rendered_again_alike(finished, recording, tmp_path, threads):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for name in ("dataset.json", "episodes/episode_000001.h5", "episodes/episode_000006.h5"):
        os.remove(tmp_path / name)
    (tmp_path / "episodes" / f".episode_000006.h5.{gone_process()}.tmp").write_bytes(b"left by a killed worker")
    assert main(["render", *arguments(recording, tmp_path, workers=2)]) == 0
    assert contents(tmp_path) == contents(finished)


def held(recording: tuple[Path, list], out: Path, marks: Path) -> Held:
    """The command, whose worker holds when it has written two episodes."""
    moment = Moment("par_agent.data.rendering:write_episode", number=2)
    return Held(["par-agent", "render", *arguments(recording, out)], moment, marks)


def test_stopped_by_ctrl_c_and_by_kill_and_resumed_gives_the_same_bytes(finished, recording, tmp_path, threads):
    out = tmp_path / "out"
    with held(recording, out, tmp_path / "interrupted") as interrupted:
        interrupted.interrupt()
    complete = contents(out)
    assert complete == {name: (finished / name).read_bytes() for name in complete}
    assert 2 <= sum(name.startswith("episodes/") for name in complete) < len(LENGTHS) - 1

    with held(recording, out, tmp_path / "killed") as killed:
        killed.kill()
    assert not (out / "dataset.json").exists()

    assert main(["render", *arguments(recording, out)]) == 0
    assert contents(out) == contents(finished)


def test_blink_shows_the_goal_in_an_episodes_first_frame_only(recording):
    spec = RenderSpec("PickCube-v1", str(recording[0]), 2, "Lift it.", stride=5, variation="blink")
    renderer = Renderer(spec)
    green = (1 / 3, 1.0)
    for index in (0, 1):
        shown = [
            find_object(frame, green) is not None
            for frame in render(renderer, recording[0], index).frames["render_camera"]
        ]
        assert shown == [True] + [False] * (len(shown) - 1)


def test_a_variation_of_time_cannot_be_rendered():
    with pytest.raises(UserError, match="action_delay changes more than images"):
        RenderSpec("PickCube-v1", "t.h5", 1, "", variation="action_delay")
    with pytest.raises(UserError, match="recorded images are as they were recorded"):
        RenderSpec("PickCube-v1", "t.h5", 1, "", recorded=True, variation="ambient")


def test_a_dataset_from_before_variations_had_a_name_is_continued(recording, tmp_path, threads):
    words = [*arguments(recording, tmp_path), "--num", "1"]
    assert main(["render", *words]) == 0
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert (spec.pop("variation"), spec.pop("randomize"), spec.pop("randomize_seed")) == ("none", [], 0)
    write_json(tmp_path / "spec.json", spec)
    assert main(["render", *words]) == 0
    found = RenderedDataset(tmp_path).spec
    assert (found.variation, found.randomize) == ("none", ())


def test_every_episode_has_an_appearance_of_its_own_that_is_stored_and_made_again(recording, tmp_path, threads):
    names = ["camera=1.5", "light", "color", "table", "background", "distractors"]
    folders = [tmp_path / name for name in ("one", "again", "other")]
    for folder, seed in zip(folders, ("3", "3", "4"), strict=True):
        words = [*arguments(recording, folder), "--num", "2"]
        assert main(["render", *words, "--randomize", *names, "--randomize-seed", seed]) == 0
    assert contents(folders[0]) == contents(folders[1])
    episodes = [[read_episode(path) for path in episode_paths(folder)] for folder in (folders[0], folders[2])]
    looks = [json.loads(episode.attributes["appearance"]) for found in episodes for episode in found]
    poses = {tuple(look["camera_pose.render_camera"]) for look in looks}
    assert len(poses) == 4 and all(len(pose) == 7 for pose in poses)
    assert all({"ambient", "background_color", "distractor_object.1"} <= set(look) for look in looks)
    first = [found[0].frames["render_camera"][0].astype(int) for found in episodes]
    assert np.abs(first[0] - first[1]).mean() > 5


def test_randomising_one_episode_leaves_the_next_as_it_was(renderer, recording):
    path, _ = recording
    plain = render(renderer, path, 0)
    world, slots = renderer._world, randomized(["camera", "light", "table"])
    randomize(world, slots, 0, 0)
    assert not same_picture(renderer.frames()["render_camera"], plain.frames["render_camera"][-1])
    world.restore()
    again = render(renderer, path, 0)
    assert np.array_equal(again.frames["render_camera"], plain.frames["render_camera"])
    assert "appearance" not in again.attributes


@pytest.mark.parametrize("name", ["fog", "camera=many", "MO_size", "shader", "all"])
def test_what_cannot_be_randomised_is_refused(name):
    with pytest.raises(UserError, match=name.partition("=")[0]):
        RenderSpec("PickCube-v1", "t.h5", 1, "", randomize=(name,))
    with pytest.raises(UserError, match="receiver_objects"):
        RenderSpec("LiftPegUpright-v1", "t.h5", 1, "", randomize=("color",))
