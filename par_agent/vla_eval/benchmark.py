"""`ManiSkill3Benchmark`: the tasks with their frozen initial states, on either track, as a vla-eval benchmark.

vla-eval run --config benchmarks/vla-eval/paper.yaml
"""

from __future__ import annotations

from typing import Any

import torch

from par_agent.errors import UserError
from par_agent.evaluation.initial_states import protocol_states
from par_agent.evaluation.rollout import RolloutProgress, derive_seed
from par_agent.simulation.environment import TaskEnvironment
from par_agent.simulation.variations import get_variation
from par_agent.tasks import (
    ALL_STATES,
    PAPER_TASKS,
    PROTOCOL_POLICY_SEEDS,
    PROTOCOL_STATES,
    TaskSpec,
    check_track,
    resolve_tasks,
)
from par_agent.utils.json_fields import is_count
from par_agent.vla_eval import MISSING
from par_agent.vla_eval.messages import action_interface, observation_interface, read_actions, to_message

try:
    from vla_eval.benchmarks.base import StepBenchmark, StepResult
    from vla_eval.specs import DimSpec
except ImportError as error:
    raise ImportError(MISSING.format(error)) from error


class ManiSkill3Benchmark(StepBenchmark):
    """Rolls a model server out as `par-agent benchmark` does: the same initial states, seeds, images and end.

    Episode i of a task starts from initial state ``i % states`` with policy seed ``i // states``, so the protocol is
    125 episodes a task. An episode ends with the first success or after the task's step limit. Its metrics hold
    ``success``, ``env_seed``, ``policy_seed`` and ``actions_sha256``, to be compared with ``rollouts.jsonl``.

    Give ``episodes_per_task`` with ``states`` (`--benchmark-field episodes_per_task=5` for one state): vla-eval counts
    missing episodes as failures.

    Args:
        tasks: by name, or ``module:NAME`` for a `TaskSpec` of your own.
        track: ``paper`` or ``native`` (:data:`par_agent.tasks.TRACKS`).
        variation: ``NAME`` or ``NAME=STRENGTH`` of :data:`par_agent.simulation.variations.VARIATIONS`.
        states: initial states per task: the protocol's first ones, above 25 also its further ones.
        send_state: whether observations hold joint positions.
        frame_every: send images in every n-th observation of an episode only. A PAR server sets it.
    """

    render_backends = frozenset({"cpu"})
    _ALL_RECORD_FIELDS = frozenset({"reward", "success"})

    def __init__(
        self,
        tasks: list[str] | None = None,
        track: str = "paper",
        *,
        variation: str = "none",
        states: int = PROTOCOL_STATES,
        send_state: bool = True,
        frame_every: int = 1,
    ) -> None:
        super().__init__()
        check_track(track)
        get_variation(variation)
        if not is_count(states) or states > ALL_STATES:
            raise UserError(f"states is {states!r}; it must be a whole number from 1 to {ALL_STATES}")
        if not is_count(frame_every):
            raise UserError(f"frame_every is {frame_every!r}; it must be a whole number of at least 1")
        self._specs = _specs(tasks)
        self._states = {name: protocol_states(spec, states) for name, spec in self._specs.items()}
        self._track, self._variation = track, variation
        self._send_state, self._frame_every = send_state, frame_every
        self._environment: TaskEnvironment | None = None
        self._start_rollout(next(iter(self._specs.values())), 0)

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        """Images are rendered on the CPU, as in `par-agent benchmark`; nothing has to be set."""
        return {}

    def get_tasks(self) -> list[dict[str, Any]]:
        """The tasks, each with the policy's seed of every episode."""
        return [
            {"name": name, "suite": self._track, "env_id": spec.env_id, "seeds": self._seeds(name)}
            for name, spec in self._specs.items()
        ]

    def get_metadata(self) -> dict[str, Any]:
        return {
            "max_steps": max(spec.max_steps for spec in self._specs.values()),
            "max_episodes_per_task": PROTOCOL_POLICY_SEEDS * len(next(iter(self._states.values()))),
        }

    def get_action_spec(self) -> dict[str, DimSpec]:
        return action_interface(self._spec.action_size, self._spec.control_mode)

    def get_observation_spec(self) -> dict[str, DimSpec]:
        spec = observation_interface(self._spec.joint_count)
        return spec if self._send_state else {key: value for key, value in spec.items() if key != "state"}

    def reset(self, task: dict[str, Any]) -> None:
        """Puts a new scene into the episode's initial state; raises UserError where there is no such episode."""
        spec, episode = self._specs[task["name"]], int(task["episode_idx"])
        count = len(self._seeds(spec.name))
        if episode >= count:
            raise UserError(f"episode {episode} of {spec.name}: there are {count}; set episodes_per_task to {count}")
        if self._environment is None or self._environment.spec is not spec:
            self.cleanup()
            self._environment = TaskEnvironment(spec, self._track, variation=self._variation)
        self._start_rollout(spec, episode)
        self._environment.reset([self._state])

    def step(self, action: dict[str, Any]) -> StepResult:
        """Executes one action; raises UserError for a chunk or one that does not fit."""
        assert self._environment is not None
        actions = read_actions(action, self._spec)
        if len(actions) > 1:
            raise UserError(
                f"the model server answered with a chunk of {len(actions)} actions; set its chunk_size, so that it "
                "keeps the chunk and answers every observation with one action"
            )
        executed, rollout = torch.from_numpy(actions), self._rollout
        result = self._environment.step(executed, planned=rollout.steps % self._frame_every == 0)
        reward = 0.0 if result.reward is None else result.reward[0]
        rollout.add(executed[0], result.success[0], reward)
        self._recorder.record_step(reward=reward, success=rollout.success)
        return StepResult(None, reward, rollout.success or rollout.steps >= self._spec.max_steps, {})

    def make_obs(self, raw_obs: None, task: dict[str, Any]) -> dict[str, Any]:
        """Observes the scene, with images where they are due."""
        assert self._environment is not None
        due = self._rollout.steps % self._frame_every == 0
        instruction = (self._environment.instructions or (self._spec.instruction,))[0]
        message = to_message(self._environment.observe(with_frame=due), instruction)
        if due:
            self._recorder.record_video(next(iter(message["images"].values())))
        if not self._send_state:
            del message["state"]
        return message

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        """Success, and what the episode can be found by in other results."""
        return {
            "success": self._rollout.success,
            "env_seed": self._state.env_seed,
            "policy_seed": self._policy_seed,
            "actions_sha256": self._rollout.record()["actions_sha256"],
        }

    def cleanup(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _start_rollout(self, spec: TaskSpec, episode: int) -> None:
        states = self._states[spec.name]
        self._spec = spec
        self._state = states[episode % len(states)]
        self._policy_seed = episode // len(states)
        self._rollout = RolloutProgress()

    def _seeds(self, name: str) -> list[int]:
        """The policy's seed of every episode of a task."""
        states = self._states[name]
        return [derive_seed(seed, state.env_seed) for seed in range(PROTOCOL_POLICY_SEEDS) for state in states]


def _specs(tasks: list[str] | None) -> dict[str, TaskSpec]:
    """The tasks by name; None: the paper's."""
    if isinstance(tasks, str) or tasks == []:
        raise UserError(f"tasks is {tasks!r}; it must be a list of tasks: --param 'tasks=[PushCube]'")
    specs = {spec.name: spec for spec in resolve_tasks(PAPER_TASKS if tasks is None else tasks).values()}
    if len({(spec.action_size, spec.control_mode, spec.joint_count) for spec in specs.values()}) > 1:
        raise UserError(f"{', '.join(specs)} are of different robots or controllers; run them one by one")
    return specs
