"""The ablations of the paper's Table 3 and one of our own, as configurations of the same classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from par_agent import PARPolicy
from par_agent.errors import UserError
from par_agent.modeling.blocks import Block
from par_agent.modeling.config import EncoderConfig, PARConfig
from par_agent.modeling.nova.generation import RandomNoise
from par_agent.modeling.par import PARModel, PhysicalTokens, Targets
from par_agent.modeling.presets import PRESETS, preset
from test_policy import observation, roll
from tiny import LENGTH, SIZE, tiny_checkpoint, tiny_config, tiny_features, tiny_inputs

ABLATIONS = pytest.mark.parametrize("ablation", ["noar", "discrete", "noimagine"])


def ablated(ablation: str, nova_layout: bool = False) -> PARConfig:
    config = tiny_config(nova_layout)
    if ablation == "discrete":
        action = dataclasses.replace(config.action, conditions="actions")
        return dataclasses.replace(config, action=action, detokenizers="regression")
    if ablation == "noar":
        encoder = dataclasses.replace(config.nova.video_encoder, depth=0)
        config = dataclasses.replace(
            config, nova=dataclasses.replace(config.nova, video_encoder=encoder), imagination=False
        )
    return dataclasses.replace(config, imagination=False)


def model_of(ablation: str, nova_layout: bool = False) -> PARModel:
    torch.manual_seed(0)
    model = PARModel(ablated(ablation, nova_layout))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def targets(batch: int, steps: int) -> Targets:
    generator = torch.Generator().manual_seed(5)
    return Targets(
        torch.randn(batch, steps, LENGTH, SIZE, generator=generator),
        torch.ones(batch, steps, LENGTH),
        torch.randn(batch, steps, 2, 8, 8, generator=generator),
        torch.ones(batch, steps, dtype=torch.bool),
    )


@ABLATIONS
@pytest.mark.parametrize("nova_layout", [False, True], ids=["mini", "nova"])
def test_losses_fall_and_every_part_that_is_used_learns(ablation: str, nova_layout: bool) -> None:
    model = model_of(ablation, nova_layout).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        loss = model.loss(
            tiny_features(2), tiny_inputs(2, 2), torch.arange(2).expand(2, 2), targets(2, 2), generator=generator
        )
        optimizer.zero_grad()
        loss.total.backward()
        if step == 0:
            unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
        optimizer.step()
        losses.append(loss.action.item())
        assert (loss.frame.item() > 0) == (ablation == "discrete")
    assert losses[-1] < 0.8 * losses[0]
    idle = ("motion", "mask_token", "bos_token", "action_tokenizer", "mixer") if ablation == "noar" else ("motion",)
    if ablation == "noimagine":
        idle += ("mask_token", "bos_token", "mixer")
    assert {name for name in unused if not any(word in name for word in idle)} - {"nova.mask_embed.bos_token"} == set()


@ABLATIONS
def test_parts_that_are_ablated_do_not_exist(ablation: str) -> None:
    names = {name.rpartition(".")[0] for name, _ in model_of(ablation).named_parameters()}
    assert any(name.startswith("nova.image_encoder") for name in names) == (ablation == "discrete")
    assert not any(name.startswith("nova.image_decoder") for name in names)
    assert any(name.startswith("nova.video_encoder.blocks") for name in names) == (ablation != "noar")
    assert any("cross_attn" in name for name in names) == (ablation != "discrete")


@ABLATIONS
@torch.no_grad()
def test_cached_steps_equal_the_whole_sequence(ablation: str) -> None:
    model, inputs, features = model_of(ablation).eval(), tiny_inputs(2, 4), tiny_features(2)
    _, whole = model(features, inputs, torch.arange(4).expand(2, 4))
    stream = model.start(features, slots=4)
    for step in range(4):
        one = PhysicalTokens(*(value[:, step : step + 1] for value in vars(inputs).values()))
        _, z_action = model.step(stream, one)
        torch.testing.assert_close(z_action, whole[:, step], rtol=0, atol=1e-5)
    if ablation == "noar":
        assert whole.shape[2] == model.config.nova.text_length + model.frame_tokens


@torch.no_grad()
def test_without_autoregression_the_past_is_not_seen() -> None:
    model, inputs, features = model_of("noar").eval(), tiny_inputs(1, 3), tiny_features(1)
    steps = torch.arange(3).expand(1, 3)
    changed = dataclasses.replace(inputs, latents=inputs.latents.clone())
    changed.latents[:, 0] += 1.0
    before, after = (model(features, x, steps)[1] for x in (inputs, changed))
    assert torch.equal(before[:, 1:], after[:, 1:]) and not torch.equal(before[:, 0], after[:, 0])


@torch.no_grad()
def test_regression_has_one_answer_for_actions_and_frames() -> None:
    model = model_of("discrete").eval()
    z = torch.randn(2, LENGTH, 32)
    first, second = (model.sample_actions(z, torch.randn(2, LENGTH, SIZE), 4) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (2, LENGTH, SIZE)
    z_frame = torch.randn(2, model.frame_tokens, 32)
    last, sources = torch.randn(2, 2, 8, 8), [RandomNoise(torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    frames = [model.sample_frame(z_frame, last, source) for source in sources]
    assert torch.equal(*frames) and frames[0].shape == (2, 2, 8, 8)


def test_regression_learns_from_foresight_what_it_does_not_execute() -> None:
    config = ablated("discrete")
    config = dataclasses.replace(config, action=dataclasses.replace(config.action, foresight=(9, 15)))
    torch.manual_seed(0)
    model = PARModel(config)
    chunk, wanted = targets(2, 2), torch.randn(2, 2, LENGTH + 2, SIZE)
    losses = []
    for weights in ([1.0] * LENGTH + [0.0, 0.0], [0.0] * LENGTH + [1.0, 0.0], [0.0] * LENGTH + [0.0, 1.0]):
        ahead = dataclasses.replace(chunk, actions=wanted, action_weights=torch.tensor(weights).expand(2, 2, -1))
        loss = model.loss(tiny_features(2), tiny_inputs(2, 2), torch.arange(2).expand(2, 2), ahead)
        (gradient,) = torch.autograd.grad(loss.action, model.action_tokenizer.boa)
        losses.append((loss.action.item(), gradient.abs().sum().item()))
    assert len({value for value, _ in losses}) == 3 and all(size > 0 for _, size in losses)
    assert model.sample_actions(torch.randn(2, LENGTH, 32), wanted[:, 0], 4).shape == (2, LENGTH, SIZE)
    near, far = model.action_detokenizer(torch.randn(1, 32), ahead=2)[1:]
    assert not torch.equal(near, far), "further actions are told apart by their places alone"


def test_a_policy_names_frames_that_its_encoder_cannot_read() -> None:
    checkpoint = tiny_checkpoint()
    assert checkpoint.transforms is not None
    transforms = dataclasses.replace(checkpoint.transforms, crop=(4, 8, 15, 15))
    agent = PARPolicy(dataclasses.replace(checkpoint, transforms=transforms), "push the cube")
    with pytest.raises(UserError, match="frames of 15x15 pixels do not divide into latents of stride 2"):
        agent.act(observation(2))


@ABLATIONS
def test_ablated_policies_act_and_survive_saving(ablation: str, tmp_path: Path) -> None:
    model = model_of(ablation).eval()
    agent = PARPolicy(dataclasses.replace(tiny_checkpoint(), model=model), "push the cube")
    agent.save_pretrained(tmp_path)
    loaded = PARPolicy.from_pretrained(tmp_path, "push the cube")
    assert loaded.checkpoint.model.config == model.config
    assert torch.equal(roll(loaded, 2, LENGTH), roll(agent, 2, LENGTH))
    if ablation == "discrete":
        assert agent.imagine(2).frames.shape == (2, 2, 16, 16, 3)
        return
    with pytest.raises(UserError, match="predicts no frames"):
        agent.plan(observation(2), frames=True)


def test_presets_are_the_small_size_and_survive_json() -> None:
    mini = preset("mini")
    for name in ("par-noar", "par-discrete", "par-noimagine"):
        config = preset(name)
        assert PARConfig.from_json(config.to_json()) == config
        changes = {"conditions": "actions"} if config.detokenizers == "regression" else {}
        assert config.action == dataclasses.replace(mini.action, **changes)
        assert PRESETS[name].text_encoder == "hash"


def test_branches_start_as_small_as_the_configuration_says() -> None:
    tokens = torch.randn(2, 5, 32)
    added = []
    for start in (1.0, 0.1):
        torch.manual_seed(0)
        block = Block(EncoderConfig(1, 32, 1, branch_start=start))
        added.append((block.norm1(block.attn(tokens))).std())
    torch.testing.assert_close(added[1], 0.1 * added[0])


def test_impossible_combinations_are_refused() -> None:
    encoder = dataclasses.replace(preset("mini").nova.video_encoder, depth=0)
    nova = dataclasses.replace(preset("mini").nova, video_encoder=encoder)
    with pytest.raises(ValueError, match="temporal encoder of depth 0"):
        dataclasses.replace(preset("mini"), nova=nova)
    with pytest.raises(ValueError, match="detokenizers is 'vq'; expected 'diffusion' or 'regression'"):
        dataclasses.replace(preset("mini"), detokenizers="vq")
    with pytest.raises(ValueError, match="depth is -1"):
        dataclasses.replace(encoder, depth=-1)
    with pytest.raises(ValueError, match="branch_start is 0"):
        dataclasses.replace(encoder, branch_start=0.0)
    with pytest.raises(ValueError, match="conditions is 'frame'; expected 'actions' or 'token'"):
        dataclasses.replace(preset("mini").action, conditions="frame")
    with pytest.raises(ValueError, match=r"action\.conditions to 'actions'"):
        dataclasses.replace(preset("mini"), detokenizers="regression")


@pytest.mark.parametrize("nova_layout", [False, True], ids=["mini", "nova"])
def test_gradient_checkpointing_gives_the_same_gradients(nova_layout: bool) -> None:
    torch.manual_seed(0)
    model = PARModel(tiny_config(nova_layout)).train()
    gradients = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        generator = torch.Generator().manual_seed(0)
        loss = model.loss(
            tiny_features(2), tiny_inputs(2, 3), torch.arange(3).expand(2, 3), targets(2, 3), generator=generator
        )
        loss.total.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-5, atol=1e-6)
