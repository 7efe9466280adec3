"""A frame path that reads the last frame: it keeps what stays, and its preconditioned de-tokenizer learns quickly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from par_agent import PARPolicy
from par_agent.modeling.config import DiffusionConfig, GenerationConfig
from par_agent.modeling.diffusion import noise_process
from par_agent.modeling.frame_loss import draw_known_patches, frame_loss
from par_agent.modeling.nova.generation import RandomNoise, generate_clip, generate_frame
from par_agent.modeling.nova.model import NOVA
from par_agent.modeling.par import PARModel, Targets
from test_policy import observation
from tiny import LENGTH, tiny_checkpoint, tiny_config, tiny_features, tiny_inputs

PRECONDITIONED = DiffusionConfig("flow", preconditioned=True)
ONE_STEP = GenerationConfig(mask_steps=1, diffusion_steps=1, guidance=1.0, temperature=0.0)


def last_frame_model(seed: int = 0) -> PARModel:
    torch.manual_seed(seed)
    config = tiny_config()
    return PARModel(replace(config, nova=replace(config.nova, reads_last_frame=True, diffusion=PRECONDITIONED))).eval()


def test_preconditioning_asks_for_outputs_of_unit_variance_and_weighs_all_noise_levels_alike() -> None:
    process, generator = noise_process(PRECONDITIONED), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(50_000, 1, 1, generator=generator) for _ in range(2))
    for index in (20, 300, 700, 980):
        noised = process.noised(clean, noise, torch.full((50_000, 1), index))
        assert process.precondition_input(noised.x, noised.time).var() == pytest.approx(1, abs=0.03)
        nothing = process.precondition_output(noised.x, noised.time, torch.zeros_like(noised.x))
        left = noised.target - nothing  # what the network has to predict
        assert (left * noised.x).mean() == pytest.approx(0, abs=0.015)
        errors = left.square().mean(-1) * process.loss_weights(noised.time)
        assert errors.mean() == pytest.approx(1, abs=0.03)


def test_a_plain_process_leaves_the_networks_output_as_it_is() -> None:
    process, x, output = noise_process(DiffusionConfig("flow")), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    time = torch.tensor([10.0, 900.0])
    assert process.precondition_output(x, time, output) is output and process.precondition_input(x, time) is x
    assert torch.equal(process.loss_weights(time), torch.ones(2))


def test_preconditioning_is_for_flow_matching() -> None:
    with pytest.raises(ValueError, match="preconditioned goes with kind 'flow' only"):
        DiffusionConfig("ddpm", preconditioned=True)


def test_a_frame_cannot_be_drawn_without_the_last_one() -> None:
    model = last_frame_model()
    condition, nothing = torch.randn(1, model.frame_tokens, 32), torch.zeros(1, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="reads the frame before"):
        model.nova.encode_frame(torch.zeros(1, 2, 8, 8), condition, nothing)


def test_guided_frames_and_clips_read_the_last_frame_too() -> None:
    nova = last_frame_model().nova
    config = GenerationConfig(mask_steps=2, diffusion_steps=2, guidance=2.0)
    noise, last = RandomNoise(torch.Generator().manual_seed(0)), torch.randn(2, 2, 8, 8)
    order, condition = noise.order(2, 16), torch.randn(4, 5, 32)
    frames = [
        generate_frame(nova, condition, RandomNoise(torch.Generator().manual_seed(1)), order, config, last=before)
        for before in (last, last + 1)
    ]
    assert frames[0].shape == (2, 2, 8, 8) and not torch.equal(*frames)
    prefix = nova.prefix([torch.randn(3, 8) for _ in range(4)])
    with torch.no_grad():
        clip = list(generate_clip(nova, prefix, 3, noise, config))
    assert [frame.shape for frame in clip] == [(2, 2, 8, 8)] * 3


@pytest.mark.parametrize("detokenizers", ["diffusion", "regression"])
def test_training_reads_the_frame_that_was_read_and_never_the_one_to_predict(detokenizers: str) -> None:
    config = last_frame_model().config
    if detokenizers == "regression":
        config = replace(config.with_action(conditions="actions"), detokenizers="regression")
    model, seen = PARModel(config), []
    encode_frame = model.nova.encode_frame

    def spying(latents: Tensor, condition: Tensor, known: Tensor, last: Tensor | None = None) -> Tensor:
        seen.append(last)
        return encode_frame(latents, condition, known, last)

    model.nova.encode_frame = spying  # type: ignore[method-assign]
    inputs, following = tiny_inputs(2, 3), torch.randn(2, 3, 2, 8, 8)
    targets = Targets(None, torch.ones(2, 3, LENGTH), following, torch.ones(2, 3, dtype=torch.bool))
    loss = model.loss(tiny_features(2), inputs, torch.arange(3).expand(2, 3), targets)
    loss.frame.backward()
    [last] = seen
    rows = {tuple(row.flatten().tolist()) for row in last}
    assert rows == {tuple(row.flatten().tolist()) for row in inputs.latents.flatten(0, 1)}
    head = model.nova.image_encoder.change_head
    assert head is not None and head.weight.grad is not None and head.weight.grad.abs().sum() > 0


def test_half_precision_predicts_frames() -> None:
    model = last_frame_model().to(torch.bfloat16)
    checkpoint = replace(tiny_checkpoint(), model=model)
    plan = PARPolicy(checkpoint, "push the cube").plan(observation(2), frames=True)
    assert plan.frames is not None and plan.frames.dtype == torch.uint8


def test_where_nothing_moves_the_predicted_pixels_are_the_last_frames() -> None:
    checkpoint = replace(tiny_checkpoint(), model=last_frame_model())
    change = checkpoint.model.nova.image_encoder.change_head
    assert change is not None
    agent, obs = PARPolicy(checkpoint, "push the cube"), observation(2)
    shown = checkpoint.transforms.frames(obs["sensor_data"]["render_camera"]["rgb"])
    frames = []
    for bias in (-50.0, 50.0):
        with torch.no_grad():
            change.weight.zero_()
            change.bias.fill_(bias)
        plan = agent.plan(obs, frames=True).frames
        assert torch.equal(agent.imagine(1).frames[:, 0], plan)
        frames.append(plan)
    assert torch.equal(frames[0], shown) and not torch.equal(frames[1], shown)
    with torch.no_grad():
        change.bias.fill_(-50.0)
    assert torch.equal(agent.imagine(3).frames, shown[:, None].expand(-1, 3, -1, -1, -1))


def moving_square(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Latents before and after one patch of a textured frame moved one patch to the right."""
    last = torch.randn(count, 2, 8, 8, generator=generator)
    row, column = (2 * torch.randint(high, (count,), generator=generator) for high in (4, 3))
    following = last.clone()
    for number in range(count):
        y, x = slice(row[number], row[number] + 2), int(column[number])
        last[number, :, y, x : x + 2] = 3.0
        following[number, :, y, x + 2 : x + 4] = 3.0
    return last, following


