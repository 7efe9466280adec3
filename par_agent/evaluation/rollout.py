"""Rollouts: from initial states to success, the step limit or an exception, each as one flat record.

Letter: B environments that are stepped together, one on the ``cpu`` backend.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from par_agent.errors import UserError
from par_agent.policy.interface import Policy
from par_agent.utils.versions import installed_versions

if TYPE_CHECKING:
    import torch

    from par_agent.simulation.environment import InitialState, StepResult, TaskEnvironment

ROLLOUT_CODE = (
    *("modeling", "policy", "simulation", "tasks.py", "wordings.py"),
    *(f"evaluation/{name}.py" for name in ("protocol", "rollout", "stages")),
)
"""Files and folders whose code decides what a rollout does: a change of it starts a new run folder."""
TIMING_FIELDS = ("seconds", "plan_ms")
"""Fields of a record that differ between two runs of the same rollout; all others are equal to the bit."""


def rollout_versions() -> dict[str, str]:
    """Versions of all that decides a rollout; ``code`` is a hash of this package's own sources."""
    return installed_versions(("par-agent", "mani_skill", "sapien", "diffusers", "torch", "numpy"), ROLLOUT_CODE)


def derive_seed(policy_seed: int, env_seed: int) -> int:
    """The seed of one rollout's policy: a different one for every policy seed and initial state, 0 <= seed < 2**32."""
    import numpy as np

    return int(np.random.SeedSequence([policy_seed, env_seed]).generate_state(1)[0])


class RolloutObserver:
    """Watches the rollouts of some environments that are stepped together, and changes nothing about them.

    Observers override what they need. ``position`` is that of an environment among those stepped together.
    """

    def after_reset(self) -> None:
        """The environments are in their initial states."""

    def before_plan(self, observation: dict[str, Any]) -> None:
        """The policy is about to read this observation's frames and to plan."""

    def after_step(self, actions: torch.Tensor, result: StepResult) -> None:
        """The environments have executed actions (B, action_size)."""

    def record_fields(self, position: int) -> dict[str, Any]:
        """The rollout at `position` has ended; what its record gets besides."""
        return {}

    def warning(self, position: int) -> str | None:
        """What went wrong with the observation of a rollout that has ended, if anything did."""
        return None

    def close(self) -> None:
        """All rollouts have ended, or are given up."""


@dataclass
class RolloutProgress:
    """What is kept of one rollout while it goes on."""

    digest: Any = field(default_factory=hashlib.sha256)
    success: bool = False
    steps: int = 0
    steps_to_success: int | None = None
    reward: float | None = 0.0

    def add(self, action: torch.Tensor, success: bool, reward: float | None) -> None:
        """Adds a control step with its action (action_size)."""
        self.digest.update(action.numpy().tobytes())
        self.steps += 1
        self.success = success
        self.reward = None if self.reward is None or reward is None else self.reward + reward
        if success and self.steps_to_success is None:
            self.steps_to_success = self.steps

    def has_ended(self, max_steps: int, after_success: float) -> bool:
        """Whether it ends here, where it goes on for so many control steps after its first success."""
        end = math.inf if self.steps_to_success is None else self.steps_to_success + after_success
        return self.steps >= min(max_steps, end)

    def record(self, after_success: float = 0) -> dict[str, Any]:
        """What the rollout came to, once it has ended."""
        return {
            "success_once": self.steps_to_success is not None,
            "success_at_end": self.success if after_success else None,
            "steps": self.steps,
            "steps_to_success": self.steps_to_success,
            "reward": None if self.reward is None else round(self.reward, 6),
            "actions_sha256": self.digest.hexdigest()[:16],
        }


