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
from par_agent.modeling.nova.generation import RandomNoise, generate_frame
from par_agent.modeling.nova.model import NOVA
from par_agent.modeling.par import PARModel
from test_policy import observation
from tiny import tiny_checkpoint, tiny_config

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
        assert process.network_input(noised.x, noised.time).var() == pytest.approx(1, abs=0.03)
        nothing = process.complete(noised.x, noised.time, torch.zeros_like(noised.x))
        left = noised.target - nothing  # what the network has to predict
        assert (left * noised.x).mean() == pytest.approx(0, abs=0.015)
        errors = left.square().mean(-1) * process.error_weights(noised.time)
        assert errors.mean() == pytest.approx(1, abs=0.03)


def test_a_plain_process_leaves_the_networks_output_as_it_is() -> None:
    process, x, output = noise_process(DiffusionConfig("flow")), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    time = torch.tensor([10.0, 900.0])
    assert process.complete(x, time, output) is output and process.network_input(x, time) is x
    assert torch.equal(process.error_weights(time), torch.ones(2))


def test_preconditioning_is_for_flow_matching() -> None:
    with pytest.raises(ValueError, match="preconditioned goes with kind 'flow' only"):
        DiffusionConfig("ddpm", preconditioned=True)


def test_a_frame_cannot_be_drawn_without_the_last_one() -> None:
    model = last_frame_model()
    condition, nothing = torch.randn(1, model.frame_tokens, 32), torch.zeros(1, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="reads the frame before"):
        model.nova.encode_frame(torch.zeros(1, 2, 8, 8), condition, nothing)


def test_where_nothing_moves_the_predicted_pixels_are_the_last_frames() -> None:
    checkpoint = replace(tiny_checkpoint(), model=last_frame_model())
    motion = checkpoint.model.nova.image_encoder.motion
    assert motion is not None
    agent, obs = PARPolicy(checkpoint, "push the cube"), observation(2)
    shown = checkpoint.transforms.frames(obs["sensor_data"]["render_camera"]["rgb"])
    frames = []
    for bias in (-50.0, 50.0):
        with torch.no_grad():
            motion.weight.zero_()
            motion.bias.fill_(bias)
        plan = agent.plan(obs, frames=True).frames
        assert torch.equal(agent.imagine(1).frames[:, 0], plan)
        frames.append(plan)
    assert torch.equal(frames[0], shown) and not torch.equal(frames[1], shown)
    with torch.no_grad():
        motion.bias.fill_(-50.0)
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
    motion = nova.image_encoder.motion
    assert motion is not None
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
        logits = motion(nova.eval().encode_frame(last, condition, nothing, last))[..., 0]
    assert ((logits > 0) == nova.moving(last, following)).float().mean() > 0.95
    noise = RandomNoise(generator)
    drawn = generate_frame(nova, condition, noise, noise.order(64, 16), ONE_STEP, last=last)
    assert (drawn - following).square().mean() < 0.5 * (last - following).square().mean()
