"""What `--backend gpu` does with many environments: ManiSkill's own classes, and its rules where it needs a GPU.

ManiSkill simulates one environment on the CPU. Cameras, materials and joints of several are made of its real classes
here; a stand-in for the simulation as a whole keeps their tensors on a virtual CUDA device.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from par_agent import PARPolicy
from par_agent.errors import UserError
from par_agent.evaluation.protocol import load_states, protocol_file
from par_agent.evaluation.rollout import roll_out
from par_agent.evaluation.trace import RolloutTracer, Trace
from par_agent.evaluation.video_observer import VideoObserver
from par_agent.simulation import environment
from par_agent.simulation.end_effector import EndEffector
from par_agent.simulation.environment import InitialState, TaskEnvironment
from par_agent.simulation.variations import VARIATIONS
from par_agent.simulation.world import Draw, World
from par_agent.tasks import get_task
from tiny import task_checkpoint
from virtual_cuda import CudaTensor, virtual_cuda

SPEC = dataclasses.replace(get_task("PushCube"), max_steps=6)
ENVS = 3


class StandInSimulation:
    """A ManiSkill environment of many on the GPU, as far as :class:`TaskEnvironment` looks into it.

    Shapes, devices and arguments are those of ManiSkill's ``BaseEnv`` with ``gpu_sim_enabled``. The joints go where
    their targets are, once these have been handed over to the simulation.
    """

    reward_mode, control_mode, gpu_sim_enabled = "normalized_dense", "pd_joint_pos", True
    single_action_space = SimpleNamespace(shape=(8,))

    def __init__(self, num_envs: int, device: Any) -> None:
        self.unwrapped, self.num_envs, self.device = self, num_envs, device
        self.resets: list[dict[str, Any]] = []
        self.qpos = torch.zeros(num_envs, 9, device=device)
        self.targets = torch.full((num_envs, 9), 9.0, device=device)  # what a reset leaves
        self.applied = self.targets.clone()
        robot = SimpleNamespace(
            get_qpos=self.qpos.clone, active_joints=list(range(9)), set_joint_drive_targets=self.aim
        )
        self.agent = SimpleNamespace(robot=robot)
        config = SimpleNamespace(height=SPEC.image_size[0], width=SPEC.image_size[1])
        px = SimpleNamespace(gpu_apply_articulation_target_position=self.hand_over)
        self.scene = SimpleNamespace(human_render_cameras={SPEC.camera: SimpleNamespace(config=config)}, px=px)

    def aim(self, targets: torch.Tensor, joints: list[int]) -> None:
        self.targets[:, joints] = targets

    def hand_over(self) -> None:
        self.applied.copy_(self.targets)

    def get_obs(self, info: Any = None, unflattened: bool = False) -> dict[str, Any]:
        raise AssertionError("a reset or a step rendered the sensors")

    def get_state_dict(self) -> dict[str, Any]:
        return {"articulations": {"panda": torch.zeros(self.num_envs, 9, device=self.device)}}

    def reset(self, *, seed: Any, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        assert isinstance(seed, list) and len(seed) == self.num_envs
        assert ("reconfigure" in options) != ("reset_to_env_states" in options)
        self.resets.append({"seed": seed, **options})
        if states := options.get("reset_to_env_states"):
            state = states["env_states"]["articulations"]["panda"]
            assert state.shape == (self.num_envs, 9)
            self.qpos.copy_(state)
        self.elapsed = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
        return self.get_obs({}), self._info()

    def step(self, action: torch.Tensor | None) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        if action is not None:
            assert action.shape == (self.num_envs, 8)
            self.targets[:, :8] = action.to(self.device)
            self.hand_over()
        self.qpos.copy_(self.applied)
        self.elapsed += 1
        info = self._info()
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return self.get_obs(info, unflattened=True), self.elapsed / 10, info["success"].clone(), never, info

    def _info(self) -> dict[str, Any]:
        """Row 1 is solved after two steps."""
        solved = (self.elapsed == 2) & (torch.arange(self.num_envs, device=self.device) == 1)
        return {"elapsed_steps": self.elapsed.clone(), "success": solved}

    def render_rgb_array(self, camera: str) -> torch.Tensor:
        assert camera == SPEC.camera
        rows = torch.arange(self.num_envs, device=self.device)[:, None, None, None]
        images = torch.zeros(self.num_envs, *SPEC.image_size, 3, dtype=torch.uint8, device=self.device)
        return images + (40 * rows).to(torch.uint8)

    def close(self) -> None:
        """Nothing to free."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The virtual GPU, on which environments are simulated by the stand-in."""
    with virtual_cuda(monkeypatch) as there:
        monkeypatch.setattr(
            environment, "make_simulation", lambda spec, num_envs, **options: StandInSimulation(num_envs, there)
        )
        yield there


