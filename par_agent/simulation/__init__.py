"""ManiSkill, and the only place that touches its private parts: environments, observations, variations, planners.

The names below are imported when they are first used; none of them needs a renderer to be imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from par_agent.simulation.environment import TaskEnvironment, make_env
    from par_agent.simulation.observation_wrapper import RenderCameraObservation

__all__ = ["RenderCameraObservation", "TaskEnvironment", "make_env"]

_LAZY = {
    "RenderCameraObservation": "par_agent.simulation.observation_wrapper",
    "TaskEnvironment": "par_agent.simulation.environment",
    "make_env": "par_agent.simulation.environment",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'par_agent.simulation' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
