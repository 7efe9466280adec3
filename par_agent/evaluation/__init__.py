"""Rolling a policy out under the paper's protocol (section 5.1): environment, frozen states, runner, statistics.

The names below are imported when they are first used; none of them needs a renderer to be imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from par_agent.evaluation.environment import TaskEnvironment
    from par_agent.evaluation.observation import RenderCameraObservation

__all__ = ["RenderCameraObservation", "TaskEnvironment"]

_LAZY = {
    "RenderCameraObservation": "par_agent.evaluation.observation",
    "TaskEnvironment": "par_agent.evaluation.environment",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'par_agent.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
