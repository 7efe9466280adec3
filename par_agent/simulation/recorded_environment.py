"""Makes the ManiSkill environment of a trajectory file again, and shows recorded states in it."""

from __future__ import annotations

from typing import Any

import numpy as np

from par_agent.errors import UserError
from par_agent.simulation.environment import open_environment

StateDict = dict[str, dict[str, np.ndarray]]
"""``{"actors": {name: (E + 1, 13)}, "articulations": {name: (E + 1, 13 + 2 * dof)}}``, float32.

A row is position (3, metres), quaternion (4, w first), linear and angular velocity (6), then joint positions and
velocities."""

OVERRIDDEN_OPTIONS = (
    *("obs_mode", "render_mode", "reward_mode", "num_envs", "parallel_in_single_scene"),
    *("sim_backend", "render_backend", "shader_dir", "viewer_camera_configs"),
)
"""Options of a recorded environment that do not change what its cameras show; they are chosen here."""
_FAULTS = (ImportError, OSError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
"""What ManiSkill raises for options that it does not take, and where it does not work."""


def make_recorded_environment(env_id: str, obs_mode: str, recorded: dict[str, Any], shader: str = "minimal") -> Any:
    """The environment as it was when it was ``recorded``, its robot for example, on the CPU."""
    import gymnasium

    if ":" in env_id:  # Gymnasium would import what stands before it
        raise UserError(f"the trajectory file's JSON names the environment {env_id!r}; expected a plain name")
    options = {name: value for name, value in recorded.items() if name not in OVERRIDDEN_OPTIONS}
    for cameras in ("sensor_configs", "human_render_camera_configs"):
        options[cameras] = {**_without_shaders(options.get(cameras) or {}), "shader_pack": shader}
    try:
        return open_environment(
            env_id,
            obs_mode=obs_mode,
            render_mode="rgb_array",
            sim_backend="physx_cpu",
            render_backend="cpu",
            **options,
        )
    except (EOFError, SystemExit):  # it asks whether to download them
        raise UserError(
            f"{env_id} needs assets that are not here; python -m mani_skill.utils.download_asset gets those of tasks "
            "and robots by their names"
        ) from None
    except (gymnasium.error.Error, *_FAULTS) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in recorded.items() if name not in OVERRIDDEN_OPTIONS)
        raise UserError(
            f"ManiSkill cannot make {env_id} here as it was when it was recorded ({type(error).__name__}: {error}); "
            f"the trajectory file's JSON tells the options {given or 'none'} in env_kwargs, and `par-agent doctor` "
            "whether ManiSkill works here"
        ) from error


def _without_shaders(cameras: dict[str, Any]) -> dict[str, Any]:
    """Options of all cameras and, by name, of single ones, whose shaders are left out."""
    return {
        name: _without_shaders(value) if isinstance(value, dict) else value
        for name, value in cameras.items()
        if name not in ("shader_pack", "shader_config")
    }


def set_state(env: Any, states: StateDict, step: int) -> None:
    """Puts ManiSkill's own environment ``env`` into row ``step`` of recorded states."""
    import torch

    row = {
        kind: {name: torch.from_numpy(rows[step : step + 1]) for name, rows in group.items()}
        for kind, group in states.items()
    }
    env.set_state_dict(row)


def camera_images(env: Any, cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Camera -> (H, W, 3) uint8 RGB of the present state; cameras that are not named are not rendered."""
    images = {}
    if "render_camera" in cameras:
        images["render_camera"] = env.render_rgb_array("render_camera")[0].cpu().numpy()
    if sensors := [camera for camera in cameras if camera != "render_camera"]:
        for hidden in env._hidden_objects:
            hidden.hide_visual()
        env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        for camera in sensors:
            sensor = env.scene.sensors[camera]
            sensor.capture()
            observed = sensor.get_obs(rgb=True, depth=False, position=False, segmentation=False)
            images[camera] = observed["rgb"][0].cpu().numpy()
    return images


def extra_observations(env: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Extra observation -> (n,) float32 of the present state, of those among ``names`` that the task has.

    Observations of contacts need a control step and are not right here.
    """
    if not names:
        return {}
    observed = env._get_obs_extra(env.get_info())
    return {name: observed[name][0].reshape(-1).float().cpu().numpy() for name in names if name in observed}


def check_states(env: Any, states: StateDict, where: str) -> None:
    """Compares the objects of recorded states with those of ManiSkill's own environment, reset to the episode.

    Raises:
        UserError: an object is missing on one side, or has other joints; ``where`` names the recording. Objects that
            never move may be missing in the recording; they stay where the reset puts them.
    """
    expected, registry = env.get_state_dict(), env.scene.state_dict_registry.actors
    for kind in sorted({*expected, *states}):
        known, given = expected.get(kind, {}), states.get(kind, {})
        moving = {n for n in known if n not in registry or registry[n].px_body_type == "dynamic"}
        wrong = sorted(set(given) - set(known)) or sorted(moving - set(given))
        if wrong:
            raise UserError(
                f"{where} holds states of the {kind} {', '.join(given) or 'none'}; {env.spec.id} has "
                f"{', '.join(known) or 'none'}, which differ in {wrong[0]!r}: it was recorded in another version of "
                "the task, or with another robot than env_kwargs says"
            )
        for name, rows in given.items():
            if rows.shape[1] != known[name].shape[1]:
                raise UserError(
                    f"{where} holds {rows.shape[1]} numbers per state of {name!r}, {env.spec.id} has "
                    f"{known[name].shape[1]}: it was recorded with another robot than env_kwargs says"
                )