def states() -> list[InitialState]:
    """One per environment, told apart by their joints."""
    return [
        InitialState(row, 700 + row, {"articulations": {"panda": torch.full((1, 9), 0.1 * row)}}) for row in range(ENVS)
    ]


def many(variation: str = "none") -> TaskEnvironment:
    return TaskEnvironment(SPEC, "paper", backend="gpu", num_envs=ENVS, variation=variation)


def test_every_environment_starts_from_its_own_state_by_its_own_seed(device: Any) -> None:
    env = many()
    env.reset(states())
    built, placed = env.simulation.resets
    assert built == {"seed": [700, 701, 702], "reconfigure": True} and placed["seed"] == built["seed"]
    joints = env.observe(with_frame=False)["agent"]["qpos"]
    assert isinstance(joints, CudaTensor) and joints[:, 0].tolist() == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("policy_device", ["cuda", "cpu"])
def test_rollouts_on_the_gpu_are_stepped_recorded_traced_and_told_apart(
    device: Any, policy_device: str, tmp_path: Path
) -> None:
    task_checkpoint().save(tmp_path / "policy")
    policy = PARPolicy.from_pretrained(tmp_path / "policy", SPEC.instruction, device=policy_device)
    traced: dict[int, Trace] = {}

    class Tracer(RolloutTracer):
        def record_fields(self, position: int) -> dict[str, Any]:
            traced[position] = self.traces[position]
            return {"plans": len(self.traces[position].plans)}

    env = many()
    observers = [Tracer(env, policy, 1), VideoObserver(env, {2: tmp_path / "video.mp4"})]
    found = list(roll_out(env, policy, states(), 0, observers=observers))
    assert observers[1].warning(2) is None and (tmp_path / "video.mp4").exists()
    assert [position for position, _ in found] == [1, 0, 2]  # in the order in which they end
    records = dict(found)
    assert [records[row]["steps"] for row in range(ENVS)] == [6, 2, 6]
    assert [records[row]["success_once"] for row in range(ENVS)] == [False, True, False]
    assert [records[row]["reward"] for row in range(ENVS)] == pytest.approx([2.1, 0.3, 2.1])
    assert len({record["actions_sha256"] for record in records.values()}) == ENVS
    assert [records[row]["plans"] for row in range(ENVS)] == [2, 1, 2]
    assert [int(traced[row].plans[0].frame.max()) for row in range(ENVS)] == [0, 40, 80]
    assert all(trace.joints[0][0] == pytest.approx(0.1 * row) for row, trace in traced.items())


def test_a_delayed_robot_holds_still_on_the_gpu_too(device: Any) -> None:
    late = many("action_delay=0.25")
    late.reset(states())
    start = late.observe(with_frame=False)["agent"]["qpos"]
    late.step(torch.full((ENVS, 8), 0.7))
    held = late.observe(with_frame=False)["agent"]["qpos"]
    torch.testing.assert_close(held.cpu(), start.cpu())
    late.step(torch.full((ENVS, 8), 0.8))
    assert late.observe(with_frame=False)["agent"]["qpos"][:, 0].tolist() == pytest.approx([0.7] * ENVS)


def test_a_gpu_is_not_asked_for_where_there_is_none() -> None:
    with pytest.raises(UserError, match="--backend gpu needs an NVIDIA GPU"):
        many()


