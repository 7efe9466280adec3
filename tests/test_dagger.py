"""Corrections of real policies by ManiSkill's real motion planner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from par_agent.cli import main
from par_agent.data.demos import make_demos
from par_agent.data.trajectory import TrajectoryFile
from par_agent.errors import UserError
from par_agent.evaluation.dagger import DaggerRequest, TakingOver, comes_to
from par_agent.evaluation.initial_states import make_states
from par_agent.evaluation.policies import PolicySource
from par_agent.simulation.environment import TaskEnvironment, open_environment
from par_agent.simulation.planning import part_folder, record_part, solve
from par_agent.tasks import get_task
from par_agent.utils.files import write_json
from recordings import require_renderer, run_in_this_process

SEED = 2_000_000
REST = np.array([0, np.pi / 8, 0, -np.pi * 5 / 8, 0, np.pi * 3 / 4, np.pi / 4])
"""Joint positions after a reset, with noise of 0.02 radians."""


class Noted(gym.Wrapper):
    """An environment that notes its actions."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.actions: list[torch.Tensor] = []

    def step(self, action: Any) -> Any:
        self.actions.append(torch.as_tensor(action, dtype=torch.float32)[None])
        return self.env.step(action)


class Repeated:
    """Repeats the planner's actions, with an open hand if told so; then it stays."""

    action_size, needs_frame = 8, False

    def __init__(self, actions: list[torch.Tensor], open_hand: bool) -> None:
        self._actions, self._open = actions, open_hand

    def reset(self, seed: int | None = None) -> None:
        self._left = list(self._actions)

    def act(self, obs: dict[str, Any]) -> torch.Tensor:
        self._last = (self._left.pop(0) if self._left else self._last).clone()
        if self._open:
            self._last[:, 7] = 1
        return self._last


@pytest.fixture(scope="module")
def planned() -> list[torch.Tensor]:
    """The planner's actions from :data:`SEED`."""
    require_renderer()
    env = Noted(open_environment("PickCube-v1", obs_mode="none", control_mode="pd_joint_pos", sim_backend="physx_cpu"))
    assert solve(env, "PickCube-v1", SEED)
    env.close()
    return env.actions


def test_a_missed_grasp_is_an_error_and_a_grasp_is_left_alone(planned: list[torch.Tensor]) -> None:
    env = TaskEnvironment(get_task("PickCube"), "paper")
    (state,) = make_states(env.spec, [SEED])
    cube, hand = env.simulation.cube, env.simulation.agent
    assert comes_to(env, Repeated(planned, open_hand=True), state, TakingOver(env, "error", 1))
    assert (cube.pose.p - hand.tcp_pos).norm() > 0.05 and float(cube.pose.p[0, 2]) < 0.03
    assert comes_to(env, Repeated(planned, open_hand=True), state, TakingOver(env, "stall", 1))  # above the goal
    holding = len(planned) - 1
    assert not comes_to(env, Repeated(planned, open_hand=False), state, TakingOver(env, "random", holding))
    env.close()


def test_corrections_begin_where_the_policy_had_come_to_and_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_renderer()
    monkeypatch.setattr("par_agent.data.demos.open_runner", run_in_this_process)
    command = ["dagger", "--task", "PushCube", "--policy", "harness_policies:BlindPolicy", "--num", "2"]
    command += ["--moments", "random", "--out", str(tmp_path)]
    assert main(command) == 0
    path = tmp_path / "PushCube-v1" / "dagger" / "trajectory.none.pd_joint_pos.physx_cpu.h5"
    assert str(path) in capsys.readouterr().out
    with TrajectoryFile(path) as file:
        for number in file.episodes:
            episode, seed = file.read(number), file.info(number).seed
            assert seed >= SEED and file.succeeded(number)
            moved = episode.joint_positions("panda")[0, :7] - REST
            assert abs(moved).max() > 0.1  # radians, by random motion
            assert episode.actions[0, 7] == 1  # the hand opens first
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["source_type"] == "dagger" and about["request"]["moments"] == ["random"]
    assert main([*command, "--max-steps", "150"]) == 2
    assert "was made with" in capsys.readouterr().err


def test_parts_of_one_policy_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    require_renderer()
    blind = PolicySource("harness_policies:BlindPolicy")
    request = DaggerRequest("PushCube", policy=blind)
    parts = request.path(tmp_path).parent / ".parts"
    part_folder(parts, SEED).mkdir(parents=True)
    write_json(parts / "request.json", request.record())
    with pytest.raises(UserError, match=r"was begun with other settings \(moments: .*choose another --out"):
        make_demos(DaggerRequest("PushCube", policy=blind, moments=("stall",)), tmp_path)


def test_other_options_of_a_policy_make_other_corrections() -> None:
    requests = [DaggerRequest("PushCube", policy=PolicySource("par-mini", {"context": n})).record() for n in (1, 3)]
    assert requests[0] != requests[1]


def test_a_part_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    part_folder(tmp_path, SEED).mkdir()
    assert list(record_part(SEED, tmp_path, lambda: pytest.fail("begun"), ("", ""))) == [part_folder(tmp_path, SEED)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"moments": ()}, "moments is empty"),
        ({"task": "PickCubeSO100"}, "corrections need a Panda"),
        ({"first_seed": 20_241_200}, "evaluation protocol's initial states"),
    ],
)
def test_what_cannot_be_corrected_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DaggerRequest(**{"task": "PushCube", "policy": PolicySource("par-mini"), **fields})
