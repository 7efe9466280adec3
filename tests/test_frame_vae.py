"""The small frame VAE: shapes, scaling, its loss, saving and loading, and bad sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from par_agent.modeling.vae.frame_vae import FrameVAE, FrameVAEConfig, to_frames, to_pixels, vae_loss
from par_agent.modeling.weights import hash_weights, load_module, save_module

CONFIG = FrameVAEConfig(channels=4, widths=(8, 16))


@pytest.fixture
def vae() -> FrameVAE:
    torch.manual_seed(0)
    return FrameVAE(CONFIG).eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (6, 16, 24, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_frames_become_latents_of_the_stride_and_come_back(vae, frames):
    assert CONFIG.stride == 4
    latents = vae.encode(frames)
    assert latents.shape == (6, 4, 4, 6) and latents.dtype == torch.float32
    shown = vae.decode(latents)
    assert shown.shape == frames.shape and shown.dtype == torch.uint8


def test_pixels_are_an_exact_image_of_frames():
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    pixels = to_pixels(frames)
    assert pixels.shape == (1, 3, 16, 16) and (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(to_frames(pixels), frames)
    assert torch.equal(to_frames(torch.full((1, 3, 1, 1), 1.5)), torch.full((1, 1, 1, 3), 255, dtype=torch.uint8))


def test_the_scale_standardises_latents_and_leaves_pictures_alone(vae, frames):
    raw, shown = vae.encode(frames), vae.decode(vae.encode(frames))
    vae.set_scale(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    scaled = vae.encode(frames)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-5, rtol=0)
    assert (vae.decode(scaled).int() - shown.int()).abs().max() <= 1


def test_a_channel_without_variance_stays_finite(vae, frames):
    vae.set_scale(torch.zeros(4), torch.zeros(4))
    assert vae.encode(frames).isfinite().all()


def test_encoding_is_the_same_alone_and_in_a_batch(vae, frames):
    torch.testing.assert_close(torch.cat([vae.encode(frame[None]) for frame in frames]), vae.encode(frames))


def test_the_loss_is_reconstruction_plus_weighted_kl(vae, frames):
    pixels = to_pixels(frames)
    loss, squared = vae_loss(vae, pixels, 0.25, torch.Generator().manual_seed(3))
    with torch.no_grad():
        mean, log_variance = vae.posterior(pixels)
        posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
        shown = vae.reconstruct(posterior.mean + posterior.stddev * noise)
        kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, 1)).mean()
    torch.testing.assert_close(squared, F.mse_loss(shown, pixels))
    torch.testing.assert_close(loss.detach(), (shown - pixels).abs().mean() + F.mse_loss(shown, pixels) + 0.25 * kl)


def test_the_loss_reaches_every_weight(vae, frames):
    vae_loss(vae, to_pixels(frames), 0.1, torch.Generator().manual_seed(0))[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_saved_and_loaded_encodes_alike(vae, frames, tmp_path):
    vae.set_scale(torch.arange(4.0), torch.arange(1.0, 5.0))
    save_module(vae, dataclasses.asdict(CONFIG), tmp_path)
    with torch.device("meta"):
        loaded = FrameVAE(CONFIG)
    load_module(loaded, tmp_path)
    assert torch.equal(loaded.encode(frames), vae.encode(frames))


def test_its_hash_is_that_of_its_numbers_whatever_file_they_come_from(vae, tmp_path):
    vae.half().float()  # numbers that either type holds
    for number, dtype in enumerate((torch.float16, torch.float32)):
        save_module(vae, dataclasses.asdict(CONFIG), tmp_path / str(number), dtype)
        loaded = FrameVAE(CONFIG)
        load_module(loaded, tmp_path / str(number))
        assert hash_weights(loaded) == hash_weights(vae)
    next(loaded.parameters()).data[0] += 1
    assert hash_weights(loaded) != hash_weights(vae)


@pytest.mark.parametrize("size", [(18, 24), (16, 22)])
def test_frames_that_do_not_divide_are_refused(vae, size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels.*stride 4"):
        vae.encode(torch.zeros(1, *size, 3, dtype=torch.uint8))


@pytest.mark.parametrize("values", [{"channels": 0}, {"widths": ()}, {"widths": (12,)}, {"widths": (0, 8)}])
def test_bad_sizes_are_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} is .*(multiple of 8|at least 1|give it a value)"):
        FrameVAEConfig(**values)
