"""The environment that a trajectory file was recorded in, made anew from what its JSON and its states tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from par_agent.cli import main
from par_agent.errors import UserError
from par_agent.simulation.recorded_environment import check_states, make_recorded_environment
from recordings import require_renderer, run_in_this_process

JOINTS = {"control_mode": "pd_joint_pos"}


@pytest.fixture(scope="module", autouse=True)
def _renderer() -> None:
    require_renderer()


@pytest.fixture(scope="module")
def push() -> Any:
    env = make_recorded_environment("PushCube-v1", "none", JOINTS).unwrapped
    env.reset(seed=0)
    yield env
    env.close()


def states_of(env: Any) -> dict[str, dict[str, np.ndarray]]:
    return {kind: {n: rows.numpy() for n, rows in group.items()} for kind, group in env.get_state_dict().items()}


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        (
            JOINTS | {"gravity": 3, "obs_mode": "rgb"},
            "unexpected keyword argument 'gravity'.*control_mode='pd_joint_pos'",
        ),
        ({"control_mode": "pd_mind"}, "PushCube-v1 here as it was when it was recorded .*control_mode='pd_mind'"),
        (JOINTS | {"robot_uids": "r2d2"}, "PushCube-v1 here as it was .*robot_uids='r2d2'"),
        (JOINTS | {"sensor_configs": {"lens": 3}}, r"lens.*sensor_configs=\{'lens': 3\}"),
    ],
)
def test_options_that_maniskill_does_not_take_are_named(recorded: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_recorded_environment("PushCube-v1", "none", recorded)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UserError, match="ManiSkill cannot make PushTheMoon-v1 here as it was when it was recorded"):
        make_recorded_environment("PushTheMoon-v1", "none", {})


def test_missing_assets_are_named_with_what_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(*_: Any, **__: Any) -> None:
        raise EOFError  # a worker process has nobody to ask

    monkeypatch.setattr("gymnasium.make", asks)
    with pytest.raises(UserError, match=r"PickClutterYCB-v1 needs assets that are not here; .*download_asset"):
        make_recorded_environment("PickClutterYCB-v1", "none", {})


def test_cameras_keep_what_was_recorded_but_their_shaders() -> None:
    cameras = {"width": 64, "base_camera": {"height": 32, "shader_pack": "rt"}, "shader_pack": "rt-fast"}
    recorded = JOINTS | {"sensor_configs": cameras, "human_render_camera_configs": None, "shader_dir": "rt"}
    env = make_recorded_environment("PushCube-v1", "none", recorded).unwrapped
    config = env.scene.sensors["base_camera"].config
    assert (config.width, config.height, config.shader_pack) == (64, 32, "minimal")
    assert env.scene.human_render_cameras["render_camera"].config.shader_pack == "minimal"
    env.close()


def rename(group: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in group.items()}


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("actors", "cube", "kube", r"the actors .*kube.*; PushCube-v1 has .*cube.*, which differ in 'kube'"),
        ("articulations", "panda", "fetch", "the articulations fetch; PushCube-v1 has panda, which differ in 'fetch'"),
        ("actors", "cube", None, ".* which differ in 'cube'"),
        ("articulations", "panda", None, "the articulations none; PushCube-v1 has panda"),
    ],
)
def test_objects_of_other_names_are_refused(push: Any, kind: str, old: str, new: str | None, message: str) -> None:
    states = states_of(push)
    check_states(push, states, "t.h5: episode 4")
    renamed = {name: value for name, value in rename(states[kind], old, str(new)).items() if name != "None"}
    with pytest.raises(UserError, match=rf"t\.h5: episode 4 holds states of {message}.*another version of the task"):
        check_states(push, states | {kind: renamed}, "t.h5: episode 4")


def test_what_stands_still_may_be_absent_of_a_recording(push: Any) -> None:
    states = states_of(push)
    del states["actors"]["table-workspace"], states["actors"]["goal_region"]
    check_states(push, states, "t.h5: episode 4")


def test_a_robot_of_other_joints_is_refused(push: Any) -> None:
    states = states_of(push)
    states["articulations"]["panda"] = states["articulations"]["panda"][:, :-2]
    with pytest.raises(UserError, match=r"29 numbers per state of 'panda', PushCube-v1 has 31: .* another robot"):
        check_states(push, states, "t.h5: episode 4")


def test_a_file_that_fits_no_environment_is_refused_by_render_which_leaves_nothing(
    push: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("par_agent.cli.render.open_runner", run_in_this_process)
    path = tmp_path / "trajectory.h5"
    with h5py.File(path, "w") as file:
        for kind, group in states_of(push).items():
            for name, rows in rename(group, "cube", "kube").items():
                file[f"traj_0/env_states/{kind}/{name}"] = np.repeat(rows, 4, 0)
        file["traj_0/actions"] = np.zeros((3, 8), np.float32)
    entry = {"episode_id": 0, "episode_seed": 0, "control_mode": "pd_joint_pos"}
    env_info = {"env_id": "PushCube-v1", "env_kwargs": {"sensor_configs": None}}
    command = ["render", "--trajectory", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]
    for more, message in ((("--crop", "0", "0", "600", "10"), "does not lie inside the 512x512 image"), ((), "'kube'")):
        path.with_suffix(".json").write_text(json.dumps({"env_info": env_info, "episodes": [entry]}))
        assert main([*command, *more]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
