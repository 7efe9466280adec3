"""`par-agent check-nova` passes on the reference and fails, by name, on anything that is off or was not computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nova_fixtures import ROOT, damaged, reference
from safetensors.torch import save_file

from par_agent.cli import main
from par_agent.cli.check_nova import compare

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
