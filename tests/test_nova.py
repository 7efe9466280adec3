"""NOVA reproduces its reference tensors, loads other sizes and the rotary variant, and names every fault of a
folder."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from nova_fixtures import ROOT, damaged, full_keys, reference, write_nova
from par_agent.cli.check_nova import compare
from par_agent.cli.parity import compute
from par_agent.cli.parity.nova import STAGES, nova_stages
from par_agent.errors import UserError
from par_agent.modeling.config import DiffusionConfig
from par_agent.modeling.diffusion import noise_process
from par_agent.modeling.nova.config import diffusion_config, nova_config
from par_agent.modeling.nova.model import NOVA

FOLDER = ROOT / "nova_tiny" / "transformer"
DESCRIPTION = json.loads((ROOT / "nova_tiny_io.json").read_text())
REFERENCE_NAMES = sorted(name[4:] for name in DESCRIPTION["tensors"] if name.startswith("out."))


@pytest.fixture(scope="module")
def nova() -> NOVA:
    return NOVA.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def comparisons(nova) -> dict[str, Any]:
    io = reference("nova_tiny_io")
    inputs = {name[3:]: value for name, value in io.items() if name.startswith("in.")}
    results = compute(nova_stages(nova, inputs, DESCRIPTION), set(REFERENCE_NAMES))
    return {name: compare(name, results.get(name), io[f"out.{name}"]) for name in REFERENCE_NAMES}


@pytest.mark.parametrize("name", REFERENCE_NAMES)
def test_the_reference_tensor_is_reproduced(comparisons, name):
    assert comparisons[name].passed, str(comparisons[name])


def test_every_stage_of_the_reference_belongs_to_a_method():
    assert {name.split(".")[0] for name in REFERENCE_NAMES} == set(STAGES)


def clip(model: NOVA, batch: int = 2, frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, frames, *model.config.latent_size, generator=generator)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("mixer_rank", [None, 5, -1])
def test_other_sizes_load_with_and_without_rotary_positions_and_mixer(tmp_path, rotary, mixer_rank):
    write_nova(tmp_path / "transformer", rotary, mixer_rank)
    model = NOVA.from_pretrained(tmp_path)
    assert any(name.startswith("video_pos_embed.") for name in model.state_dict()) is not rotary
    assert model.config.mixer_rank == mixer_rank
    prefix = model.prefix([torch.zeros(0, 12), torch.ones(2, 12)], fps=torch.tensor([8.0, 12.0]))
    assert prefix.shape == (2, 4 + 2, 64)
    with torch.inference_mode():
        condition = model.mix(model.encode_video(clip(model), prefix)).flatten(0, 1)
        known = torch.tensor([[5, 0, 3]]).expand(8, -1)
        z = model.encode_frame(clip(model).transpose(1, 2).flatten(0, 1), condition, known)
    assert z.shape == (8, 8, 64) and z.isfinite().all()


@pytest.mark.parametrize("rotary", [False, True])
def test_cached_frames_give_the_outputs_of_the_whole_sequence(tmp_path, rotary):
    write_nova(tmp_path / "transformer", rotary, mixer_rank=2)
    model = NOVA.from_pretrained(tmp_path)
    latents, prefix = clip(model), model.prefix([torch.ones(1, 12)] * 2)
    with torch.inference_mode():
        whole = model.encode_video(latents, prefix)
        first, stream = model.start(prefix, latents.shape[2])
        steps = [first, *(model.advance(frame, stream)[1] for frame in latents.unbind(2)[:-1])]
    torch.testing.assert_close(torch.stack(steps, 1), whole, atol=2e-5, rtol=0)


def test_rotary_positions_make_frames_depend_on_where_patches_are(tmp_path):
    write_nova(tmp_path / "transformer", rotary=True)
    model = NOVA.from_pretrained(tmp_path)
    frame, condition = torch.ones(1, 4, *model.config.latent_size), torch.ones(1, 2, 64)
    with torch.inference_mode():
        z = model.encode_frame(frame, condition, torch.tensor([[0, 1]]))
        swapped = model.encode_frame(frame, condition, torch.tensor([[1, 0]]))
    torch.testing.assert_close(swapped, z, atol=1e-5, rtol=0)
    assert (z[0, 2] - z[0, 5]).abs().max() > 1e-3


def test_a_frame_sees_no_later_frame(nova):
    latents, prefix = clip(nova, frames=3), nova.prefix([torch.zeros(0, 48)] * 2)
    with torch.inference_mode():
        before = nova.encode_video(latents, prefix)
        latents[:, :, 1] += 1
        after = nova.encode_video(latents, prefix)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_what_is_not_known_of_a_frame_is_not_looked_at(nova):
    frame, condition = clip(nova, frames=1)[:, :, 0], torch.ones(2, 6, 64)
    with torch.inference_mode():
        z = nova.encode_frame(frame, condition, torch.tensor([[0], [0]]))
        frame[:, :, 2:] += 1
        assert torch.equal(nova.encode_frame(frame, condition, torch.tensor([[0], [0]])), z)


def test_half_precision_runs(nova):
    half = NOVA.from_pretrained(FOLDER, dtype=torch.bfloat16)
    prefix = half.prefix([torch.zeros(0, 48)], flow=torch.tensor([5.0]))
    with torch.inference_mode():
        outputs = half.encode_video(clip(half, batch=1, frames=2).bfloat16(), prefix)
    assert outputs.dtype == torch.bfloat16 and outputs.isfinite().all()


@pytest.mark.parametrize("case", ["transformer_no_mixer", "transformer_mixer_rank24", "transformer_rotary_no_mixer"])
def test_the_full_size_model_has_the_published_keys_shapes_and_counts(case):
    published = full_keys()
    keys = dict(published["transformer_keys"])
    fields = {name: published["transformer_config"][name] for name in PUBLISHED_FIELDS}
    if "mixer_rank" in case:
        keys |= published["mixer_extra_keys"]
    if "rotary" in case:
        fields["rotary_pos_embed"] = True
        keys = {name: shape for name, shape in keys.items() if name not in published["keys_absent_when_rotary"]}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    with torch.device("meta"):
        model = NOVA(nova_config(fields, tensors, DiffusionConfig("ddpm")))
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == keys
    counts = published["counts"][case]
    assert sum(p.numel() for p in model.parameters()) == counts["parameters"]
    for name, count in counts["per_child_parameters"].items():
        part = getattr(model, name, None) or torch.nn.Identity()
        assert sum(p.numel() for p in part.parameters()) == count, name


PUBLISHED_FIELDS = (
    "image_dim",
    "image_size",
    "image_stride",
    "text_token_dim",
    "text_token_len",
    "rotary_pos_embed",
    "video_base_size",
    "image_base_size",
    "arch",
)


def test_the_mixer_is_found_in_the_weights_even_if_the_configuration_does_not_mention_it(tmp_path):
    folder = damaged(FOLDER, tmp_path / "nova", config=lambda content: content.pop("video_mixer_rank"))
    assert NOVA.from_pretrained(folder).config.mixer_rank == 4


def test_a_released_folder_brings_its_own_scheduler(tmp_path):
    write_nova(tmp_path / "transformer")
    (tmp_path / "scheduler").mkdir()
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}))
    assert NOVA.from_pretrained(tmp_path).config.diffusion == DiffusionConfig("flow", shift=2.0)
    known = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
    path.write_text(json.dumps({**known, "steps_offset": 1}))
    assert NOVA.from_pretrained(tmp_path).config.diffusion == DiffusionConfig("ddpm")
    path.write_text(json.dumps(known))
    diffusion = NOVA.from_pretrained(tmp_path).config.diffusion
    assert noise_process(diffusion).sampler(4).times == (750, 500, 250, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "DDPMScheduler", "beta_schedule": "linear"}, "'beta_schedule': 'linear'"),
        ({"_class_name": "DDPMScheduler", "timestep_spacing": "trailing"}, "'timestep_spacing': 'trailing'"),
        ({"_class_name": "EulerDiscreteScheduler"}, "scheduler EulerDiscreteScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True}, "sets use_karras_sigmas"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": "3"}, "shift is '3'; expected a finite number"),
    ],
)
def test_schedulers_that_mean_something_else_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        diffusion_config(fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"newer_field": 1}, "unknown fields in PublishedTransformer: newer_field.*update par_agent"),
        ({"text_token_dim": None}, "class-conditional models, without text, are not known"),
        ({"image_size": "64x96"}, r"image_size is '64x96'; expected a whole number or a list of 2"),
        ({"video_base_size": [4, 2]}, "video_base_size is .*; expected a list of 3"),
        ({"image_stride": 0}, "image_stride is 0; it must be at least 1"),
        ({"image_size": [0, 96]}, r"image_size is \(0, 96\); each must be at least 1"),
        ({"arch": ["vit_d2w64", "vit_d4w64", "unet"]}, r"expected vit_d<depth>w<width>"),
        ({"arch_hparams": {}}, "number of heads of vit_d2w64 is not known"),
        ({"image_base_size": [8, 6]}, "image_base_size has"),
    ],
)
def test_configurations_that_this_version_cannot_read_are_refused_by_name(tmp_path, changes, message):
    def change(content: dict[str, Any]) -> None:
        if "arch" in changes:
            content["arch_hparams"].pop("image_decoder")
        content.update(changes)

    with pytest.raises(UserError, match=message):
        NOVA.from_pretrained(damaged(FOLDER, tmp_path / "nova", config=change))


def test_heads_that_rotary_positions_cannot_split_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"\(2, 7, 7\)"):
        NOVA.from_pretrained(damaged(FOLDER, tmp_path / "nova", lambda content: content.update(rotary_pos_embed=True)))


def test_missing_left_over_misshapen_and_nan_tensors_are_all_named_at_once(tmp_path):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["image_decoder.head.bias"]
        tensors["label_embed.weight"] = torch.zeros(1)
        tensors["mask_embed.bos_token"] = torch.zeros(2, 64)
        tensors["text_embed.weight"][0, 0] = torch.inf
        tensors["video_encoder.norm.bias"] = torch.zeros(64, dtype=torch.int8)
        tensors["image_encoder.norm.bias"] = torch.zeros(64).to(torch.float8_e4m3fn)

    with pytest.raises(UserError) as caught:
        NOVA.from_pretrained(damaged(FOLDER, tmp_path / "nova", weights=change))
    message = str(caught.value)
    assert "missing keys (1): image_decoder.head.bias" in message
    assert "left-over keys (1): label_embed.weight" in message
    assert "mask_embed.bos_token is 2x64, the configuration says 1x64" in message
    assert "video_encoder.norm.bias is int8, expected float32, float16 or bfloat16" in message
    assert "image_encoder.norm.bias is float8_e4m3fn" in message
    assert "NaN or infinite values in (1): text_embed.weight" in message


def test_frames_of_the_wrong_size_are_refused(nova):
    with pytest.raises(ValueError, match="4 channels of 8x12"):
        nova.encode_frame(torch.zeros(1, 4, 8, 8), torch.zeros(1, 6, 64), torch.zeros(1, 0, dtype=torch.long))
