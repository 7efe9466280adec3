"""Policy checkpoints: frozen parts of either kind, files that do not fit together."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nova_fixtures import ROOT
from par_agent.errors import UserError
from par_agent.modeling.text_encoder import PhiTextEncoder, StoredTextEncoder
from par_agent.modeling.vae.frame_encoder import VideoFrameEncoder, load_frame_encoder, save_frame_encoder
from par_agent.modeling.vae.frame_vae import FrameVAE, FrameVAEConfig
from par_agent.policy.checkpoint import Checkpoint
from tiny import tiny_checkpoint


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_video_vae_and_stored_features_survive_saving(tmp_path: Path) -> None:
    small, features = tiny_checkpoint(), torch.randn(3, 8)
    encoder = load_frame_encoder(ROOT / "vae_tiny")
    text = StoredTextEncoder({"push the cube": features}, 8, 6)
    with pytest.raises(UserError, match="latents of 2 channels, its frame encoder gives 4"):
        dataclasses.replace(small, encoder=encoder, text_encoder=text).save(tmp_path)
        Checkpoint.load(tmp_path)
    dataclasses.replace(small, text_encoder=text).save(tmp_path)
    assert torch.equal(Checkpoint.load(tmp_path).text_encoder.encode("push the cube"), features)


def test_older_checkpoints_call_n_action_steps_execute(tmp_path: Path) -> None:
    tiny_checkpoint().save(tmp_path)
    edit(tmp_path / "policy.json", lambda c: c["inference"].update(execute=c["inference"].pop("n_action_steps") or 3))
    assert Checkpoint.load(tmp_path).inference.n_action_steps == 3
    edit(tmp_path / "policy.json", lambda c: c["inference"].update(n_action_steps=2))
    with pytest.raises(UserError, match="unknown fields in InferenceConfig: execute"):
        Checkpoint.load(tmp_path)


def test_frames_are_encoded_alike_in_any_batch() -> None:
    encoder = load_frame_encoder(ROOT / "vae_tiny")
    assert isinstance(encoder, VideoFrameEncoder)
    frames = torch.randint(0, 256, (9, 16, 24, 3), dtype=torch.uint8)
    together = encoder.encode(frames)
    assert together.shape == (9, encoder.channels, 2, 3) and encoder.stride == 8
    torch.testing.assert_close(together[7:8], encoder.encode(frames[7:8]), rtol=0, atol=1e-5)
    pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(together[:2], encoder.vae.scale(encoder.vae.encode(pixels[:2]).mean))
    assert encoder.decode(together).shape == frames.shape and encoder.decode(together).dtype == torch.uint8
    with pytest.raises(ValueError, match="multiples of 8"):
        encoder.encode(frames[:, :15])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("policy.json", lambda c: c.update(text_encoder="clip"), "names the text encoder 'clip'; known: hash, phi"),
        ("policy.json", lambda c: c["transforms"].update(crop=[0, 0, 24, 24]), "reads frames of 16x16 .* make 24x24"),
        ("policy.json", lambda c: c.pop("text_encoder"), "policy.json lacks 'text_encoder'; the checkpoint is incompl"),
        ("policy.json", lambda c: c.update(text_encoder=["phi"]), "text_encoder is .*; expected a string"),
        ("policy.json", lambda c: c.update(trained=3), "trained is 3; expected an object"),
        (
            "policy.json",
            lambda c: c["inference"].update(look_ahead=3),
            "InferenceConfig: look_ahead.*update par_agent",
        ),
        ("policy.json", lambda c: c["transforms"]["action_mean"].pop(), "the same number of rows"),
        ("policy.json", lambda c: c["transforms"]["proprioception_std"].pop(), "proprioception_std differ in length"),
        ("policy.json", lambda c: c["transforms"]["action_std"][1].__setitem__(0, 0), "must be above 0 everywhere"),
        ("config.json", lambda c: c.update(version=99, newer=True), "format version 99; .*: update par_agent"),
        ("config.json", lambda c: c.update(version=1), "format version 1; .*: train or import the model again"),
        ("config.json", lambda c: c.pop("nova"), "missing fields in PARConfig: nova"),
        ("config.json", lambda c: c["nova"].update(latent_size=8), "NOVAConfig.latent_size is 8; expected a list of 2"),
        ("frame_encoder/config.json", lambda c: c.update(_class_name="VQ"), "frame encoder 'VQ' is not known"),
        ("frame_encoder/config.json", lambda c: c.pop("_class_name"), "frame encoder None is not known"),
        ("frame_encoder/config.json", lambda c: c.update(width=3), "unknown fields in FrameVAEConfig: width"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    tiny_checkpoint().save(tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(UserError, match=message):
        Checkpoint.load(tmp_path)


def rewrite(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.bin").write_bytes(b"would run code")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewrite(lambda t: t["nova.mask_embed.mask_token"].fill_(torch.nan)), "NaN .* nova.mask_embed.mask_token"),
        (rewrite(lambda t: t.update({"action_tokenizer.boa": torch.zeros(3)})), "boa is 3, the configuration says 32"),
        (rewrite(lambda t: t.pop("action_tokenizer.boa")), r"missing keys \(1\): action_tokenizer.boa"),
        (truncate, "not a complete safetensors file"),
        (pickle, "only pickled weights .model.bin., which can run code when opened and are never read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "config.json").unlink(), "config.json does not exist"),
        (lambda folder: shutil.rmtree(folder / "frame_encoder"), "frame_encoder is not a folder"),
    ],
)
def test_damaged_weights_and_missing_parts_are_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    tiny_checkpoint().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        Checkpoint.load(tmp_path)


def test_features_of_another_text_encoder_are_refused(tmp_path: Path) -> None:
    tiny_checkpoint().save(tmp_path)
    edit(tmp_path / "policy.json", lambda content: content.update(text_encoder="phi"))
    with pytest.raises(UserError, match=r"text_features.safetensors does not exist"):
        Checkpoint.load(tmp_path)
    StoredTextEncoder({"push": torch.zeros(2, 16)}, 16, 6).save(tmp_path / "text_features.safetensors")
    with pytest.raises(UserError, match=r"'push' have shape \(2, 16\); expected at most 24 rows of 8 numbers"):
        Checkpoint.load(tmp_path)


def test_a_text_encoder_that_must_be_loaded_at_inference_is_not_saved(tmp_path: Path) -> None:
    phi = PhiTextEncoder(cache=tmp_path, dim=8, length=6)
    with pytest.raises(UserError, match="a checkpoint cannot hold a PhiTextEncoder"):
        dataclasses.replace(tiny_checkpoint(), text_encoder=phi).save(tmp_path / "saved")


def test_a_trained_frame_vae_keeps_its_record_out_of_its_sizes(tmp_path: Path) -> None:
    vae = FrameVAE(FrameVAEConfig(channels=2, widths=(8,)))
    save_frame_encoder(vae, tmp_path, {"psnr_db": 30.0})
    assert json.loads((tmp_path / "config.json").read_text())["metrics"] == {"psnr_db": 30.0}
    assert load_frame_encoder(tmp_path).channels == 2
