"""Corrections of a policy by ManiSkill's motion planner (DAgger, Ross et al. 2011, arXiv 1011.0686).

The policy is rolled out from one environment seed after another. At some moment the planner opens the hand, draws it
back, and solves the task from there. What it then does is kept if it succeeds: a demonstration in ManiSkill's
trajectory format whose first state is the one that the policy had come to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from par_agent.data.demos import FILE_NAME, DemoRequest
from par_agent.errors import UserError
from par_agent.evaluation.initial_states import make_states
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.rollout import RolloutObserver, roll_out
from par_agent.evaluation.stages import StageObserver
from par_agent.jobs.runner import DoJob, Prepare
from par_agent.simulation import planning
from par_agent.tasks import Track, resolve_task
from par_agent.utils.checked import Seed

if TYPE_CHECKING:
    import torch

    from par_agent.simulation.environment import InitialState, StepResult, TaskEnvironment

Moment = Literal["error", "stall", "random"]
"""When the planner takes over. error: a stage is lost (the hand leaves the object that it had reached, or drops it).
stall: the hand has moved less than a centimetre in 24 control steps. random: at a control step drawn from the first
100."""
MOMENTS: tuple[Moment, ...] = get_args(Moment)
STALL_STEPS, STALL_DISTANCE = 24, 0.01
"""Control steps, and metres that the hand moves in them when it stalls."""
LATEST = 100
"""Control step before which random moments lie."""
RETREAT = 0.08
"""Metres that the hand is drawn back before the planner solves the task."""
SOURCE = ("dagger", "ManiSkill's motion planner, from a state that a policy had come to")


@dataclass(frozen=True, kw_only=True)
class DaggerRequest(DemoRequest):
    """Which corrections to make. Equal requests give equal files, on one machine."""

    first_seed: Seed = 2_000_000
    """Environment seed of the first rollout."""
    policy: PolicySource
    """The policy that is corrected."""
    track: Track = "paper"
    """What it observes."""
    moments: tuple[Moment, ...] = MOMENTS
    """When the planner takes over; every rollout draws one of them from its seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        planning.check_panda(self.env_id)
        mode = (self.policy.controller or ("pd_joint_pos", 0))[0]
        if mode != "pd_joint_pos":
            raise UserError(f"the planner's corrections are pd_joint_pos actions; {self.policy.label} acts in {mode}")

    def path(self, out: Path) -> Path:
        return Path(out) / self.env_id / SOURCE[0] / FILE_NAME

    def record(self) -> dict[str, Any]:
        return {
            **super().record(),
            "policy": self.policy.reference,
            "policy_hash": self.policy.fingerprint(),
            "policy_options": self.policy.deciding_options,
            "track": self.track,
            "moments": list(self.moments),
        }

    def maker(self) -> tuple[Prepare, Any]:
        return correction_maker, self


def correction_maker(request: DaggerRequest, parts: Path) -> DoJob:
    """What a worker does: makes the part of a request whose first seed it is given."""
    spec = resolve_task(request.task)

    def make(first: int) -> Iterator[int | Path]:
        def begin() -> tuple[Any, planning.Attempt]:
            states = make_states(spec, range(first, first + planning.SEEDS_PER_PART))
            env, policy = request.policy.open(spec, request.track)

            def attempt(recorder: Any, seed: int) -> int | None:
                generator = np.random.default_rng(seed)
                moment = request.moments[int(generator.integers(len(request.moments)))]
                taking_over = TakingOver(env, moment, int(generator.integers(1, LATEST)))
                came = comes_to(env, policy, states[seed - first], taking_over)
                return correct(recorder, spec.env_id, seed) if came else None

            return planning.as_it_is(env.simulation), attempt

        return planning.record_part(first, parts, begin, SOURCE)

    return make


class _Now(Exception):
    """The moment has come."""


class TakingOver(RolloutObserver):
    """Ends a rollout at a moment at which the hand holds nothing, by an exception.

    Args:
        env: one environment.
        moment: one of :data:`MOMENTS`.
        step: first control step at which ``random`` may end it.
    """

    def __init__(self, env: TaskEnvironment, moment: Moment, step: int) -> None:
        self._env, self._moment, self._first = env, moment, step
        self._stages = StageObserver(env)
        self._hand: list[torch.Tensor] = []

    def after_reset(self) -> None:
        self._stages.after_reset()
        self._hand = [self._position()]

    def after_step(self, actions: torch.Tensor, result: StepResult) -> None:
        self._stages.after_step(actions, result)
        self._hand.append(self._position())
        if not result.success[0] and not self.holds_object and self._has_come():
            raise _Now

    @property
    def holds_object(self) -> bool:
        """Whether the hand holds the task's object now; False for tasks without a grasp."""
        return bool(self._stages.holds.get("grasped", False))

    def _position(self) -> torch.Tensor:
        position: torch.Tensor = self._env.simulation.agent.tcp_pos[0].clone()
        return position

    def _has_come(self) -> bool:
        if self._moment == "random":
            return len(self._hand) > self._first
        if self._moment == "stall":
            recent = self._hand[-STALL_STEPS - 1 :]
            return len(recent) > STALL_STEPS and float((recent[-1] - recent[0]).norm()) < STALL_DISTANCE
        holds, came = self._stages.holds, self._stages.came
        lost = any(bool(came[stage]) and not bool(holds[stage]) for stage in ("reached", "grasped") if stage in holds)
        return lost and not bool(holds["placed"])


def comes_to(env: TaskEnvironment, policy: Any, state: InitialState, taking_over: TakingOver) -> bool:
    """Rolls a policy out; whether it came to the moment, or failed with an empty hand at its step limit."""
    try:
        for _, record in roll_out(env, policy, [state], state.env_seed, observers=[taking_over]):
            return not record["success_once"] and not taking_over.holds_object
    except _Now:
        return True
    return False


def correct(recorder: Any, env_id: str, seed: int) -> int | None:
    """Solves a task from the state that an environment is in. Returns the control steps, or None where that fails."""
    recorder.reset(seed=seed)
    with redirect_stdout(None):
        planning.let_go(recorder, RETREAT)
    return planning.solve(planning.as_it_is(recorder), env_id, seed)
