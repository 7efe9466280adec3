"""The physical autoregressive model: cache, mask, independence of rows, losses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from par_agent.errors import UserError
from par_agent.modeling.config import GenerationConfig, PARConfig
from par_agent.modeling.frame_loss import draw_known_patches
from par_agent.modeling.nova.generation import RandomNoise
from par_agent.modeling.par import PARModel, PhysicalTokens, Targets
from par_agent.modeling.presets import preset
from tiny import LENGTH, SIZE, tiny_config, tiny_features, tiny_inputs, tiny_model

LAYOUTS = pytest.mark.parametrize("nova_layout", [False, True], ids=["mini", "nova"])


def part(inputs: PhysicalTokens, rows: slice | Tensor, steps: slice) -> PhysicalTokens:
    return PhysicalTokens(*(value[rows][:, steps] for value in vars(inputs).values()))


def numbers(batch: int, steps: int) -> Tensor:
    return torch.arange(steps).expand(batch, steps)


@LAYOUTS
@torch.no_grad()
def test_cached_steps_equal_the_whole_sequence(nova_layout: bool) -> None:
    model, inputs, features = tiny_model(nova_layout), tiny_inputs(3, 6), tiny_features(3)
    z_frame, z_action = model(features, inputs, numbers(3, 6))
    stream = model.start(features, slots=6)
    for step in range(6):
        frame, action = model.step(stream, part(inputs, slice(None), slice(step, step + 1)))
        torch.testing.assert_close(frame, z_frame[:, step], rtol=0, atol=1e-5)
        torch.testing.assert_close(action, z_action[:, step], rtol=0, atol=1e-5)


@LAYOUTS
@pytest.mark.parametrize("slots", [1, 2, 3])
@torch.no_grad()
def test_past_its_size_the_cache_equals_the_context_of_training(nova_layout: bool, slots: int) -> None:
    """A rollout four times as long as the cache, with rows that begin anew at different steps."""
    steps = 4 * slots
    model, inputs, features = tiny_model(nova_layout), tiny_inputs(2, steps), tiny_features(2)
    context = torch.full((2, steps), slots)
    z_frame, z_action = model(features, inputs, numbers(2, steps), context)
    reset = steps // 2
    from_reset = part(inputs, slice(1, 2), slice(reset, None))
    second_life = model(features[1:], from_reset, numbers(1, steps - reset), context[1:, reset:])
    stream = model.start(features, slots)
    for step in range(steps):
        if step == reset:
            stream.cache.reset(torch.tensor([1]))
        frame, action = model.step(stream, part(inputs, slice(None), slice(step, step + 1)))
        expected = z_frame[:, step].clone(), z_action[:, step].clone()
        if step >= reset:
            expected[0][1], expected[1][1] = (z[0, step - reset] for z in second_life)
        torch.testing.assert_close(frame, expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(action, expected[1], rtol=0, atol=1e-5)


@LAYOUTS
@torch.no_grad()
def test_rows_do_not_affect_one_another(nova_layout: bool) -> None:
    model, inputs, features = tiny_model(nova_layout), tiny_inputs(3, 3), tiny_features(3)
    together = model(features, inputs, numbers(3, 3))
    for row in range(3):
        alone = model(features[row : row + 1], part(inputs, slice(row, row + 1), slice(None)), numbers(1, 3))
        for whole, single in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[row : row + 1], single, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_different_ages() -> None:
    """A row that is reset while others go on sees only its new past."""
    model, inputs, features = tiny_model(), tiny_inputs(2, 5), tiny_features(2)
    stream = model.start(features, slots=5)
    for step in range(2):
        model.step(stream, part(inputs, slice(None), slice(step, step + 1)))
    stream.cache.reset(torch.tensor([1]))
    first = torch.tensor([0])
    model.step(stream, part(inputs, slice(0, 1), slice(2, 3)), first)
    _, action = model.step(stream, part(inputs, slice(None), slice(3, 4)))
    _, whole = model(features[:1], part(inputs, slice(0, 1), slice(0, 4)), numbers(1, 4))
    torch.testing.assert_close(action[:1], whole[:, 3], rtol=0, atol=1e-5)
    _, fresh = model(features[1:], part(inputs, slice(1, 2), slice(3, 4)), numbers(1, 1))
    torch.testing.assert_close(action[1:], fresh[:, 0], rtol=0, atol=1e-5)
    assert stream.cache.age.tolist() == [4, 1]


@LAYOUTS
@torch.no_grad()
def test_conditions_see_what_the_mask_allows(nova_layout: bool) -> None:
    """Outputs change with what they may see and with nothing else: frames never see the chunk of their own step."""
    model, features = tiny_model(nova_layout), tiny_features(1)
    inputs = tiny_inputs(1, 3)
    base_frame, base_action = model(features, inputs, numbers(1, 3))

    def changed(**fields: Tensor) -> tuple[list[bool], list[bool]]:
        frame, action = model(features, dataclasses.replace(inputs, **fields), numbers(1, 3))
        return (
            [not torch.allclose(frame[0, n], base_frame[0, n], atol=1e-6) for n in range(3)],
            [not torch.allclose(action[0, n], base_action[0, n], atol=1e-6) for n in range(3)],
        )

    latents, actions = inputs.latents.clone(), inputs.actions.clone()
    latents[0, 1] += 1.0
    assert changed(latents=latents) == ([False, True, True], [False, True, True])
    actions[0, 1] += 1.0
    assert changed(actions=actions) == ([False, False, True], [False, True, True])
    last = inputs.actions.clone()
    last[0, 2, LENGTH - 1] += 1.0
    _, action = model(features, dataclasses.replace(inputs, actions=last), numbers(1, 3))
    same = [torch.allclose(now, before, atol=1e-6) for now, before in zip(action[0, 2], base_action[0, 2], strict=True)]
    assert len(same) == (LENGTH if nova_layout else model.block)  # the mini layout's actions attend to whole tokens
    assert same == [True] * (len(same) - 1) + [False]


@torch.no_grad()
def test_unknown_actions_are_not_read() -> None:
    model, features, inputs = tiny_model(), tiny_features(1), tiny_inputs(1, 1)
    other = dataclasses.replace(inputs, actions=inputs.actions + 5.0)
    torch.testing.assert_close(
        model(features, inputs, numbers(1, 1))[1], model(features, other, numbers(1, 1))[1], rtol=0, atol=0
    )


def targets(batch: int, steps: int) -> Targets:
    generator = torch.Generator().manual_seed(5)
    return Targets(
        torch.randn(batch, steps, LENGTH, SIZE, generator=generator),
        torch.ones(batch, steps, LENGTH),
        torch.randn(batch, steps, 2, 8, 8, generator=generator),
        torch.ones(batch, steps, dtype=torch.bool),
    )


def loss_of(model: PARModel, inputs: PhysicalTokens, wanted: Targets) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(7)
    batch, steps = inputs.actions_known.shape
    loss = model.loss(tiny_features(batch), inputs, numbers(batch, steps), wanted, generator=generator)
    torch.testing.assert_close(loss.total, loss.action + loss.frame)
    return loss.action.item(), loss.frame.item()


@LAYOUTS
def test_padding_does_not_count(nova_layout: bool) -> None:
    model, inputs, wanted = tiny_model(nova_layout), tiny_inputs(2, 3), targets(2, 3)
    wanted.action_weights[1, 2] = 0
    wanted.frame_weights[1, 2] = False
    before = loss_of(model, inputs, wanted)
    wanted.actions[1, 2] += 100.0
    wanted.latents[1, 2] += 100.0
    assert loss_of(model, inputs, wanted) == before
    wanted.actions[1, 1] += 1.0
    wanted.latents[1, 1] += 1.0
    after = loss_of(model, inputs, wanted)
    assert after[0] != before[0] and after[1] != before[1]


@LAYOUTS
def test_every_parameter_learns(nova_layout: bool) -> None:
    model = tiny_model(nova_layout).train()
    generator = torch.Generator().manual_seed(0)
    loss = model.loss(tiny_features(2), tiny_inputs(2, 3), numbers(2, 3), targets(2, 3), generator=generator)
    loss.total.backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # Motion tokens are NOVA's; a key's bias does not change a softmax, so its gradient may round to zero.
    assert {name for name in unused if "motion" not in name and "bos_token" not in name} == set()


def test_loss_falls_when_trained() -> None:
    model, inputs, wanted = tiny_model().train(), tiny_inputs(4, 2), targets(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    first = None
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        loss = model.loss(tiny_features(4), inputs, numbers(4, 2), wanted, generator=generator)
        first = loss.action.item() if first is None else first
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.action.item() < 0.7 * first


@torch.no_grad()
def test_action_sampling_is_a_function_of_its_noise() -> None:
    model = tiny_model()
    z = torch.randn(3, LENGTH, 32, generator=torch.Generator().manual_seed(0))
    start = torch.zeros(3, LENGTH, SIZE)
    chunks = model.sample_actions(z, start, 4)
    assert chunks.shape == (3, LENGTH, SIZE)
    torch.testing.assert_close(chunks, model.sample_actions(z, start, 4), rtol=0, atol=0)
    torch.testing.assert_close(chunks[1:2], model.sample_actions(z[1:2], start[:1], 4), rtol=0, atol=1e-5)
    assert not torch.allclose(chunks, model.sample_actions(z, start + 1, 4))


@LAYOUTS
def test_frames_are_sampled_from_conditions(nova_layout: bool) -> None:
    model, features, inputs = tiny_model(nova_layout), tiny_features(2), tiny_inputs(2, 1)
    z_frame, _ = model(features, inputs, numbers(2, 1))
    config = GenerationConfig(mask_steps=2, diffusion_steps=2, guidance=1.0)
    frame = model.sample_frame(
        z_frame[:, 0], inputs.latents[:, 0], RandomNoise(torch.Generator().manual_seed(0)), config
    )
    assert frame.shape == (2, 2, 8, 8) and frame.isfinite().all()


def test_known_patches_follow_the_mask_ratio_to_the_nearest_number() -> None:
    def counts(patches: int) -> list[int]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(300)]
        return [draw_known_patches(2, patches, generator, torch.device("cpu")).shape[1] for generator in generators]

    many, few = counts(100), counts(2)
    assert min(many) == 0 and max(many) == 30
    assert 12 < sum(many) / 300 < 15  # the truncated normal's mean ratio is 0.866
    assert set(few) == {0, 1}  # up to 0.6 of two patches


@torch.no_grad()
def test_before_any_action_frames_are_conditioned_as_in_nova() -> None:
    """Without a token of joint positions ``O_0`` is NOVA's frame slot 1: same position, same time, same mixer."""
    config = tiny_config(nova_layout=True)
    torch.manual_seed(0)
    model = PARModel(dataclasses.replace(config, action=dataclasses.replace(config.action, proprioception_size=0)))
    features, inputs = tiny_features(2), dataclasses.replace(tiny_inputs(2, 1), proprioception=torch.zeros(2, 1, 0))
    clip = torch.randn(2, 2, config.nova.video_base_size[0], 8, 8)
    clip[:, :, 0] = inputs.latents[:, 0]
    expected = model.nova.mix(model.nova.encode_video(clip, model.nova.prefix(features)))[:, 1]
    torch.testing.assert_close(model(features, inputs, numbers(2, 1))[0][:, 0], expected, rtol=0, atol=1e-5)
    z_frame, _ = model.step(model.start(features, slots=2), inputs)
    torch.testing.assert_close(z_frame, expected, rtol=0, atol=1e-5)


