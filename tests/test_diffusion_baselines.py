"""Diffusion Policy and RDT: their schedules, and what their blocks look at."""

from __future__ import annotations

import torch

from baselines.dp import DP, DPConfig
from baselines.rdt import RDT, RDTConfig
from par_agent.modeling.action_detokenizer import KeysAndValues


def test_dp_denoises_on_the_schedule_that_it_learnt() -> None:
    sizes = DPConfig(train_steps=100, sampling_steps=16)
    model = DP(sizes)
    clean, noise = torch.randn(2, 3, sizes.horizon, sizes.action_size, generator=torch.Generator().manual_seed(0))

    def perfect(x: torch.Tensor, time: torch.Tensor, observed: KeysAndValues) -> torch.Tensor:
        assert int(time.max()) < sizes.train_steps
        total = model.noising.alphas_cumprod[time][:, None, None]
        return (x - total.sqrt() * clean) / (1 - total).sqrt()

    model._noise = perfect  # type: ignore[method-assign]
    torch.testing.assert_close(model.draw(torch.zeros(3, 1, sizes.width), noise), clean, atol=1e-3, rtol=0)


def test_rdt_denoises_on_the_schedule_that_it_learnt() -> None:
    sizes = RDTConfig(layers=2)
    model = RDT(sizes)
    noise = torch.randn(3, *model.noise_shape, generator=torch.Generator().manual_seed(0))
    wanted = torch.randn(3, sizes.horizon, sizes.action_size, generator=torch.Generator().manual_seed(1))
    clean = model._with_substeps(wanted)
    torch.testing.assert_close(clean[:, 2:-4:4], torch.lerp(wanted[:, :-1], wanted[:, 1:], 0.5))
    levels = []

    def perfect(x: torch.Tensor, time: torch.Tensor, z: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        total = model.noising.alphas_cumprod[time][:, None, None]
        levels.append(((x - total.sqrt() * clean) / (1 - total).sqrt() - noise).abs().max().item())
        return clean

    model._clean = perfect  # type: ignore[method-assign]
    torch.testing.assert_close(model.draw(torch.zeros(3, 1, sizes.width), noise), wanted, atol=1e-3, rtol=0)
    assert len(levels) == sizes.sampling_steps and max(levels) < 0.05


def test_rdts_blocks_look_at_text_first_then_at_images_in_turns() -> None:
    model = RDT(RDTConfig(layers=4))
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].shape[1]))
    text, images = model.config.text_length, model.image_positions.shape[0]
    z, x = torch.randn(1, text + 1 + images, model.config.width), torch.randn(1, 64, 8)
    clean = model._clean(x, torch.tensor([500]), z, torch.ones(1, 4, dtype=torch.bool))
    assert seen == [text, images, text, images]
    assert clean.shape == x.shape and not clean.any()  # the last layer starts from zero