def test_every_camera_of_a_batch_moves_from_where_it_was() -> None:
    import sapien
    from mani_skill.utils.structs.render_camera import RenderCamera

    scene = SimpleNamespace(gpu_sim_enabled=True, device=torch.device("cpu"))
    poses = [sapien.Pose([0.5 * number, 0.1, 0.4], [0.8, 0.0, 0.6 * number, 0.6 * (1 - number)]) for number in (0, 1)]
    single = [sapien.render.RenderCameraComponent(8, 8) for _ in poses]
    for camera, pose in zip(single, poses, strict=True):
        camera.set_local_pose(pose)
    batch = RenderCamera.create(single, scene)
    assert batch.get_local_pose().raw_pose.shape == (2, 7)
    cameras = {"render_camera": SimpleNamespace(camera=batch)}
    base = SimpleNamespace(scene=SimpleNamespace(human_render_cameras=cameras, sensors={}))
    worlds, change = [World(base, SPEC, row) for row in (0, 1)], VARIATIONS["camera_pose"].change
    assert change is not None
    for row, world in enumerate(worlds):
        change(world, Draw("camera_pose", row))
        stored = world.drawn["camera_pose.render_camera"]
        np.testing.assert_allclose(batch.get_local_pose().raw_pose[row].numpy(), stored, atol=1e-5)
        moved = poses[row].inv() * sapien.Pose(stored[:3], stored[3:])
        assert 0.001 < np.abs(moved.p).max() <= 0.03 + 1e-4
        assert 0.001 < 2 * np.arccos(min(1.0, abs(float(moved.q[0])))) <= np.deg2rad(2 * 3**0.5)
        world.restore()
    for pose, now in zip(poses, batch.get_local_pose().raw_pose, strict=True):
        np.testing.assert_allclose(now.numpy(), [*pose.p, *pose.q], atol=1e-6)


def test_the_hand_is_where_its_own_environments_robot_stands() -> None:
    from mani_skill.utils.structs.pose import Pose

    env = TaskEnvironment(SPEC, "paper")
    env.reset(load_states(protocol_file(SPEC), SPEC)[:1])
    agent = env.simulation.agent
    joints = agent.robot.get_qpos().numpy()
    root = agent.robot.root_pose.raw_pose
    roots = Pose.create(torch.cat([root, root + torch.tensor([[0.0, 0.25, 0, 0, 0, 0, 0]])]))
    robot = SimpleNamespace(_objs=2 * list(agent.robot._objs), root_pose=roots)
    two: Any = SimpleNamespace(simulation=SimpleNamespace(agent=SimpleNamespace(robot=robot, tcp=agent.tcp)))
    alone = EndEffector(env).positions(joints)
    first, second = (EndEffector(two, row).positions(joints) for row in (0, 1))
    np.testing.assert_array_equal(first, alone)
    np.testing.assert_allclose(second - first, [[0.0, 0.25, 0.0]], atol=1e-6)
    env.close()


def test_targets_of_all_joints_are_written_for_every_environment() -> None:
    from mani_skill.utils.structs.articulation import Articulation

    buffer, applied = torch.zeros(ENVS, 9), []
    indices = torch.meshgrid(torch.arange(ENVS), torch.arange(9), indexing="ij")
    px = SimpleNamespace(
        cuda_articulation_target_qpos=SimpleNamespace(torch=lambda: buffer),
        gpu_apply_articulation_target_position=lambda: applied.append(buffer.clone()),
    )
    scene = SimpleNamespace(gpu_sim_enabled=True, _reset_mask=torch.ones(ENVS, dtype=torch.bool), px=px)
    positions = torch.arange(ENVS * 9.0).view(ENVS, 9)
    robot = SimpleNamespace(
        scene=scene, px=px, device=torch.device("cpu"), _scene_idxs=torch.arange(ENVS), active_joints=["joints"]
    )
    robot.get_qpos, robot.get_joint_target_indices = positions.clone, lambda joints: indices
    robot.set_joint_drive_targets = types.MethodType(Articulation.set_joint_drive_targets, robot)
    base = SimpleNamespace(agent=SimpleNamespace(robot=robot), scene=scene, gpu_sim_enabled=True)
    environment._hold_still(base)
    assert len(applied) == 1 and torch.equal(applied[0], positions)
