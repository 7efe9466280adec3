"""ManiSkill 3 benchmark: PushCube, PickCube and StackCube as the paper of PAR evaluates them (arXiv 2508.09822).

Key details:
- Episode i starts from environment seed ``first_seed + i % num_seeds``, in a newly built scene of one environment on
  the CPU: a seed's initial state depends on how many environments are made together.
- Actions are those of ``pd_joint_pos``: seven joint targets in radians, and the gripper in [-1, 1].
- An episode ends with the first success or after ``max_episode_steps``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.render import configure_sapien_render
from vla_eval.specs import IMAGE_RGB, LANGUAGE, DimSpec
from vla_eval.types import Action, EpisodeResult, Observation, Task

INSTRUCTIONS: dict[str, str] = {
    "PushCube-v1": "Push and move a cube to a goal region in front of it.",
    "PickCube-v1": "Grasp a red cube and move it to a target goal position.",
    "StackCube-v1": "Pick up a red cube and stack it on top of a green cube and let go of the cube without it falling.",
}


class ManiSkill3Benchmark(StepBenchmark):
    """ManiSkill 3 tasks of the Panda arm, seen through one camera.

    Non-obvious behaviors:
        - **Camera**: ManiSkill's ``render_camera`` (512x512) is no sensor, so its image is in no observation mode of
          ManiSkill; it is the only one in which PickCube's goal is visible.
        - **Shader**: with ``minimal`` the background is black, with ManiSkill's ``default`` it is grey.
        - **Rebuilt scenes**: PhysX keeps contacts between episodes, so each reset builds the scene anew.

    Args:
        tasks: Environment ids of ManiSkill.
        camera: ``render_camera``, or a sensor camera such as ``base_camera``.
        control_mode: Controller that takes the actions.
        max_episode_steps: Control steps after which an episode counts as failed.
        first_seed: Environment seed of the first episode.
        num_seeds: Environment seeds in use; further episodes repeat them.
        shader_pack: ManiSkill's shader pack.
        send_state: Include joint positions as ``state``.
        frame_every: Send an image in every n-th observation only, for a server that executes n actions per image.
    """

    render_backends = frozenset({"gpu", "cpu"})
    _ALL_RECORD_FIELDS = frozenset({"reward", "success"})
    _render_mode = "gpu"

    def __init__(
        self,
        tasks: list[str] | None = None,
        camera: str = "render_camera",
        control_mode: str = "pd_joint_pos",
        max_episode_steps: int = 400,
        first_seed: int = 20241201,
        num_seeds: int = 25,
        shader_pack: str = "minimal",
        send_state: bool = True,
        frame_every: int = 1,
    ) -> None:
        super().__init__()
        self.tasks = tasks or list(INSTRUCTIONS)
        self.camera = camera
        self.control_mode = control_mode
        self.max_episode_steps = max_episode_steps
        self.first_seed = first_seed
        self.num_seeds = num_seeds
        self.shader_pack = shader_pack
        self.send_state = send_state
        self.frame_every = frame_every
        self._env: Any = None
        self._env_id: str | None = None
        self._steps = 0
        self._success = False

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        ManiSkill3Benchmark._render_mode = mode
        return configure_sapien_render(mode, "MANISKILL3_VK_ICD")

    def cleanup(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def get_tasks(self) -> list[Task]:
        return [{"name": env_id, "env_id": env_id} for env_id in self.tasks]

    def reset(self, task: Task) -> Any:
        if self._env is None or self._env_id != task["env_id"]:
            self.cleanup()
            self._env = self._make(task["env_id"])
            self._env_id = task["env_id"]
        self._steps = 0
        self._success = False
        seed = self.first_seed + int(task.get("episode_idx", 0)) % self.num_seeds
        self._env.reset(seed=seed, options={"reconfigure": True})
        return None

    def step(self, action: Action) -> StepResult:
        values = np.asarray(action.get("actions", action.get("action")), np.float32).reshape(-1)
        wanted = self._env.unwrapped.single_action_space.shape
        assert values.shape == wanted, f"Action dimension mismatch: got {values.shape}, expected {wanted}"
        _, reward, _, _, info = self._env.step(values[None])
        self._steps += 1
        self._success = self._success or bool(info["success"].item())
        self._recorder.record_step(reward=float(reward.item()), success=self._success)
        done = self._success or self._steps >= self.max_episode_steps
        return StepResult(obs=None, reward=float(reward.item()), done=done, info={"success": self._success})

    def make_obs(self, raw_obs: Any, task: Task) -> Observation:
        obs: dict[str, Any] = {"images": {}, "task_description": INSTRUCTIONS.get(task["env_id"], "")}
        if self._steps % self.frame_every == 0:
            image = self._image()
            obs["images"] = {self.camera: image}
            self._recorder.record_video(image)
        if self.send_state:
            obs["state"] = self._env.unwrapped.agent.robot.get_qpos()[0].cpu().numpy().astype(np.float32)
        return obs

    def get_step_result(self, step_result: StepResult) -> EpisodeResult:
        return {"success": self._success}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": self.max_episode_steps}

    def get_action_spec(self) -> dict[str, DimSpec]:
        accepted = frozenset({self.control_mode, "raw"})
        return {"actions": DimSpec("actions", 8, self.control_mode, accepts=accepted)}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        spec = {"image": IMAGE_RGB, "language": LANGUAGE}
        return spec | ({"state": DimSpec("state", 9, "joint_positions")} if self.send_state else {})

    def _make(self, env_id: str) -> Any:
        import gymnasium as gym
        import mani_skill.envs  # noqa: F401 — register envs

        env = gym.make(
            env_id,
            num_envs=1,
            obs_mode="none",
            control_mode=self.control_mode,
            render_mode="rgb_array",
            sim_backend="physx_cpu",
            render_backend=self._render_mode,
            human_render_camera_configs={"shader_pack": self.shader_pack},
            sensor_configs={"shader_pack": self.shader_pack},
            max_episode_steps=self.max_episode_steps,
        )
        known = [*env.unwrapped.scene.human_render_cameras, *env.unwrapped.scene.sensors]
        assert self.camera in known, f"{env_id} has no camera {self.camera!r}; it has: {', '.join(known)}"
        return env

    def _image(self) -> np.ndarray:
        base = self._env.unwrapped
        if self.camera in base.scene.human_render_cameras:
            return base.render_rgb_array(self.camera)[0].cpu().numpy()
        base.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        sensor = base.scene.sensors[self.camera]
        sensor.capture()
        return sensor.get_obs(rgb=True, depth=False, segmentation=False, position=False)["rgb"][0].cpu().numpy()
