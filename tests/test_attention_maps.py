"""Attention weights beside the fast path: they are those that the fast path uses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from par_agent import PARPolicy
from par_agent.errors import UserError
from par_agent.modeling.attention_maps import AttentionMaps, step_attention
from par_agent.modeling.par import PhysicalTokens
from par_agent.visualization.attention import KINDS, AttentionRollout, check_choice, draw_overlays, draw_tokens, shares
from test_policy import observation, roll
from tiny import LENGTH, tiny_checkpoint, tiny_config, tiny_features, tiny_inputs, tiny_model


def at(inputs: PhysicalTokens, step: int) -> PhysicalTokens:
    """One step of a sequence."""
    return PhysicalTokens(*(value[:, step : step + 1] for value in vars(inputs).values()))


@pytest.mark.parametrize("nova_layout", [False, True])
def test_weights_of_a_cached_step_are_those_of_the_whole_sequence(nova_layout: bool) -> None:
    model, inputs, features = tiny_model(nova_layout), tiny_inputs(2, 3), tiny_features(2)
    seen: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any) -> None:
        x, mask, rotation = arguments
        q, k, _ = module.project(x, rotation)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, float("-inf"))
        seen.append(scores.softmax(-1))

    hooks = [block.attn.register_forward_pre_hook(keep) for block in model.nova.video_encoder.blocks]
    with torch.inference_mode():
        model(features, inputs, torch.arange(3).expand(2, 3))
        for hook in hooks:
            hook.remove()
        stream = model.start(features, slots=3)
        for step in range(2):
            model.step(stream, at(inputs, step))
        maps = step_attention(model, stream, at(inputs, 2))
        before = stream.cache.keys.clone()
        step_attention(model, stream, at(inputs, 2))
    assert torch.equal(stream.cache.keys, before) and stream.cache.age.tolist() == [2, 2]
    expected = torch.stack(seen)[:, :, :, -maps.block :]
    torch.testing.assert_close(maps.weights, expected, rtol=1e-4, atol=1e-5)
    assert maps.steps.tolist() == [[0, 1, 2]] * 2


def test_slots_know_their_steps_once_old_ones_leave() -> None:
    model, features = tiny_model(), tiny_features(1)
    for slots, expected in ((1, [[0], [1], [2], [3]]), (3, [[0, -1, -1], [0, 1, -1], [0, 1, 2], [3, 1, 2]])):
        stream, found = model.start(features, slots), []
        for step in range(4):
            maps = step_attention(model, stream, at(tiny_inputs(1, 4), step))
            model.step(stream, at(tiny_inputs(1, 4), step))
            found.append(maps.steps[0].tolist())
            torch.testing.assert_close(maps.weights.sum(-1), torch.ones(maps.weights.shape[:-1]))
            for slot, held in enumerate(found[-1]):
                assert bool((maps.weights[..., maps.tokens(slot)] > 0).any()) == (held >= 0)
        assert found == expected


def policy_maps(context: int, looks: int) -> dict[int, AttentionMaps]:
    agent, found = PARPolicy(tiny_checkpoint(), "push the cube", context=context), {}
    for look in range(looks):
        found[look * LENGTH] = agent.attention(observation(1, look))
        roll(agent, 1, LENGTH)
    return found


def test_a_policy_acts_as_if_nobody_had_asked_where_it_attends() -> None:
    plain, watched = (PARPolicy(tiny_checkpoint(), "push the cube", context=3) for _ in range(2))
    for step in range(2 * LENGTH + 1):
        watched.attention(observation(2, step))
        assert torch.equal(watched.act(observation(2, step)), plain.act(observation(2, step)))


def test_shares_of_attention_sum_to_one_and_past_frames_need_a_past() -> None:
    for context, looks in ((1, 2), (3, 4)):
        maps = policy_maps(context, looks)
        for step, found in maps.items():
            share = shares(found)
            np.testing.assert_allclose(share.sum(-1), 1, rtol=1e-5)
            kinds = {kind for kind, value in zip(KINDS, share[0, 0], strict=True) if value > 0}
            assert ("past frames" in kinds) == (context == 3 and step >= LENGTH)
            assert {"text", "joints", "actions"} <= kinds


def test_figures_are_drawn(tmp_path: Any) -> None:
    maps = policy_maps(3, 4)
    frames = {step: np.full((16, 16, 3), 90, np.uint8) for step in maps}
    rollout = AttentionRollout("PushCube, state 0, policy seed 0", maps, frames)
    draw_tokens(rollout, tmp_path / "tokens.png", 2, 9)
    draw_overlays(rollout, tmp_path / "frames.png", None, 1)
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("tokens.png", "frames.png"))


def test_a_layer_or_head_that_the_model_lacks_is_refused() -> None:
    encoder = tiny_config().nova.video_encoder
    check_choice(encoder, encoder.depth, encoder.heads)
    with pytest.raises(UserError, match=rf"layer is {encoder.depth + 1}; this model has layers 1 to {encoder.depth}"):
        check_choice(encoder, encoder.depth + 1, None)
    with pytest.raises(UserError, match=rf"head is {encoder.heads + 1}; this model has heads 1 to {encoder.heads}"):
        check_choice(encoder, 1, encoder.heads + 1)
