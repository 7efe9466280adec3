"""A task of one's own for the tests: PushCube under another name and with a dozen steps."""

from __future__ import annotations

from mani_skill.envs.tasks.tabletop.push_cube import PushCubeEnv
from mani_skill.utils.registration import register_env

from par_agent.tasks import TaskSpec


@register_env("NudgeCube-v1", max_episode_steps=50)
class NudgeCubeEnv(PushCubeEnv):
    """PushCube."""


NUDGE_CUBE = TaskSpec("NudgeCube-v1", "Nudge the cube.", max_steps=12)
CLASHING = TaskSpec("PushCube-v1", "Push.", max_steps=12)
