"""Training data of other controllers than `pd_joint_pos`, and policies that act through them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from par_agent.cli import main
from par_agent.data.conventions import check_conventions, fit_transforms
from par_agent.data.episodes import RenderedDataset, read_episode
from par_agent.data.index import EpisodeIndex
from par_agent.errors import UserError
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.initial_states import make_states
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.protocol import save_states, states_checksum
from par_agent.evaluation.rollout_worker import RolloutJob, RolloutWorker, WorkerSetup
from par_agent.evaluation.run_config import RunConfig
from par_agent.policy.observations import check_task
from par_agent.policy.transforms import Transforms
from par_agent.tasks import PROTOCOL_STATES, UNKNOWN_CONTROLLER, get_task, resolve_task
from par_agent.training.finetune import finetune
from par_agent.utils.json_fields import build
from recordings import record, require_renderer, run_in_this_process
from tiny import LENGTH, SIZE, task_checkpoint, tiny_dataset, tiny_run, tiny_transforms


def controlled(folder: Path, mode: str, size: int = SIZE, episodes: int = 3) -> EpisodeIndex:
    """A dataset of random actions of a controller."""
    tiny_dataset(folder, episodes=episodes)
    for number in range(episodes):
        with h5py.File(folder / "episodes" / f"episode_{number:06d}.h5", "a") as file:
            file.attrs["control_mode"] = mode
            actions = np.asarray(file["actions"])[:, :size]
            del file["actions"]
            file["actions"] = actions
    return EpisodeIndex(RenderedDataset(folder), LENGTH)


@pytest.mark.parametrize(("mode", "size"), [("pd_joint_delta_pos", 8), ("pd_ee_delta_pose", 7), ("pd_joint_vel", 8)])
def test_statistics_are_of_the_actions_as_recorded_where_they_are_no_joint_targets(
    tmp_path: Path, mode: str, size: int
) -> None:
    index = controlled(tmp_path, mode, size)
    transforms = fit_transforms([index], "render_camera", None)
    assert transforms.control_mode == mode and transforms.relative == (False,) * size
    complete = index.columns["target_actions"][index.columns["action_weights"].all(1)]
    np.testing.assert_allclose(transforms.action_mean, complete.mean(0), atol=1e-6)
    np.testing.assert_allclose(transforms.action_std, complete.std(0), atol=1e-6)


def test_a_dataset_of_two_controllers_is_refused(tmp_path: Path) -> None:
    controlled(tmp_path, "pd_joint_delta_pos")
    with h5py.File(tmp_path / "episodes" / "episode_000002.h5", "a") as file:
        file.attrs["control_mode"] = "pd_joint_vel"
    with pytest.raises(UserError, match=r"episode_000002\.h5 holds actions of pd_joint_vel, those before it of pd_jo"):
        EpisodeIndex(RenderedDataset(tmp_path), LENGTH)


def test_data_of_another_controller_than_the_checkpoints_is_refused_by_name(tmp_path: Path) -> None:
    first, second = controlled(tmp_path / "a", "pd_joint_delta_pos"), controlled(tmp_path / "b", "pd_joint_vel")
    transforms = fit_transforms([first], "render_camera", None)
    check_conventions([first], transforms, "the policy")
    with pytest.raises(
        UserError, match=r"are pd_joint_vel; the policy was trained with pd_joint_delta_pos: give --new"
    ):
        check_conventions([second], transforms, "the policy")
    with pytest.raises(UserError, match="differ in crop, size, control mode"):
        fit_transforms([first, second], "render_camera", None)
    unknown = dataclasses.replace(transforms, control_mode=UNKNOWN_CONTROLLER)
    check_conventions([first, second], unknown, "the policy")


def test_transforms_that_do_not_say_their_controller_are_refused_and_unknown_ones_fit_any_task() -> None:
    content = dataclasses.asdict(tiny_transforms())
    other = build(Transforms, content | {"control_mode": UNKNOWN_CONTROLLER, "relative": [False] * SIZE}, added=())
    check_task(dataclasses.replace(other, image_size=None), get_task("PushCube"))
    del content["control_mode"]
    with pytest.raises(UserError, match="missing fields in Transforms: control_mode"):
        build(Transforms, content, added=())


def test_a_new_camera_leaves_the_controller_as_it_was() -> None:
    own = dataclasses.replace(tiny_transforms(), relative=(False,) * SIZE, control_mode="pd_joint_vel")
    merged = own.with_camera_of(tiny_transforms("hand_camera"))
    assert (merged.camera, merged.control_mode, merged.relative) == ("hand_camera", "pd_joint_vel", (False,) * SIZE)


def test_a_policys_task_has_its_controller_and_is_not_called_the_protocols(tmp_path: Path) -> None:
    checkpoint = task_checkpoint()
    checkpoint.save(tmp_path / "joints")
    assert checkpoint.transforms is not None
    transforms = dataclasses.replace(checkpoint.transforms, relative=(False,) * SIZE, control_mode="pd_joint_delta_pos")
    dataclasses.replace(checkpoint, transforms=transforms).save(tmp_path / "changes")
    push, runs = get_task("PushCube"), {}
    for name in ("joints", "changes"):
        source = PolicySource(str(tmp_path / name))
        source.build(source.task(push))
        config = RunConfig(tasks=("PushCube",), policy=source, out=tmp_path / "out", states=PROTOCOL_STATES)
        runs[name] = BenchmarkRun(config)
    assert runs["joints"].info.specs == {"PushCube": push}
    assert runs["joints"].config.is_protocol and runs["joints"].config.protocol_label == "the protocol"
    assert runs["changes"].info.specs == {"PushCube": dataclasses.replace(push, control_mode="pd_joint_delta_pos")}
    assert not runs["changes"].config.is_comparable
    assert runs["changes"].config.protocol_label == "NOT THE PROTOCOL: control mode pd_joint_delta_pos, the protocol"
    with pytest.raises(UserError, match="commands pd_joint_delta_pos; task PushCube takes pd_joint_pos"):
        check_task(transforms, push)


def test_recorded_hand_movements_become_a_policy_that_moves_the_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a recording of `pd_ee_delta_pose` through frames and training to a rollout, at toy size."""
    require_renderer()
    task, spec = "harness_task:NUDGE_CUBE", resolve_task("harness_task:NUDGE_CUBE")
    path, data = tmp_path / "trajectory.h5", tmp_path / "rendered"
    record(path, spec.env_id, (9, 12), {}, "pd_ee_delta_pose")
    monkeypatch.setattr("par_agent.cli.render.open_runner", run_in_this_process)
    options = ["--instruction", spec.instruction, "--size", "16", "16", "--stride", str(LENGTH), "--workers", "1"]
    command = ["render", "--trajectory", str(path), "--out", str(data), "--include-failures", *options]
    assert main(command) == 0
    with h5py.File(path) as file:
        for number, episode in enumerate(map(read_episode, RenderedDataset(data).paths)):
            assert episode.attributes["control_mode"] == "pd_ee_delta_pose"
            assert np.array_equal(episode.actions, file[f"traj_{number}/actions"]) and episode.actions.shape[1] == 7

    config = tiny_run(tmp_path, data=(data,), new_robot=True, steps=2, validate_every=9, variants=1, shift=0)
    transforms = finetune(config).transforms
    assert transforms is not None
    assert (transforms.control_mode, transforms.relative) == ("pd_ee_delta_pose", (False,) * 7)

    source = PolicySource(str(config.out / "policy"))
    assert source.task(spec) == dataclasses.replace(spec, control_mode="pd_ee_delta_pose", action_size=7)
    states = tmp_path / "states.safetensors"
    save_states(states, spec, make_states(spec, [777]))
    job = RolloutJob(task, states, states.read_bytes(), states_checksum(states), (0,), policy_seed=0)
    (reply,) = RolloutWorker(WorkerSetup(RunConfig(tasks=(task,), policy=source)), tmp_path)(job)
    assert reply.error is None and reply.fields is not None, reply.traceback
    assert reply.fields["steps"] == spec.max_steps and reply.fields["renders"] == spec.max_steps // LENGTH
