"""The video VAE reproduces the reference tensors and names every fault of a broken folder."""

from __future__ import annotations

import pytest
import torch

from nova_fixtures import ROOT, WEIGHTS, damaged, full_keys, reference
from par_agent.errors import UserError
from par_agent.modeling.vae.opensora_vae import AutoencoderKLOpenSora, OpenSoraVAEConfig

FOLDER = ROOT / "vae_tiny"
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLOpenSora:
    return AutoencoderKLOpenSora.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return reference("vae_tiny_io")


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["image", "clip", "clip33"])
def test_encoding_gives_the_reference_mean_and_logvar(vae, io, name):
    latents = vae.encode(io[f"in.{name}"])
    assert_close(latents.mean, io[f"out.enc.{name}.mean"])
    assert_close(latents.logvar, io[f"out.enc.{name}.logvar"])


@pytest.mark.parametrize("name", ["latent_image", "latent_clip", "latent_clip33"])
def test_decoding_gives_the_reference_frames(vae, io, name):
    assert_close(vae.decode(io[f"in.{name}"]), io[f"out.dec.{name}.sample"])


def test_an_image_is_a_clip_of_one_frame(vae, io):
    mean = vae.encode(io["in.image"][:, :, None]).mean
    assert_close(mean, io["out.enc.image_as_clip.mean"])
    assert_close(mean[:, :, 0], io["out.enc.image.mean"])


def test_scaling_gives_the_reference_latents_and_unscaling_undoes_it(vae, io):
    mean = vae.encode(io["in.image"]).mean
    assert_close(vae.scale(mean), io["out.enc.image.scaled_mean"])
    assert_close(vae.unscale(io["in.latent_image"]), io["out.dec.latent_image.unscaled"])
    assert_close(vae.unscale(vae.scale(mean)), mean)


def test_a_shift_factor_is_subtracted_before_scaling():
    vae = AutoencoderKLOpenSora(
        OpenSoraVAEConfig(block_out_channels=(32,) * 4, layers_per_block=1, scaling_factor=2.0, shift_factor=0.5)
    )
    latents = torch.tensor([1.5])
    assert vae.scale(latents).item() == 2.0
    assert vae.unscale(vae.scale(latents)).item() == 1.5


def test_every_stage_gives_the_reference_tensor(vae, io):
    stages = {f"out.enc.image.stage_down{i}": block for i, block in enumerate(vae.encoder.down_blocks)}
    stages["out.enc.image.stage_mid"] = vae.encoder.mid_block
    stages["out.dec.latent_image.stage_mid"] = vae.decoder.mid_block
    stages |= {f"out.dec.latent_image.stage_up{i}": vae.decoder.up_blocks[i] for i in range(2)}
    seen = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))
        for name, module in stages.items()
    ]
    vae.encode(io["in.image"])
    vae.decode(io["in.latent_image"])
    for handle in handles:
        handle.remove()
    for name in stages:
        assert_close(seen[name], io[name])


def test_incomplete_last_chunks_of_long_clips_are_dropped(vae, io):
    clip = io["in.clip33"]
    assert_close(vae.encode(clip[:, :, :32]).mean, vae.encode(clip[:, :, :17]).mean)


def test_the_full_size_model_has_the_published_keys_shapes_and_counts():
    published = full_keys()
    with torch.device("meta"):
        vae = AutoencoderKLOpenSora(OpenSoraVAEConfig())
    assert {name: list(value.shape) for name, value in vae.state_dict().items()} == published["vae_keys"]
    assert sum(p.numel() for p in vae.parameters()) == published["counts"]["vae"]["parameters"] == 239_189_991


def test_weights_are_cast_to_the_type_asked_for_and_frozen(vae):
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    half = AutoencoderKLOpenSora.from_pretrained(FOLDER, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in half.parameters())


def test_other_depths_widths_and_block_patterns_follow_from_the_configuration():
    config = OpenSoraVAEConfig(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock3D", "DownEncoderBlock3D"),
        up_block_types=("UpDecoderBlock3D",) * 3,
        block_out_channels=(8, 16, 24),
        norm_num_groups=4,
        layers_per_block=3,
        latent_channels=6,
        use_quant_conv=False,
    )
    vae = AutoencoderKLOpenSora(config)
    assert vae.encode(torch.zeros(2, 3, 5, 8, 12)).mean.shape == (2, 6, 2, 2, 3)
    assert vae.decode(torch.zeros(2, 6, 2, 3)).shape == (2, 3, 8, 12)


def test_pickled_weights_are_refused_and_never_opened(tmp_path):
    folder = damaged(FOLDER, tmp_path / "vae")
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled weights \(diffusion_pytorch_model.bin\).*safetensors"):
        AutoencoderKLOpenSora.from_pretrained(folder)


def test_a_truncated_file_is_named(tmp_path):
    folder = damaged(FOLDER, tmp_path / "vae")
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        AutoencoderKLOpenSora.from_pretrained(folder)


def test_a_missing_folder_or_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        AutoencoderKLOpenSora.from_pretrained(tmp_path / "nowhere")
    folder = damaged(FOLDER, tmp_path / "vae")
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="has no weights"):
        AutoencoderKLOpenSora.from_pretrained(folder)


def test_missing_left_over_misshapen_and_nan_tensors_are_all_named_at_once(tmp_path):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["quant_conv.bias"]
        tensors["decoder.extra"] = torch.zeros(1)
        tensors["encoder.conv_in.bias"] = torch.zeros(7)
        tensors["decoder.conv_out.bias"][1] = torch.nan

    with pytest.raises(UserError) as caught:
        AutoencoderKLOpenSora.from_pretrained(damaged(FOLDER, tmp_path / "vae", weights=change))
    message = str(caught.value)
    assert "missing keys (1): quant_conv.bias" in message
    assert "left-over keys (1): decoder.extra" in message
    assert "encoder.conv_in.bias is 7, the configuration says 32" in message
    assert "NaN or infinite values in (1): decoder.conv_out.bias" in message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temporal_tiles", 3, "unknown fields.*temporal_tiles"),
        ("down_block_types", ["DownEncoderBlock4D"] * 4, "DownEncoderBlock4D"),
        ("up_block_types", ["UpDecoderBlock2D"] * 4, "UpDecoderBlock3D"),
        ("block_out_channels", [32, 48, 32, 32], "multiple of norm_num_groups"),
        ("act_fn", "relu", "act_fn is 'relu'"),
        ("latents_mean", [0.0], "latents_mean"),
    ],
)
def test_configurations_that_this_version_cannot_read_are_refused_by_name(tmp_path, field, value, message):
    folder = damaged(FOLDER, tmp_path / "vae", config=lambda content: content.update({field: value}))
    with pytest.raises(UserError, match=message):
        AutoencoderKLOpenSora.from_pretrained(folder)


@pytest.mark.parametrize("shape", [(1, 3, 30, 48), (1, 4, 32, 48), (3, 32, 48), (1, 3, 0, 32, 48)])
def test_frames_of_the_wrong_size_are_refused(vae, shape):
    with pytest.raises(ValueError, match="multiples of 8"):
        vae.encode(torch.zeros(shape))


def test_samples_spread_around_the_mean_and_repeat_with_the_same_seed(vae, io):
    latents = vae.encode(io["in.image"])
    draws = [latents.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert ((draws[0] - latents.mean) / (0.5 * latents.logvar).exp()).std().item() == pytest.approx(1, abs=0.3)