def test_the_meta_device_needs_neither_numbers_nor_a_compiler() -> None:
    """Built in a fresh process: drawing random numbers there would first import torch's compiler, for seconds."""
    code = """
import sys, torch
from par_agent.modeling.par import PARModel
from par_agent.modeling.presets import preset
with torch.device("meta"):
    model = PARModel(preset("par-nova-0.6b"))
assert all(p.is_meta for p in model.parameters())
print(sorted({"sympy", "torch._dynamo", "torch.fx.experimental.symbolic_shapes", "diffusers"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_configuration_round_trip_and_newer_version() -> None:
    config = tiny_config(True)
    assert PARConfig.from_json(config.to_json()) == config
    with pytest.raises(UserError, match="format version 99"):
        PARConfig.from_json({**config.to_json(), "version": 99})
    with pytest.raises(ValueError, match="unknown preset 'par-huge'; known: mini"):
        preset("par-huge")


def test_full_size_has_the_parts_of_table_1() -> None:
    with torch.device("meta"):
        model = PARModel(preset("par-nova-0.6b"))

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    motion = count(model.nova.motion_embed)
    transformer = count(model.nova) - count(model.nova.image_decoder) - motion
    assert count(model.action_detokenizer) == 21_147_656
    assert count(model.nova.image_decoder) == 32_844_816
    assert count(model.action_tokenizer.mlp) == 596_032
    assert transformer == 608_723_968
