"""Frame generation: the schedule of sets, guidance, noise processes and samplers against diffusers' own."""

from __future__ import annotations

import pytest
import torch

from nova_fixtures import ROOT
from par_agent.modeling.config import DiffusionConfig, GenerationConfig
from par_agent.modeling.diffusion import NoiseProcess, noise_process
from par_agent.modeling.nova.generation import RandomNoise, generate_clip, guide, mask_schedule
from par_agent.modeling.nova.model import NOVA

FLOW, DDPM = DiffusionConfig("flow", shift=2.0), DiffusionConfig("ddpm")


@pytest.fixture(scope="module")
def nova() -> NOVA:
    return NOVA.from_pretrained(ROOT / "nova_tiny" / "transformer")


@pytest.mark.parametrize(("patches", "steps"), [(24, 4), (24, 64), (1440, 64), (1, 1)])
def test_every_patch_is_drawn_once_and_no_set_is_empty(patches, steps):
    schedule = mask_schedule(patches, steps)
    assert sum(schedule) == patches and min(schedule) >= 1 and len(schedule) <= steps


def test_the_schedule_is_the_reference_run_s():
    assert mask_schedule(24, 4) == [2, 5, 8, 9]


def test_guidance_of_one_is_the_prompted_output_and_of_zero_the_null_one():
    outputs = torch.tensor([[3.0], [1.0]])
    assert [guide(outputs, g).item() for g in (0, 1, 2)] == [1, 3, 5]


def generate(nova: NOVA, seed: int = 0, first_frame: torch.Tensor | None = None, **options) -> torch.Tensor:
    config = GenerationConfig(**{"mask_steps": 2, "diffusion_steps": 2, "guidance": 1.0, **options})
    prompt, null = torch.ones(2, 48), torch.zeros(0, 48)
    features = [prompt] + ([null] if config.guided else [])
    prefix = nova.prefix(features, torch.full((len(features),), 5.0))
    noise = RandomNoise(torch.Generator().manual_seed(seed))
    return torch.stack(list(generate_clip(nova, prefix, 2, noise, config, first_frame=first_frame)), 2)


def test_the_same_seed_gives_the_same_clip_and_another_seed_another(nova):
    clips = [generate(nova, seed) for seed in (0, 0, 1)]
    assert clips[0].shape == (1, 4, 2, 8, 12) and clips[0].isfinite().all()
    assert torch.equal(clips[0], clips[1]) and not torch.equal(clips[0], clips[2])


def test_guidance_changes_the_clip(nova):
    assert not torch.equal(generate(nova, guidance=1.0), generate(nova, guidance=2.0))


def test_temperature_scales_the_noise_and_nothing_else(nova):
    assert not torch.equal(generate(nova, temperature=0.5), generate(nova))
    cold, again = (generate(nova, temperature=0.0, mask_steps=1, seed=seed) for seed in (0, 1))
    torch.testing.assert_close(cold, again)


def test_a_given_first_frame_is_kept_and_changes_the_next(nova):
    frames = [torch.full((1, 4, 8, 12), value) for value in (0.0, 1.0)]
    clips = [generate(nova, first_frame=frame) for frame in frames]
    assert all(torch.equal(clip[:, :, 0], frame) for clip, frame in zip(clips, frames, strict=True))
    assert not torch.equal(clips[0][:, :, 1], clips[1][:, :, 1])


def test_bad_numbers_of_frames_and_steps_are_refused(nova):
    with pytest.raises(ValueError, match="mask_steps is 0"):
        GenerationConfig(mask_steps=0)
    with pytest.raises(ValueError, match="temperature is 2"):
        GenerationConfig(temperature=2.0)
    with pytest.raises(ValueError, match="2000 denoising steps"):
        generate(nova, diffusion_steps=2000)
    with pytest.raises(ValueError, match="0 frames"):
        next(generate_clip(nova, torch.zeros(1, 8, 64), 0, RandomNoise(torch.Generator()), GenerationConfig()))


