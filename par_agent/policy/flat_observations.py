"""Reads observations that ManiSkill's ``FlattenRGBDObservationWrapper`` has flattened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, uint8

from par_agent.errors import UserError
from par_agent.policy.observations import as_tensor, simulations_of

CHANNELS = 3


@dataclass(frozen=True)
class FlatLayout:
    """Where the parts of an observation lie in the flattened one."""

    state: dict[str, dict[str, slice]]
    """Columns of ``obs["state"]``, by group (``agent``, ``extra``) and entry."""
    cameras: tuple[str, ...]
    """Cameras whose images lie one after the other in the channels of ``obs["rgb"]`` or ``obs["rgbd"]``."""

    def restored(self, obs: dict[str, Any]) -> dict[str, Any]:
        """A flattened observation, batched or not, as ManiSkill's own, without what no policy reads."""
        state = as_tensor(obs["state"], 'obs["state"]')
        parts = {group: {name: state[..., at] for name, at in entries.items()} for group, entries in self.state.items()}
        images: Tensor | None = None
        for name in ("rgb", "rgbd"):
            if name in obs:
                images = as_tensor(obs[name], f'obs["{name}"]').to(uint8)
        sensors: dict[str, Any] = {}
        if images is not None:
            for number, camera in enumerate(self.cameras):
                sensors[camera] = {"rgb": images[..., CHANNELS * number : CHANNELS * (number + 1)]}
        return {**parts, "sensor_data": sensors}


def flat_layout(env: Any) -> FlatLayout | None:
    """How an environment's observations are flattened; None: they are not."""
    if not any(type(wrapper).__name__ == "FlattenRGBDObservationWrapper" for wrapper in _wrappers(env)):
        return None
    base, state, first = simulations_of(env)[0], dict[str, dict[str, slice]](), 0
    for group, entries in base._get_obs_state_dict(base.get_info()).items():
        for name, size in _sizes(entries, base.num_envs):
            state.setdefault(group, {}).setdefault(name, slice(first, first + size))
            first += size
    return FlatLayout(state, tuple(base.scene.sensors))


def restored_observation(obs: Any, layout: FlatLayout | None) -> Any:
    """An observation as ManiSkill gives it, also where it comes flattened.

    Raises:
        UserError: it is flattened and there is no layout.
    """
    if not isinstance(obs, dict) or "state" not in obs or "agent" in obs:
        return obs
    if layout is None:
        raise UserError(
            'the observation is flattened (it has "state"): call policy.check(env) once, which finds out where joint '
            "positions and cameras lie in it"
        )
    return layout.restored(obs)


def _wrappers(env: Any) -> Iterator[Any]:
    """An environment and all that it wraps, from the outside in; of several, the first."""
    while env is not None:
        yield env
        inner = getattr(env, "envs", None)
        env = inner[0] if inner else getattr(env, "env", None) or getattr(env, "_env", None)


def _sizes(entries: dict[str, Any], batch: int) -> Iterator[tuple[str, int]]:
    """Names and numbers of columns of a group's entries, in the order in which they are flattened."""
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from _sizes(value, batch)
        else:
            yield name, as_tensor(value, name).numel() // batch
