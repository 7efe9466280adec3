"""PAR: one autoregressive transformer that predicts the next image and the actions that lead to it.

The names below are imported when they are first used: `import par_agent` is quick and needs no renderer.

    import par_agent
    policy = par_agent.PARPolicy.from_pretrained("par-mini", task="PushCube")
    env = par_agent.make_env("PushCube", policy)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from par_agent.modeling.par import PARModel
    from par_agent.policy.par_policy import PARPolicy
    from par_agent.simulation.environment import make_env

__version__ = "0.1.0"

__all__ = ["PARModel", "PARPolicy", "__version__", "make_env"]

_LAZY = {
    "PARModel": "par_agent.modeling.par",
    "PARPolicy": "par_agent.policy.par_policy",
    "make_env": "par_agent.simulation.environment",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'par_agent' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
