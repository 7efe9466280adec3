"""The ``paper`` track's observation: the image of the render camera and the robot's joint positions.

ManiSkill's own observation modes leave the render camera out, although it is the one the paper's videos show and the
only one in which PickCube's goal is visible. The wrapper below adds it to any ManiSkill environment.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from par_agent.errors import UserError


def paper_observation(base_env: Any, camera: str = "render_camera", *, with_frame: bool = True) -> dict[str, Any]:
    """Observes an unwrapped ManiSkill environment the way the ``paper`` track does.

    Returns:
        ``{"agent": {"qpos": (B, joints) float32, radians}}``; with a frame, which costs as much as some fifty control
        steps, also ``{"sensor_data": {camera: {"rgb": (B, H, W, 3) uint8}}}``; tensors on the environment's device.
    """
    observation: dict[str, Any] = {"agent": {"qpos": base_env.agent.robot.get_qpos()}}
    if with_frame:
        observation["sensor_data"] = {camera: {"rgb": base_env.render_rgb_array(camera)}}
    return observation


def check_simulation(policy: Any, env: gym.Env, camera: str | None = None) -> None:
    """Calls ``policy.check(env)``; a policy without ``transforms`` is not looked at.

    ``camera`` is the only one that is shown; None: all of the environment's are.
    """
    from par_agent.policy.chunk_policy import ChunkPolicy
    from par_agent.policy.observations import check_environment, quoted
    from par_agent.policy.transforms import Transforms

    transforms = getattr(policy, "transforms", None)
    if not isinstance(transforms, Transforms):
        return
    if camera is not None and transforms.cameras != (camera,):
        raise UserError(
            f"this checkpoint sees through {quoted(transforms.cameras)}; only {camera!r} is shown here: "
            "par_agent.make_env makes an environment that fits a policy"
        )
    if isinstance(policy, ChunkPolicy):
        policy.check(env)
    else:
        check_environment(transforms, env)


class RenderCameraObservation(gym.Wrapper):
    """Puts the ``paper`` track's observation in place of a ManiSkill environment's own.

    Put it directly around ``gym.make`` (one environment on the CPU, any number on the GPU), inside ManiSkill's own
    wrappers. Make the environment with ``obs_mode="none"``: its own observation is not used.
    :func:`par_agent.make_env` does all of that.

        env = RenderCameraObservation(gym.make("PushCube-v1", obs_mode="none", control_mode="pd_joint_pos"), policy)
        observation, _ = env.reset(seed=0)
        action = policy.act(observation)

    If the policy needs no image next (``policy.needs_frame``), the step is not rendered and the last image is repeated.
    ``observation["sensor_data"][camera]["age"]`` (B,) int32 counts the control steps since it was rendered. A policy
    that needs an image refuses an old one. Without a policy, every step is rendered.

    Raises:
        UserError: not a ManiSkill environment, one without the camera, or one that does not fit the policy: another
            camera, image size, number of joints or controller.
    """

    def __init__(self, env: gym.Env, policy: Any = None, *, camera: str = "render_camera") -> None:
        super().__init__(env)
        base_env: Any = env.unwrapped
        if not hasattr(base_env, "render_rgb_array"):
            raise UserError(f"expected a ManiSkill environment, got {type(base_env).__name__}")
        cameras = list(base_env.scene.human_render_cameras)
        if camera not in cameras:
            raise UserError(
                f"{type(base_env).__name__} has no render camera {camera!r}; it has: {', '.join(cameras) or 'none'}"
            )
        check_simulation(policy, env, camera)
        self._base_env = base_env
        self._camera = camera
        self._policy = policy
        self._image: Any = None
        self._age = 0
        base_env.update_obs_space(self._observe(look=True))

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Resets the environment; the observation's image is new."""
        _, info = self.env.reset(seed=seed, options=options)
        return self._observe(look=True), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Steps the environment; renders unless the policy does not need the frame."""
        _, reward, terminated, truncated, info = self.env.step(action)
        look = bool(getattr(self._policy, "needs_frame", True))
        return self._observe(look=look), reward, terminated, truncated, info

    def _observe(self, *, look: bool) -> dict[str, Any]:
        """The observation, with a new image or the last one again."""
        import torch

        from par_agent.policy.observations import AGE

        observation = paper_observation(self._base_env, self._camera, with_frame=look)
        if look:
            self._image, self._age = observation["sensor_data"][self._camera]["rgb"], 0
        else:
            self._age += 1
        joints = observation["agent"]["qpos"]
        age = joints.new_full((len(joints),), self._age, dtype=torch.int32)
        return {**observation, "sensor_data": {self._camera: {"rgb": self._image, AGE: age}}}
