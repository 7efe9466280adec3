"""PARPolicy: what it is told to do comes from an instruction, a task or an environment, never from a default."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from par_agent import PARModel, PARPolicy
from par_agent.errors import UserError
from par_agent.policy.checkpoint import Checkpoint
from par_agent.tasks import TASKS
from test_policy import observation, roll
from tiny import LENGTH, SIZE, task_checkpoint, tiny_checkpoint

PUSH, PICK, STACK = (TASKS[name].instruction for name in ("PushCube", "PickCube", "StackCube"))


def trained(**record: Any) -> Checkpoint:
    return dataclasses.replace(tiny_checkpoint(), trained=record)


def test_a_policy_without_an_instruction_does_not_act_and_lists_those_that_it_was_trained_with() -> None:
    agent = PARPolicy.from_pretrained("par-mini")
    assert agent.instruction is None
    obs = {"agent": {"qpos": torch.zeros(1, 9)}, "sensor_data": {}}
    for call in (agent.act, agent.plan, agent.get_action, agent.attention):
        with pytest.raises(UserError, match=r"no instruction: .* trained with: 'Push and .*'; 'Grasp .*'; 'Pick"):
            call(obs)
    with pytest.raises(UserError, match="it was trained with: instructions that it does not name"):
        PARPolicy(tiny_checkpoint()).act(observation(1))


def test_a_task_stands_for_its_instruction() -> None:
    assert PARPolicy.from_pretrained("par-mini", task="PickCube").instruction == PICK
    assert PARPolicy(tiny_checkpoint(), task="PickCube-v1").instruction == PICK
    agent = PARPolicy(tiny_checkpoint(), task=["PushCube", TASKS["PickCube"]])
    assert agent.instruction == (PUSH, PICK)
    assert torch.equal(roll(agent, 2, LENGTH), roll(PARPolicy(tiny_checkpoint(), [PUSH, PICK]), 2, LENGTH))
    with pytest.raises(UserError, match="unknown task 'Push'; known tasks: PushCube"):
        PARPolicy(tiny_checkpoint(), task="Push")
    with pytest.raises(UserError, match="task is 5; expected a task's name, a TaskSpec, or a list of one"):
        PARPolicy(tiny_checkpoint(), task=5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give an instruction or a task, not both"):
        PARPolicy(tiny_checkpoint(), PUSH, task="PushCube")


def test_the_environments_task_counts_where_no_instruction_was_given() -> None:
    agent, told = PARPolicy(task_checkpoint()), PARPolicy(task_checkpoint(), "push")
    for name, instruction in (("PushCube", PUSH), ("PickCube", PICK)):
        for each in (agent, told):
            each.check(TASKS[name])
        assert agent.instruction == instruction and told.instruction == "push"
    agent.instruction = "stack"
    agent.check(TASKS["PushCube"])
    assert agent.instruction == "stack"


@pytest.mark.parametrize(
    "record",
    [{"instructions": [PUSH, PICK]}, {"demonstrations": {"PushCube": 9, "PickCube": 9}}],
    ids=["stored", "from the tasks that the datasets are named after"],
)
def test_an_instruction_that_was_not_trained_is_warned_of(record: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = PARPolicy(trained(**record), PUSH)
        agent.reset(instruction=[PUSH, "grasp a RED cube, and move it to a target goal position"])
        PARPolicy(trained(demonstrations={"my-data": 3, "PushCube": 3}), "anything")
    with pytest.warns(UserWarning, match=r"not trained with the instruction 'xyz qqq', .* with: 'Push .*; 'Gras"):
        PARPolicy(trained(**record), "xyz qqq")
    with pytest.warns(UserWarning, match="not trained with the instruction 'Pick up a red cube"):
        agent.instruction = STACK


def test_a_checkpoint_keeps_the_instructions_that_it_was_trained_with(tmp_path: Path) -> None:
    trained(instructions=["a", "b"]).save(tmp_path)
    assert Checkpoint.load(tmp_path).instructions == ("a", "b")
    trained(instructions=["a", 5]).save(tmp_path)
    with pytest.raises(UserError, match=r"trained.instructions\[1\] is 5; expected"):
        Checkpoint.load(tmp_path)


def test_of_many_trained_instructions_the_first_are_listed() -> None:
    with pytest.warns(UserWarning, match=r"'text 7'; and 4 more$"):
        PARPolicy(trained(instructions=[f"text {number}" for number in range(12)]), "push")


@pytest.mark.parametrize("options", [{}, {"n_action_steps": 2, "past_actions": False}, {"context": 3}])
def test_chunks_are_the_actions_that_act_gives_one_by_one(options: dict[str, Any]) -> None:
    whole, single = (PARPolicy(tiny_checkpoint(), "push", **options) for _ in range(2))
    steps = whole.n_action_steps
    for chunk in range(3):
        actions = whole.get_action(observation(2, chunk * steps))
        assert actions.shape == (2, steps, SIZE)
        torch.testing.assert_close(actions, roll(single, 2, steps, first=chunk * steps).transpose(0, 1))
        assert whole.needs_frame
    whole.reset(env_idx=[1])
    again = whole.get_action(observation(2, 0))
    torch.testing.assert_close(again[1], PARPolicy(tiny_checkpoint(), "push", **options).get_action(observation(2))[1])


def test_a_policy_shows_its_parts_and_moves_to_another_type() -> None:
    agent = PARPolicy(tiny_checkpoint(), "push")
    assert agent.model is agent.checkpoint.model and agent.config is agent.model.config
    assert repr(agent) == (
        "PARPolicy(tiny, sees render_camera, commands pd_joint_pos, executes 4 of 4 actions a chunk, on cpu, "
        "instruction 'push')"
    )
    first = roll(agent, 1, LENGTH)
    assert agent.to("cpu", "bfloat16") is agent and agent.model.nova.dtype == torch.bfloat16 and agent.needs_frame
    assert not torch.equal(roll(agent, 1, LENGTH), first)


def test_a_model_is_read_from_a_checkpoint_by_name_or_folder(tmp_path: Path) -> None:
    model = PARModel.from_pretrained("par-mini")
    assert repr(model).startswith("PARModel(\n  par-mini, ") and not model.training
    assert model.state_dict().keys() == PARPolicy.from_pretrained("par-mini").model.state_dict().keys()
    tiny_checkpoint().save(tmp_path)
    for name, value in PARModel.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, tiny_checkpoint().model.state_dict()[name])
    with pytest.raises(TypeError, match=r"PARModel takes a PARConfig, got 'par-mini'; PARModel\.from_pretrained"):
        PARModel("par-mini")  # type: ignore[arg-type]
