"""One task's environment and policy, to roll out single initial states with observers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from par_agent.errors import UserError
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.protocol import load_states, protocol_file
from par_agent.evaluation.records import Record
from par_agent.evaluation.rollout import RolloutObserver, roll_out
from par_agent.evaluation.trace import read_frames
from par_agent.policy.par_policy import PARPolicy
from par_agent.simulation.environment import InitialState, StepResult
from par_agent.tasks import TaskSpec


class RolloutSession:
    """Use it as a context manager; within it torch computes with one thread, as in the benchmark.

    ``states_file`` gives the file of initial states; it is called once the policy is known to fit the task.
    """

    def __init__(
        self,
        spec: TaskSpec,
        source: PolicySource,
        track: str = "paper",
        states_file: Callable[[TaskSpec], Path] = protocol_file,
        *,
        variation: str = "none",
    ) -> None:
        self.env, policy = source.open(spec, track, variation=variation)
        if not isinstance(policy, PARPolicy):
            self.env.close()
            raise UserError(f"policy {type(policy).__name__} is no PAR checkpoint, and only these can be drawn")
        self.policy, self.spec = policy, self.env.spec
        self.states = load_states(states_file(self.spec), self.spec)

    def __enter__(self) -> RolloutSession:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the benchmark's workers do: sums in another order end in other rollouts
        return self

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(self._threads)
        self.env.close()

    def title(self, state: int, policy_seed: int) -> str:
        """A rollout's name in figures."""
        return f"{self.spec.name}, state {state}, policy seed {policy_seed}"

    def roll_out(self, state: int, policy_seed: int, observers: Sequence[RolloutObserver]) -> Record:
        """Rolls the policy out from initial state number ``state``; returns the rollout's record."""
        [(_, record)] = roll_out(self.env, self.policy, [self.state(state)], policy_seed, observers=observers)
        return record

    def state(self, number: int) -> InitialState:
        """An initial state; raises UserError where there is no such one."""
        if not 0 <= number < len(self.states):
            raise UserError(f"state is {number}; {self.spec.name} has the states 0 to {len(self.states) - 1}")
        return self.states[number]


class FrameObserver(RolloutObserver):
    """Keeps the frames of a rollout of a session, cropped and resized as the model sees them.

    Those are kept after every ``every`` control steps, of plans, and the last one. ``on_step`` is called after every
    control step with the number executed.
    """

    def __init__(
        self, session: RolloutSession, every: int, on_step: Callable[[int], None] = lambda steps: None
    ) -> None:
        self.policy = session.policy
        self.steps = 0
        """Control steps executed."""
        self.frames: dict[int, np.ndarray] = {}
        """(H, W, 3) uint8 by the number of control steps executed before."""
        self._env, self._every, self._on_step = session.env, every, on_step

    def before_plan(self, observation: dict[str, Any]) -> None:
        self._keep(observation)

    def after_step(self, actions: torch.Tensor, result: StepResult) -> None:
        self.steps += 1
        if self.steps % self._every == 0 or result.success[0] or self.steps == self._env.spec.max_steps:
            self._keep(self._env.observe())
        self._on_step(self.steps)

    def _keep(self, observation: dict[str, Any]) -> None:
        self.frames[self.steps] = read_frames(self.policy, observation)[0]