def roll_out(
    env: TaskEnvironment,
    policy: Policy,
    states: Sequence[InitialState],
    policy_seed: int,
    *,
    after_success: float = 0,
    observers: Sequence[RolloutObserver] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rolls a policy out once from every state, all at once, and yields each rollout as it ends.

    A rollout that has ended is stepped on with the others, unrecorded.

    Args:
        env: as many environments as there are states.
        policy: reset here, with a seed derived from `policy_seed` and the first state; its rows have to draw from
            streams of their own.
        states: (B) where the rollouts start.
        policy_seed: 0..4 in the protocol.
        after_success: control steps to go on after the first success; infinity: until the step limit.
        observers: told of every plan and every control step; their time counts in ``seconds`` alone.

    Yields:
        Position in `states` and a record of plain numbers: ``success_once`` (solved after any step), ``success_at_end``
        (solved after the last one; None if `after_success` is 0), ``steps`` executed, ``steps_to_success`` (None
        without success), ``reward`` (sum over steps; None where the task has none), ``renders`` (frames consumed),
        ``plan_ms`` (median time of an ``act()`` that plans, for all environments, milliseconds), ``seconds`` (wall time
        from the reset to the rollout's end), ``actions_sha256`` of all executed actions, and the observers' fields.
    """
    import torch

    started = time.perf_counter()
    seed = derive_seed(policy_seed, states[0].env_seed)
    _seed_everything(seed)
    env.reset(states)
    _reset_policy(policy, seed, env.instructions)
    for observer in observers:
        observer.after_reset()
    rollouts = {position: RolloutProgress() for position in range(len(states))}
    plan_seconds: list[float] = []
    while rollouts:
        needs_frame = bool(getattr(policy, "needs_frame", True))
        observation = env.observe(with_frame=needs_frame)
        for observer in observers if needs_frame else ():
            observer.before_plan(observation)
        asked = time.perf_counter()
        with torch.no_grad():
            actions = _checked_actions(policy.act(observation), (len(states), env.spec.action_size))
        if needs_frame:
            plan_seconds.append(time.perf_counter() - asked)
        result = env.step(actions, planned=needs_frame)
        for observer in observers:
            observer.after_step(actions, result)
        for position, rollout in list(rollouts.items()):
            reward = None if result.reward is None else result.reward[position]
            rollout.add(actions[position], result.success[position], reward)
            if rollout.has_ended(env.spec.max_steps, after_success):
                del rollouts[position]
                record = {
                    **rollout.record(after_success),
                    "renders": len(plan_seconds),
                    "plan_ms": round(1000 * median(plan_seconds), 2) if plan_seconds else None,
                    "seconds": round(time.perf_counter() - started, 3),
                }
                for observer in observers:
                    record |= observer.record_fields(position)
                yield position, record


def _seed_everything(seed: int) -> None:
    """Seeds the global generators too, for policies that draw from them."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _reset_policy(policy: Policy, seed: int, instructions: tuple[str, ...] | None) -> None:
    """Resets a policy; one whose ``reset`` takes no seed has to draw from the global generators.

    ``instructions`` (B) are given where they are not the task's own.
    """
    given: dict[str, Any] = {"seed": seed} if "seed" in inspect.signature(policy.reset).parameters else {}
    if instructions is not None:
        given["instruction"] = list(instructions)
    policy.reset(**given)


def _checked_actions(actions: Any, shape: tuple[int, int]) -> torch.Tensor:
    """A policy's actions as (B, action_size) float32 on the CPU; raises UserError for what are no finite numbers."""
    import torch

    actions = torch.as_tensor(actions)
    if actions.dtype == torch.bool or actions.is_complex():
        raise UserError(f"the policy returned actions of type {actions.dtype}; expected float32")
    actions = actions.detach().to("cpu", torch.float32)
    if tuple(actions.shape) != shape:
        raise UserError(f"the policy returned actions of shape {tuple(actions.shape)}; expected {shape}")
    if not bool(torch.isfinite(actions).all()):
        raise UserError(f"the policy returned an action that is not finite: {actions.tolist()}")
    return actions.contiguous()
