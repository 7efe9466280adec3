"""The ``paper`` track's observation: the image of the render camera and the robot's joint positions.

ManiSkill's own observation modes leave the render camera out, although it is the one the paper's videos show and the
only one in which PickCube's goal is visible. The wrapper below adds it to any ManiSkill environment.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from par_agent.errors import UserError


def paper_observation(base_env: Any, camera: str = "render_camera", *, with_frame: bool = True) -> dict[str, Any]:
    """Observes a ManiSkill environment the way the ``paper`` track does.

    Args:
        base_env: the unwrapped ManiSkill environment.
        camera: one of its human render cameras.
        with_frame: whether to render; a frame costs as much as some fifty control steps.

    Returns:
        ``{"agent": {"qpos": (B, joints) float32, radians}}``, and with a frame also
        ``{"sensor_data": {camera: {"rgb": (B, H, W, 3) uint8}}}``; tensors on the environment's device.
    """
    observation: dict[str, Any] = {"agent": {"qpos": base_env.agent.robot.get_qpos()}}
    if with_frame:
        observation["sensor_data"] = {camera: {"rgb": base_env.render_rgb_array(camera)}}
    return observation


class RenderCameraObservation(gym.Wrapper):
    """Puts the ``paper`` track's observation in place of a ManiSkill environment's own.

    Put it directly around ``gym.make`` (one environment on the CPU, any number on the GPU), inside ManiSkill's own
    wrappers. Make the environment with ``obs_mode="none"``: its own observation is not used.

        env = RenderCameraObservation(gym.make("PushCube-v1", obs_mode="none", control_mode="pd_joint_pos"), policy)
        observation, _ = env.reset(seed=0)
        action = policy.act(observation)

    With a policy, steps after which the policy will only pop an already planned action are not rendered and their
    observation has no ``sensor_data`` (``policy.needs_frame`` decides); without one, every step is rendered.

    Raises:
        UserError: not a ManiSkill environment, or one without the camera.
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
        self._base_env = base_env
        self._camera = camera
        self._policy = policy
        base_env.update_obs_space(paper_observation(base_env, camera))

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Resets the environment; the observation always has a frame."""
        _, info = self.env.reset(seed=seed, options=options)
        return paper_observation(self._base_env, self._camera), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Steps the environment; renders unless the policy does not need the frame."""
        _, reward, terminated, truncated, info = self.env.step(action)
        with_frame = bool(getattr(self._policy, "needs_frame", True))
        observation = paper_observation(self._base_env, self._camera, with_frame=with_frame)
        return observation, reward, terminated, truncated, info
