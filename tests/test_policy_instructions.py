"""PARPolicy: instructions, one for all environments or one for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from par_agent import PARPolicy
from par_agent.errors import UserError
from test_policy import observation, policy, roll
from tiny import LENGTH, tiny_checkpoint

PUSH, PICK, LONG = "push the cube", "pick up", "stack the red cube on green"


def told(instruction: Any, **inference: Any) -> PARPolicy:
    return PARPolicy(tiny_checkpoint(), instruction, **inference)


def shown(row: int, step: int) -> dict[str, Any]:
    """What row ``row`` of :func:`observation` sees, as the only environment."""
    obs = observation(row + 1, step)
    image = obs["sensor_data"]["render_camera"]["rgb"][row:]
    return {"agent": {"qpos": obs["agent"]["qpos"][row:]}, "sensor_data": {"render_camera": {"rgb": image}}}


def alone(instruction: str, row: int, first: int, last: int, **inference: Any) -> torch.Tensor:
    """(steps, A) actions of one environment that sees what row ``row`` does."""
    agent = told(instruction, **inference)
    return torch.stack([agent.act(shown(row, step))[0] for step in range(first, last)])


@pytest.mark.parametrize("inference", [{}, {"context": 3, "past_actions": True}])
def test_every_environment_follows_its_own_instruction(inference: dict[str, Any]) -> None:
    texts = [PUSH, LONG, PICK]
    agent = told(texts, **inference)
    actions = roll(agent, 3, 2 * LENGTH)
    for row, text in enumerate(texts):
        torch.testing.assert_close(actions[:, row], alone(text, row, 0, 2 * LENGTH, **inference), rtol=0, atol=1e-4)
    assert not torch.allclose(actions[:, 1], alone(PUSH, 1, 0, 2 * LENGTH, **inference), atol=1e-4)
    assert agent.instruction == (PUSH, LONG, PICK)


def test_an_environment_that_is_reset_gets_another_instruction_and_the_others_go_on() -> None:
    inference = {"context": 3, "past_actions": True}
    agent, same = told(PUSH, **inference), told(PUSH, **inference)
    for each in (agent, same):
        roll(each, 3, LENGTH)
    plan = agent.plan(observation(3, LENGTH)).actions
    agent.reset(env_idx=[2, 0], instruction=[LONG, PICK])
    assert agent.instruction == (PICK, PUSH, LONG)
    new, old = roll(agent, 3, LENGTH, first=LENGTH), roll(same, 3, LENGTH, first=LENGTH)
    torch.testing.assert_close(new[:, 1], old[:, 1])
    torch.testing.assert_close(new[:, 0], alone(PICK, 0, LENGTH, 2 * LENGTH, **inference), rtol=0, atol=1e-4)
    torch.testing.assert_close(new[:, 2], alone(LONG, 2, LENGTH, 2 * LENGTH, **inference), rtol=0, atol=1e-4)
    torch.testing.assert_close(plan[:, 0], old[0])
    agent.reset(env_idx=torch.tensor([True, False, True]), instruction=PUSH)
    assert agent.instruction == (PUSH,) * 3


def test_an_assigned_instruction_begins_all_episodes_anew() -> None:
    agent = told(PUSH)
    roll(agent, 2, LENGTH + 2)
    agent.instruction = LONG
    assert agent.needs_frame and agent.instruction == LONG
    torch.testing.assert_close(roll(agent, 1, LENGTH)[:, 0], alone(LONG, 0, 0, LENGTH))
    agent.instruction = [PUSH, PICK]
    torch.testing.assert_close(roll(agent, 2, LENGTH)[:, 1], alone(PICK, 1, 0, LENGTH), rtol=0, atol=1e-4)


def test_a_reset_without_an_instruction_keeps_them() -> None:
    agent = told(np.array([PUSH, PICK]))
    first = roll(agent, 2, LENGTH)
    agent.reset()
    assert torch.equal(roll(agent, 2, LENGTH), first)
    agent.reset(env_idx=[1])
    assert agent.instruction == (PUSH, PICK)
    agent.reset(instruction=LONG)
    assert agent.act(observation(5)).shape[0] == 5


def test_instructions_before_the_first_observation() -> None:
    with pytest.raises(UserError, match="how many environments there are is not known before the first observation"):
        told(PUSH).reset(env_idx=[1], instruction=PICK)
    agent = told([PUSH, PUSH])
    agent.reset(env_idx=[1], instruction=PICK)
    torch.testing.assert_close(roll(agent, 2, LENGTH)[:, 1], alone(PICK, 1, 0, LENGTH), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match=r"env_idx \[2\] names rows that do not exist; there are 2"):
        told([PUSH, PUSH]).reset(env_idx=[2])


def test_another_number_of_instructions_than_environments_is_refused_and_changes_nothing() -> None:
    agent = told([PUSH, PICK])
    message = "there are 2 instructions, one per environment, for 3 environments; give as many with reset"
    with pytest.raises(UserError, match=message):
        agent.act(observation(3))
    first = agent.act(observation(2))
    with pytest.raises(UserError, match="there are 2 instructions, one per environment, for 1 environments"):
        agent.reset(env_idx=[1], instruction=[PUSH, PUSH])
    assert agent.instruction == (PUSH, PICK) and not agent.needs_frame
    agent.reset()
    assert torch.equal(agent.act(observation(2)), first)


def test_an_instruction_without_words_changes_nothing() -> None:
    agent = policy()
    agent.act(observation(1))
    with pytest.raises(UserError, match=r"the instruction ' \.' holds no words"):
        agent.reset(instruction=" .")
    assert not agent.needs_frame and agent.instruction == "push the cube"
