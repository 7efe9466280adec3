"""Planning and imagining frames beside actions, and what acting never runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from par_agent import PARPolicy
from par_agent.errors import UserError
from par_agent.modeling.blocks import CrossAttention
from par_agent.modeling.config import GenerationConfig
from test_policy import observation, roll
from tiny import LENGTH, SIZE, tiny_checkpoint

FAST = GenerationConfig(mask_steps=2, diffusion_steps=2, guidance=1.0)
REMEMBERING = {"context": 3, "past_actions": True, "random_start": True}


def policy(**inference: Any) -> PARPolicy:
    return PARPolicy(tiny_checkpoint(), "push the cube", **inference)


def counted(agent: PARPolicy) -> Counter[str]:
    """Counts every call of a module of the model, by name."""
    calls: Counter[str] = Counter()
    for name, module in agent.checkpoint.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def test_acting_runs_no_spatial_layer_and_no_frame_detokenizer() -> None:
    agent = policy(context=3)
    calls = counted(agent)
    roll(agent, 2, 3 * LENGTH)
    assert calls["action_detokenizer"] == 3 * 4  # chunks times denoising steps
    assert calls["nova.video_encoder.norm"] == 1 + 3  # the prefix once, then one step a chunk
    frame_path = [name for name in calls if name.startswith(("nova.image_encoder", "nova.image_decoder"))]
    assert frame_path == []
    agent.plan(observation(2), frames=True, generation=FAST)
    assert calls["nova.image_encoder"] > 0 and calls["nova.image_decoder"] > 0


def test_cross_attention_reads_the_conditions_once_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    computed, used = Counter(), Counter()
    for name, counter in (("keys_and_values", computed), ("forward", used)):
        original = getattr(CrossAttention, name)

        def counting(self: nn.Module, *args: Any, original: Any = original, counter: Any = counter) -> Any:
            counter.update([id(self)])
            return original(self, *args)

        monkeypatch.setattr(CrossAttention, name, counting)
    agent = policy(denoising_steps=7)
    roll(agent, 1, 2 * LENGTH)
    assert list(computed.values()) == [2, 2]  # two blocks, two chunks
    assert list(used.values()) == [14, 14]


@pytest.mark.parametrize("inference", [{}, REMEMBERING])
def test_planning_and_imagining_leave_acting_as_it_is(inference: dict[str, Any]) -> None:
    plain, curious = policy(**inference), policy(**inference)
    for step in range(2 * LENGTH + 1):
        if step % 3 == 0:
            curious.plan(observation(2, step), frames=True, generation=FAST)
            curious.imagine(2, FAST)
        assert torch.equal(curious.act(observation(2, step)), plain.act(observation(2, step)))


def test_a_plan_is_the_chunk_that_acting_executes_and_the_frame_after_it() -> None:
    agent = policy(**REMEMBERING)
    actions, frames = agent.plan(observation(2), frames=True, generation=FAST)
    assert actions.shape == (2, LENGTH, SIZE) and actions.dtype == torch.float32
    assert frames is not None and frames.shape == (2, 16, 16, 3) and frames.dtype == torch.uint8
    assert agent.plan(observation(2)).frames is None
    torch.testing.assert_close(roll(agent, 2, LENGTH).transpose(0, 1), actions)


def test_an_imagined_rollout_begins_with_the_plan_and_goes_on_from_its_own_frames() -> None:
    agent = policy(**REMEMBERING)
    plan = agent.plan(observation(2), frames=True, generation=FAST)
    imagined = agent.imagine(3, FAST)
    assert imagined.frames.shape == (2, 3, 16, 16, 3) and imagined.actions.shape == (2, 3, LENGTH, SIZE)
    assert torch.equal(imagined.actions[:, 0], plan.actions) and torch.equal(imagined.frames[:, 0], plan.frames)
    assert torch.equal(agent.imagine(3, FAST).frames, imagined.frames)
    assert not torch.equal(imagined.actions[:, 1], imagined.actions[:, 0])
    alone = policy(**REMEMBERING)
    alone.plan(observation(1))
    torch.testing.assert_close(alone.imagine(3, FAST).actions, imagined.actions[:1], rtol=0, atol=1e-3)


def test_an_imagined_step_is_what_acting_does_when_it_sees_the_imagined_frame() -> None:
    agent = policy(context=3, past_actions=True)
    agent.act(observation(1))
    imagined = agent.imagine(2, FAST)
    transforms = agent.transforms
    image = torch.zeros(1, 24, 32, 3, dtype=torch.uint8)
    top, left, height, width = transforms.crop
    image[:, top : top + height, left : left + width] = imagined.frames[:, 0]
    positions = transforms.commanded_positions(imagined.actions[:, 0], observation(1)["agent"]["qpos"])
    assert torch.equal(positions[:, :7], imagined.actions[:, 0, -1, :7])
    assert torch.equal(positions[:, 7:], observation(1)["agent"]["qpos"][:, 7:])
    obs = {"agent": {"qpos": positions}, "sensor_data": {"render_camera": {"rgb": image}}}
    # Rounding to pixels and encoding again moves the latents a little.
    seen = agent.plan(obs).actions
    assert (seen - imagined.actions[:, 1]).abs().max() < (seen - imagined.actions[:, 0]).abs().max()


def test_imagining_needs_something_seen() -> None:
    agent = policy()
    with pytest.raises(UserError, match="no frame was read since reset"):
        agent.imagine(1)
    agent.act(observation(2))
    with pytest.raises(UserError, match="0 steps were to be imagined"):
        agent.imagine(0)
    with pytest.raises(UserError, match="guidance is 5"):
        agent.imagine(1, GenerationConfig())
    agent.reset(env_idx=1)
    with pytest.raises(UserError, match=r"environments \[1\] have seen no frame"):
        agent.imagine(1)
    agent.reset()
    with pytest.raises(UserError, match="no frame was read since reset"):
        agent.imagine(1)


def test_states_are_copied_whole() -> None:
    agent = policy(**REMEMBERING)
    agent.act(observation(2))
    state = agent._state
    assert state is not None
    copy = state.copy()
    for field in dataclasses.fields(state):
        mine, other = getattr(state, field.name), getattr(copy, field.name)
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, other) and mine.data_ptr() != other.data_ptr(), field.name
    assert copy.stream.cache.keys.data_ptr() != state.stream.cache.keys.data_ptr()
    assert all(a is not b for a, b in zip(copy.generators, state.generators, strict=True))
