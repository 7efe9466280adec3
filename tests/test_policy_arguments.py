"""PARPolicy: every argument is right, or refused with its name, what was given and what is allowed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from par_agent import PARPolicy
from par_agent.errors import UserError
from test_policy import observation, policy, roll
from tiny import JOINTS, LENGTH, SIZE, tiny_checkpoint, tiny_model


@pytest.mark.parametrize("seed", [-1, 0.5, "3", True, None, [1]])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    message = r"seed is .*; it must be a whole number, 0 or more"
    with pytest.raises(UserError, match=message):
        policy(seed=seed)
    agent = policy()
    if seed is not None:
        with pytest.raises(UserError, match=message):
            agent.reset(seed=seed)


@pytest.mark.parametrize("seed", [np.int64(7), torch.tensor(7), 2**100])
def test_any_whole_number_is_a_seed(seed: Any) -> None:
    agent = policy(random_start=True, seed=seed)
    first = agent.act(observation(1))
    for again in (int(seed), seed):
        agent.reset(env_idx=[0], seed=again)
        assert torch.equal(agent.act(observation(1)), first)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({0, 1}, r"env_idx is \{0, 1\} \(set\); expected a tensor, an array or a list of numbers"),
        ("1", r"env_idx is '1' \(str\)"),
        ([2**70], "env_idx is .* expected a tensor"),
        (2**40, r"env_idx \[1099511627776\] names rows that do not exist; there are 3 environments"),
        (-1, r"env_idx \[-1\] names rows that do not exist"),
        (0.7, r"env_idx is torch.float64 of shape \(\); expected row numbers"),
        (torch.tensor([[0], [1]]), r"env_idx is torch.int64 of shape \(2, 1\); expected row numbers"),
        (np.array([[True, False, True]]), r"env_idx is a mask of shape \(1, 3\); expected one bool per environment"),
        (True, r"env_idx is a mask of shape \(\)"),
        (torch.tensor([1.0, 0.0, 1.0]), r"env_idx is torch.float32 of shape \(3,\); .*done flags of another type"),
        (torch.tensor([1, 0, 1], dtype=torch.uint8), "env_idx is torch.uint8"),
        (torch.tensor([1, 0, 1]), r"env_idx \[1, 0, 1\] names a row twice; if these are done flags, give them as bool"),
        (np.array([0, 0, 1]), "names a row twice"),
        ([2, 2], "names a row twice"),
    ],
)
def test_what_names_no_rows_is_refused_and_changes_nothing(rows: Any, message: str) -> None:
    agent, same = policy(random_start=True), policy(random_start=True)
    for each in (agent, same):
        each.act(observation(3))
    with pytest.raises(UserError, match=message):
        agent.reset(env_idx=rows, seed=9)
    assert torch.equal(roll(agent, 3, LENGTH, first=1), roll(same, 3, LENGTH, first=1))


@pytest.mark.parametrize(
    ("rows", "reset"),
    [
        ([], []),
        (torch.tensor([False, False, True]), [2]),
        (np.array([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
        ((2, 0), [0, 2]),
        (range(2), [0, 1]),
        (np.array([1], dtype=np.int32), [1]),
        (torch.tensor(1), [1]),
        (torch.tensor([0, 1]), [0, 1]),
    ],
)
def test_row_numbers_and_masks_of_any_kind_name_rows(rows: Any, reset: list[int]) -> None:
    agent = policy()
    agent.act(observation(3))
    agent.reset(env_idx=rows)
    assert agent._state is not None and agent._state.fresh.nonzero()[:, 0].tolist() == reset


def test_rows_are_checked_before_the_first_observation_too() -> None:
    with pytest.raises(UserError, match=r"env_idx is torch.float64"):
        policy().reset(env_idx=[0.5])
    with pytest.raises(UserError, match=r"env_idx \[-1\] names rows that do not exist$"):
        policy().reset(env_idx=-1)


@pytest.mark.parametrize("instruction", [5, b"push", [], ["push", 5], {"push": 1}])
def test_an_instruction_that_is_no_text_is_refused(instruction: Any) -> None:
    message = "instruction is .*; expected a text, or a list of one text per environment"
    with pytest.raises(UserError, match=message):
        PARPolicy(tiny_checkpoint(), instruction)
    with pytest.raises(UserError, match=message):
        policy().reset(instruction=instruction)


def test_a_policy_runs_where_its_checkpoint_is() -> None:
    assert PARPolicy(tiny_checkpoint(), "push", device=None).device == torch.device("cpu")
    assert PARPolicy.from_pretrained("par-mini", device=None).device == torch.device("cpu")
    checkpoint = tiny_checkpoint()
    checkpoint.model.to("meta")
    with pytest.raises(UserError, match=r"device is 'cpu', but the checkpoint is on meta: load it with Checkpoint"):
        PARPolicy(checkpoint, "push", device="cpu")
    with pytest.raises(UserError, match=r"device '3\.5' cannot be used"):
        PARPolicy(tiny_checkpoint(), "push", device=3.5)  # type: ignore[arg-type]


def as_numpy(obs: dict[str, Any]) -> dict[str, Any]:
    image = obs["sensor_data"]["render_camera"]["rgb"].numpy()
    return {"agent": {"qpos": obs["agent"]["qpos"].numpy()}, "sensor_data": {"render_camera": {"rgb": image}}}


def test_images_may_lie_in_memory_in_any_order() -> None:
    obs = as_numpy(observation(2))
    image = obs["sensor_data"]["render_camera"]["rgb"]
    frozen = np.ascontiguousarray(image[:, ::-1, ::-1])
    frozen.flags.writeable = False
    swapped = obs["agent"]["qpos"].astype(">f8")
    for turned in (image[:, ::-1, ::-1], frozen):
        obs["sensor_data"]["render_camera"]["rgb"] = turned
        straight = observation(2)
        straight["sensor_data"]["render_camera"]["rgb"] = torch.from_numpy(image.copy()).flip(1, 2)
        assert torch.equal(policy().act({**obs, "agent": {"qpos": swapped}}), policy().act(straight))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((0, JOINTS), np.float32), r"has shape \(0, 9\); expected \(num_envs, 9\), at least one environment"),
        (np.zeros((2, JOINTS), np.int64), "is torch.int64; expected floating point numbers"),
        (np.zeros((2, JOINTS), bool), "is torch.bool; expected floating point numbers"),
        (np.zeros((2, JOINTS), np.complex64), "is torch.complex64; expected floating point numbers"),
        ([["a"] * JOINTS] * 2, "expected a tensor, an array or a list of numbers"),
    ],
)
def test_joint_positions_of_another_kind_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=r'obs\["agent"\]\["qpos"\] .*' + message):
        policy().act({**observation(2), "agent": {"qpos": wrong}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, 1e300])
@pytest.mark.parametrize("looks", [True, False])
def test_joint_positions_that_nothing_measures_are_refused_with_their_rows(value: float, looks: bool) -> None:
    agent = policy()
    if not looks:
        agent.act(observation(3))
    obs = observation(3)
    obs["agent"]["qpos"] = obs["agent"]["qpos"].double()
    obs["agent"]["qpos"][1, 4] = value
    with pytest.raises(UserError, match=r'obs\["agent"\]\["qpos"\] of environments \[1\] holds NaN, infinity or'):
        agent.act(obs)
    assert agent.act(observation(3)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.bool, torch.int8])
def test_frames_are_uint8(dtype: torch.dtype) -> None:
    obs = observation(1)
    obs["sensor_data"]["render_camera"]["rgb"] = obs["sensor_data"]["render_camera"]["rgb"].to(dtype)
    with pytest.raises(UserError, match=rf"is {dtype} of shape .*; expected torch.uint8 of shape"):
        policy().act(obs)


def test_actions_that_are_not_finite_are_refused_with_their_rows_until_these_are_reset() -> None:
    agent = policy()
    agent.act(observation(3))
    agent.reset(env_idx=[0, 2])
    model, draw = agent.checkpoint.model, agent.checkpoint.model.sample_actions

    def overflowing(*args: Any, **options: Any) -> torch.Tensor:
        chunks = draw(*args, **options)
        chunks[1, -1, 0] = float("nan")  # of rows 0 and 2, which plan
        return chunks

    model.sample_actions = overflowing  # type: ignore[method-assign]
    for use in (agent.act, agent.plan):
        with pytest.raises(UserError, match=r"not finite in environments \[\d\]; .* call reset\(env_idx=\[\d\]\)"):
            use(observation(3))
    del model.sample_actions
    agent.reset(env_idx=[0, 2])
    assert roll(agent, 3, LENGTH).isfinite().all()


def test_what_a_policy_returns_can_be_changed_and_learned_from() -> None:
    agent = policy()
    action, plan, maps = agent.act(observation(2)), agent.plan(observation(2), True), agent.attention(observation(2))
    imagined = agent.imagine(2)
    before = agent.act(observation(2, frame=False)).clone()
    for value in (action, plan.actions, plan.frames, imagined.frames, imagined.actions, maps.weights):
        assert value is not None and not value.is_inference() and not value.requires_grad
        value.clamp_(0, 1)
    residual = torch.nn.Linear(SIZE, SIZE)
    (action + residual(action)).square().sum().backward()
    assert residual.weight.grad is not None
    action[:, -1] = 1
    agent.reset()
    agent.act(observation(2))
    assert torch.equal(agent.act(observation(2, frame=False)), before), "what a policy returns is the caller's own"


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("nova_layout", [False, True])
def test_actions_do_not_depend_on_the_default_dtype(nova_layout: bool, tmp_path: Any, request: Any) -> None:
    checkpoint = tiny_checkpoint()
    checkpoint.model = tiny_model(nova_layout)
    checkpoint.save(tmp_path)
    observations = [observation(2, step) for step in range(2 * LENGTH)]

    def everything() -> list[torch.Tensor]:
        agent = PARPolicy.from_pretrained(tmp_path, "push the cube", context=3, random_start=True)
        actions = torch.stack([agent.act(obs) for obs in observations])
        plan = agent.plan(observations[0], frames=True)
        assert plan.frames is not None
        return [actions, plan.actions, plan.frames, *agent.imagine(2), agent.attention(observations[0]).weights]

    single = everything()
    request.getfixturevalue("double")
    for one, other in zip(single, everything(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_a_second_thread_is_refused_while_the_first_one_acts() -> None:
    agent, meet = policy(), threading.Barrier(2, timeout=60)
    encode = agent.checkpoint.encoder.encode

    def slow(frames: torch.Tensor) -> torch.Tensor:
        meet.wait()  # the other thread may call now
        meet.wait()  # and has been answered
        return encode(frames)

    agent.checkpoint.encoder.encode = slow  # type: ignore[method-assign]
    actions: list[torch.Tensor] = []
    first = threading.Thread(target=lambda: actions.append(agent.act(observation(1))))
    first.start()
    meet.wait()
    try:
        for call in (lambda: agent.act(observation(1)), agent.reset, lambda: agent.plan(observation(1))):
            with pytest.raises(UserError, match="was called while another thread was using this policy"):
                call()
    finally:
        meet.wait()
        first.join()
    del agent.checkpoint.encoder.encode
    agent.reset()
    assert torch.equal(agent.act(observation(1)), actions[0]), "one thread after another may use it"
