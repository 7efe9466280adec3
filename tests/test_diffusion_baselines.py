"""Diffusion Policy and RDT: their schedules, and what their blocks look at."""

from __future__ import annotations

import pytest
import torch

from par_agent.baselines.dp import DP, DPConfig
from par_agent.baselines.rdt import RDT, RDTConfig
from par_agent.errors import UserError
from par_agent.modeling.blocks import KeysAndValues


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
    clean, noise = torch.randn(2, 3, sizes.horizon, sizes.action_size, generator=torch.Generator().manual_seed(0))
    levels = []

    def perfect(x: torch.Tensor, time: torch.Tensor, state: torch.Tensor, observed: KeysAndValues) -> torch.Tensor:
        total = model.noising.alphas_cumprod[time][:, None, None]
        levels.append(((x - total.sqrt() * clean) / (1 - total).sqrt() - noise).abs().max().item())
        return clean

    model._clean = perfect  # type: ignore[method-assign]
    z = torch.zeros(3, sizes.text_length + 1 + model.image_positions.shape[0], sizes.width)
    torch.testing.assert_close(model.draw(z, noise), clean, atol=1e-3, rtol=0)
    assert len(levels) == sizes.sampling_steps and max(levels) < 0.05


@pytest.mark.parametrize(("shift", "median"), [(1, 500), (4, 800)])
def test_rdt_shifts_the_times_of_training_towards_noise(shift: float, median: float) -> None:
    torch.manual_seed(0)
    model = RDT(RDTConfig(layers=1, noise_samples=1, time_shift=shift))
    seen = []

    def clean(x: torch.Tensor, time: torch.Tensor, state: torch.Tensor, observed: KeysAndValues) -> torch.Tensor:
        seen.append(time)
        return x

    model._clean = clean  # type: ignore[method-assign]
    z = torch.zeros(4000, model.config.text_length + 1 + model.image_positions.shape[0], 1).expand(-1, -1, 256)
    model._memory = lambda z, kept: (z[:, :1], [])  # type: ignore[method-assign]
    model.chunk_loss(z, torch.zeros(4000, 16, 8), torch.ones(4000, 16))
    times = seen[0].float()
    assert times.min() >= 0 and times.max() < 1000
    assert abs(times.median() - median) < 20


def test_rdt_refuses_shares_and_shifts_that_make_no_sense() -> None:
    for name, value in (("hidden", 1.0), ("time_shift", 0.0)):
        with pytest.raises(UserError, match=f"{name} is {value}"):
            RDTConfig(**{name: value})


def test_rdts_blocks_look_at_text_first_then_at_images_in_turns() -> None:
    model = RDT(RDTConfig(layers=4))
    text, images = model.config.text_length, model.image_positions.shape[0]
    z, x = torch.randn(1, text + 1 + images, model.config.width), torch.randn(1, 16, 8)
    state, observed = model._memory(z, torch.ones(1, 4, dtype=torch.bool))
    assert [keys.shape[2] for keys, _ in observed] == [text, images, text, images]
    clean = model._clean(x, torch.tensor([500]), state, observed)
    assert clean.shape == x.shape and not clean.any()  # the last layer starts from zero


def test_rdt_hides_text_joints_and_observations_one_by_one() -> None:
    model = RDT(RDTConfig(layers=2))
    z = torch.randn(1, model.config.text_length + 1 + model.image_positions.shape[0], model.config.width)
    half = model.image_positions.shape[0] // 2
    shown = model._memory(z, torch.ones(1, 4, dtype=torch.bool))
    for number in range(4):
        state, observed = model._memory(z, torch.arange(4)[None] != number)
        (text, _), (images, _) = observed
        same = [
            torch.equal(text, shown[1][0][0]),
            torch.equal(state, shown[0]),
            torch.equal(images[:, :, :half], shown[1][1][0][:, :, :half]),
            torch.equal(images[:, :, half:], shown[1][1][0][:, :, half:]),
        ]
        assert same == [part != number for part in range(4)]