def test_a_model_that_reads_the_last_frame_learns_what_moves_and_keeps_the_rest() -> None:
    torch.manual_seed(0)
    config = last_frame_model().config.nova
    nova, generator = NOVA(replace(config, decoder_width=64)), torch.Generator().manual_seed(0)
    change = nova.image_encoder.change_head
    assert change is not None
    optimizer = torch.optim.AdamW(nova.parameters(), 3e-3)
    condition = torch.zeros(64, 5, 32)
    for _ in range(150):
        last, following = moving_square(64, generator)
        known = draw_known_patches(64, config.image_tokens, generator, torch.device("cpu"))
        optimizer.zero_grad()
        frame_loss(nova, following, condition, known, 2, generator, last).backward()
        optimizer.step()
    last, following = moving_square(64, generator)
    nothing = torch.zeros(64, 0, dtype=torch.long)
    with torch.no_grad():
        logits = change(nova.eval().encode_frame(last, condition, nothing, last))[..., 0]
    assert ((logits > 0) == nova.changed(last, following)).float().mean() > 0.95
    noise = RandomNoise(generator)
    drawn = generate_frame(nova, condition, noise, noise.order(64, 16), ONE_STEP, last=last)
    assert (drawn - following).square().mean() < 0.5 * (last - following).square().mean()
