"""Gymnasium's ids of this package's tasks. Importing this module registers them, and ManiSkill's own ids.

    import gymnasium as gym
    import par_agent.envs
    env = gym.make("par_agent/PickCube-v1", track="native")

Other options are those of :func:`par_agent.make_env`. ``gym.make("par_agent.envs:par_agent/PickCube-v1")`` imports this
module itself.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import mani_skill.envs  # noqa: F401  (registers ManiSkill's environments)

from par_agent.simulation.environment import make_env
from par_agent.tasks import TASKS


def make_track(task: str, track: Any = "paper", **options: Any) -> Any:
    """The environment of a task as a track shows it; see :func:`par_agent.make_env`."""
    return make_env(task, track, **options)


for _spec in TASKS.values():
    gym.register(
        f"par_agent/{_spec.env_id}",
        "par_agent.envs:make_track",
        kwargs={"task": _spec.name},
        disable_env_checker=True,
        order_enforce=False,
    )
