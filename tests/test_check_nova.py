"""`par-agent check-nova` passes on the reference and fails, by name, on anything that is off or was not computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nova_fixtures import ROOT, damaged, reference, write_nova
from par_agent.cli import main
from par_agent.cli.check_nova import compare
from par_agent.cli.parity import compute
from par_agent.cli.parity.nova import STAGES, nova_stages
from par_agent.modeling.nova.generation import mask_schedule
from par_agent.modeling.nova.model import NOVA

VAE_IO = ROOT / "vae_tiny_io.safetensors"


def write_io(path: Path, stem: str, change) -> Path:
    """Copies a reference file and its description, changed in place."""
    tensors = reference(stem)
    change(tensors)
    save_file(tensors, path)
    path.with_suffix(".json").write_text((ROOT / f"{stem}.json").read_text())
    return path


def test_the_vae_check_prints_every_tensor_and_passes(capsys):
    assert main(["check-nova", "--vae", str(ROOT / "vae_tiny"), "--io", str(VAE_IO)]) == 0
    printed = capsys.readouterr().out
    names = [name[4:] for name in reference("vae_tiny_io") if name.startswith("out.")]
    assert all(name in printed for name in names)
    assert f"{len(names)} of {len(names)} reference tensors reproduced on cpu in float32" in printed


def test_a_changed_weight_fails_the_vae_check(tmp_path, capsys):
    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.conv_out.bias"] += 0.01

    folder = damaged(ROOT / "vae_tiny", tmp_path / "vae", weights=nudge)
    assert main(["check-nova", "--vae", str(folder), "--io", str(VAE_IO)]) == 1
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "FAIL" in rows["enc.image.mean"] and "FAIL" not in rows["dec.latent_clip.sample"]


def test_a_tensor_that_the_check_cannot_compute_fails_it(tmp_path, capsys):
    path = write_io(tmp_path / "io.safetensors", "vae_tiny_io", lambda t: t.update({"out.new.stage": torch.zeros(2)}))
    assert main(["check-nova", "--vae", str(ROOT / "vae_tiny"), "--io", str(path)]) == 1
    assert "FAIL not computed" in capsys.readouterr().out


def test_bfloat16_is_compared_with_wider_tolerances():
    expected = torch.ones(3)
    assert not compare("enc", expected + 1e-3, expected).passed
    assert compare("enc", expected + 1e-3, expected, factor=5e3).passed


def test_nan_and_wrong_shapes_never_pass():
    assert not compare("enc", torch.tensor([torch.nan]), torch.zeros(1)).passed
    assert "has shape 2" in str(compare("enc", torch.zeros(2), torch.zeros(1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass one of --transformer FOLDER and --vae FOLDER"),
        (["--vae", "nowhere"], "config.json does not exist"),
        (["--vae", str(ROOT / "vae_tiny"), "--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_bad_options_are_named(arguments, message, capsys):
    assert main(["check-nova", "--io", str(VAE_IO), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_reference_file_without_its_description_or_outputs_is_named(tmp_path, capsys):
    path = tmp_path / "io.safetensors"
    save_file({"in.image": torch.zeros(1)}, path)
    assert main(["check-nova", "--vae", str(ROOT / "vae_tiny"), "--io", str(path)]) == 2
    assert "expected a reference file" in capsys.readouterr().err
    save_file({"out.image": torch.zeros(1)}, path)
    assert main(["check-nova", "--vae", str(ROOT / "vae_tiny"), "--io", str(path)]) == 2
    assert "io.json does not exist" in capsys.readouterr().err
    path.with_suffix(".json").write_text(json.dumps({})[:1])
    assert main(["check-nova", "--vae", str(ROOT / "vae_tiny"), "--io", str(path)]) == 2
    assert "not valid JSON" in capsys.readouterr().err


def write_transformer_reference(folder: Path, path: Path, frames: int, description: dict[str, object]) -> None:
    """Writes what this implementation computes for a model as if it were a reference file."""
    model = NOVA.from_pretrained(folder)
    config, generator = model.config, torch.Generator().manual_seed(0)
    latent, patches, vector = (4, *config.latent_size), config.image_tokens, model.patch_size
    batch, repeat, steps = 1, description["repeat"], description["steps"]
    sets = len(mask_schedule(patches, description["K"]))

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def ids(rows: int, count: int) -> torch.Tensor:
        return torch.rand(rows, patches, generator=generator).argsort(1)[:, :count, None]

    def index(rows: int) -> torch.Tensor:
        return torch.randint(1000, (rows, patches), generator=generator)

    rows = batch * frames
    inputs = {
        "latents": randn(batch, 4, frames, *config.latent_size),
        "text.features_0": randn(2, config.text_dim),
        "image.prev_ids": ids(rows, 3),
        "image.pred_ids": ids(rows, 2),
        "decoder.t": torch.rand(rows, generator=generator) * 1000,
        "decoder.t_tok": torch.rand(rows, patches, generator=generator) * 1000,
        "decoder.x_t": randn(rows, *latent),
        "denoise.noise": randn(rows, *latent),
        "denoise_cfg.noise": randn(batch, *latent),
        "denoise_ddpm.step_noise": randn(steps, rows, *latent),
        "loss.noise": randn(repeat * rows, patches, vector),
        "loss.t_index": index(repeat * rows),
        "loss_t1.noise": randn(repeat * batch, patches, vector),
        "loss_t1.t_index": index(repeat * batch),
        "gen.noise": randn(frames, sets, batch, *latent),
        "gen.pred_ids": ids(batch, patches),
        "gen_ddpm.step_noise": randn(frames * sets * steps, batch, *latent),
    }
    if config.motion:
        inputs |= {"motion.flow": torch.tensor([4.0]), "motion.fps": torch.tensor([9.0])}
    names = {f"{stage}.x" for stage in STAGES if config.motion or stage != "motion"}
    outputs = compute(nova_stages(model, inputs, description), names)
    assert all(isinstance(value, torch.Tensor) for value in outputs.values()), outputs
    tensors = {f"in.{name}": value for name, value in inputs.items()}
    tensors |= {f"out.{name}": value.clone() for name, value in outputs.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    path.with_suffix(".json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("frames", "changes"),
    [
        (2, {"rotary": True}),
        (5, {"mixer_rank": -1, "image_size": [32, 64], "video_base_size": [5, 1, 2], "image_base_size": [2, 4]}),
        (1, {"video_base_size": [1, 2, 1]}),
    ],
    ids=["rotary", "wide and long", "image model"],
)
def test_the_transformer_check_runs_on_other_sizes_and_variants(tmp_path, capsys, frames, changes):
    write_nova(tmp_path / "transformer", **changes)
    described = json.loads((ROOT / "nova_tiny_io.json").read_text())
    description = {name: described[name] for name in ("fm", "ddpm", "cfg_scale", "gen_cfg_scale")}
    description |= {"repeat": 3, "steps": 3, "K": 7}
    path = tmp_path / "io.safetensors"
    write_transformer_reference(tmp_path / "transformer", path, frames, description)
    arguments = ["check-nova", "--transformer", str(tmp_path / "transformer"), "--io", str(path)]
    assert main(arguments) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_the_transformer_check_prints_every_tensor_and_passes(capsys):
    io = ROOT / "nova_tiny_io.safetensors"
    assert main(["check-nova", "--transformer", str(ROOT / "nova_tiny" / "transformer"), "--io", str(io)]) == 0
    names = [name[4:] for name in reference("nova_tiny_io") if name.startswith("out.")]
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in names)
    assert f"{len(names)} of {len(names)} reference tensors reproduced" in printed


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_transformer_check_passes_in_other_types(dtype):
    io, folder = ROOT / "nova_tiny_io.safetensors", ROOT / "nova_tiny" / "transformer"
    assert main(["check-nova", "--transformer", str(folder), "--io", str(io), "--dtype", dtype]) == 0


def test_a_changed_weight_fails_the_transformer_check(tmp_path, capsys):
    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["video_encoder.mixer.proj.bias"] += 0.01

    folder = damaged(ROOT / "nova_tiny" / "transformer", tmp_path / "nova", weights=nudge)
    assert main(["check-nova", "--transformer", str(folder), "--io", str(ROOT / "nova_tiny_io.safetensors")]) == 1
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "FAIL" in rows["video.mixed"] and "FAIL" not in rows["video.out"]