@pytest.mark.parametrize("config", [FLOW, DDPM])
def test_samplers_step_as_diffusers_schedulers_do(config):
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    if config.kind == "flow":
        scheduler = FlowMatchEulerDiscreteScheduler(1000, shift=2.0)
    else:
        scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(5)
    sampler = noise_process(config).sampler(5)
    assert sampler.times == tuple(scheduler.timesteps.tolist())
    generator = torch.Generator().manual_seed(0)
    x = theirs = torch.randn(2, 3, generator=generator)
    for j, time in enumerate(scheduler.timesteps):
        output, state = torch.randn(2, 3, generator=generator), generator.get_state()
        theirs = scheduler.step(output, time, theirs, generator=generator).prev_sample
        generator.set_state(state)
        noise = torch.randn(2, 3, generator=generator) if sampler.noise[j] else None
        x = sampler.step(j, x, output, noise)
        torch.testing.assert_close(x, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config", [FLOW, DDPM, DiffusionConfig("flow", train_steps=60), DiffusionConfig("ddpm", train_steps=60)]
)
def test_a_perfect_network_recovers_the_clean_sample(config):
    process = noise_process(config)
    clean, noise = torch.randn(4, 3), torch.randn(4, 3)
    sampler = process.sampler(50)
    assert max(sampler.times) <= config.train_steps
    x = process.noised(clean, noise, torch.zeros(4, dtype=torch.long)).x if config.kind == "flow" else noise
    for j, time in enumerate(sampler.times):
        if config.kind == "flow":
            output = noise - clean
        else:
            total = process.table[int(time)]
            output = (x - total.sqrt() * clean) / (1 - total).sqrt()
        x = sampler.step(j, x, output, torch.randn(4, 3) if sampler.noise[j] else None)
    torch.testing.assert_close(x, clean, atol=1e-3, rtol=0)


def test_a_shift_moves_the_noise_levels_towards_noise_and_no_step_is_spent_where_there_is_none():
    process = noise_process(DiffusionConfig("flow"))
    assert process.sampler(4, shift=1.0).sigmas == pytest.approx((1, 0.75, 0.5, 0.25, 0))
    assert process.sampler(4, shift=4.0).sigmas == pytest.approx((1, 12 / 13, 0.8, 4 / 7, 0), abs=1e-6)
    assert process.sampler(4).sigmas[-2] < 0.002
    x, clean = noise, _ = torch.randn(2, 4, 3)
    for j in range(4):
        x = process.sampler(4, shift=4.0).step(j, x, noise - clean)
    torch.testing.assert_close(x, clean)
    with pytest.raises(ValueError, match=r"a shift of 4.0 was asked for; only flow matching has one, this is ddpm"):
        noise_process(DDPM).sampler(4, shift=4.0)


def test_a_schedulers_length_counts_however_it_was_given():
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    for scheduler in (FlowMatchEulerDiscreteScheduler(60), DDPMScheduler(60, clip_sample=False)):
        assert max(NoiseProcess(scheduler).sampler(50).times) <= 60


@pytest.mark.parametrize("config", [FLOW, DDPM])
def test_noising_keeps_the_variance_and_training_times_stay_in_range(config):
    process, generator = noise_process(config), torch.Generator().manual_seed(0)
    index = process.draw_index((4096,), generator, torch.device("cpu"))
    assert index.min() >= 0 and index.max() < 1000
    clean, noise = torch.randn(2, 4096, 1, generator=generator).unbind(0)
    noised = process.noised(clean, noise, index)
    assert noised.x.shape == clean.shape and noised.time.shape == index.shape
    if config.kind == "ddpm":
        assert noised.x.var().item() == pytest.approx(1, abs=0.1)
        assert torch.equal(noised.target, noise)
    else:
        assert torch.equal(noised.target, noise - clean)


def test_schedulers_that_mean_something_else_are_refused():
    from diffusers import DDIMScheduler, DDPMScheduler

    with pytest.raises(ValueError, match="DDIMScheduler is not known"):
        NoiseProcess(DDIMScheduler())
    with pytest.raises(ValueError, match="clip_sample=True"):
        NoiseProcess(DDPMScheduler())
