"""From a released NOVA folder to a PAR checkpoint, to a trained policy; and every fault of a broken folder by name."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nova_fixtures import WEIGHTS, write_released_folder
from par_agent import PARPolicy
from par_agent.cli import main
from par_agent.cli.import_nova import ImportNovaConfig, next_commands
from par_agent.errors import UserError
from par_agent.modeling.nova.model import NOVA
from par_agent.modeling.presets import preset
from par_agent.modeling.vae.frame_encoder import VideoFrameEncoder, load_frame_encoder
from par_agent.policy.checkpoint import Checkpoint
from par_agent.tasks import TASKS
from par_agent.training.config import DatasetConfig, FinetuneConfig, LossConfig
from par_agent.training.finetune import finetune
from recordings import record, require_renderer
from rendered import write_dataset
from tiny import JOINTS

INSTRUCTION = "push the red cube"

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_released_folder(tmp_path_factory.mktemp("released"), text_length=24)


def run(released: Path, out: Path, *options: str) -> int:
    instructions = ["--instructions", INSTRUCTION, "push"]
    return main(["import-nova", str(released), "--out", str(out), "--chunk-length", "4", *instructions, *options])


@pytest.fixture(scope="module")
def imported(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "par"
    assert run(released, out) == 0
    return out


def test_the_checkpoint_holds_novas_weights_its_vae_and_the_text_features(released: Path, imported: Path) -> None:
    loaded, nova = Checkpoint.load(imported), NOVA.from_pretrained(released)
    for name, value in nova.state_dict().items():
        torch.testing.assert_close(loaded.model.nova.state_dict()[name], value, rtol=0, atol=0)
    assert loaded.model.nova.config == nova.config and nova.config.mixer_rank == 2
    assert isinstance(loaded.encoder, VideoFrameEncoder)
    frames = torch.randint(0, 256, (5, 64, 32, 3), dtype=torch.uint8)
    latents = loaded.encoder.encode(frames)
    torch.testing.assert_close(latents, load_frame_encoder(released / "vae").encode(frames), rtol=0, atol=0)
    assert latents.shape == (5, 4, 8, 4) and loaded.encoder.decode(latents).shape == frames.shape
    assert loaded.text_encoder.encode(INSTRUCTION).shape == (4, 16)
    with pytest.raises(UserError, match="'lift'; stored: 'push'; 'push the red cube'"):
        loaded.text_encoder.encode("lift")


def test_the_seed_decides_the_action_parts_and_half_types_take_half_the_room(
    released: Path, imported: Path, tmp_path: Path
) -> None:
    for name, options in {"same": [], "other": ["--seed", "1"], "half": ["--dtype", "float16"]}.items():
        assert run(released, tmp_path / name, *options) == 0
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in ("same", "other", "half")}
    first = load_file(imported / "model.safetensors")
    key = "action_tokenizer.mlp.0.weight"
    assert torch.equal(weights["same"][key], first[key]) and not torch.equal(weights["other"][key], first[key])
    nova = [name for name in first if name.startswith("nova.")]
    assert all(torch.equal(weights["half"][name].float(), first[name]) for name in nova)


def test_an_imported_checkpoint_refuses_to_act_and_acts_after_training(imported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot act yet.*finetune --init"):
        PARPolicy.from_pretrained(imported, INSTRUCTION)
    data = tmp_path / "data"
    write_dataset(data, size=(64, 32), crop=(0, 0, 64, 32), instruction=INSTRUCTION)
    config = FinetuneConfig(
        out=tmp_path / "run",
        data=(data,),
        init=imported,
        steps=2,
        batch_size=2,
        window=2,
        dataset=DatasetConfig(variants=1),
        loss=LossConfig(frame_fraction=0.5),
    )
    trained = finetune(config)
    assert trained.transforms is not None and trained.transforms.frame_size == (64, 32)
    policy = PARPolicy.from_pretrained(tmp_path / "run" / "policy", INSTRUCTION, n_action_steps=4)
    image = torch.randint(0, 256, (1, 512, 512, 3), dtype=torch.uint8)
    obs = {"agent": {"qpos": torch.zeros(1, JOINTS)}, "sensor_data": {"render_camera": {"rgb": image}}}
    assert policy.act(obs).isfinite().all()


def test_the_printed_commands_lead_from_the_released_folder_to_a_policy(
    released: Path,
    tmp_path: Path,
    without_workers: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As they stand, on the CPU and for two steps: the miniature has frames of 64x32 pixels and weights in float16."""
    require_renderer()
    assert load_file(released / "transformer" / WEIGHTS)["text_embed.proj.weight"].dtype == torch.float16
    monkeypatch.chdir(tmp_path)
    assert run(released, Path("par"), "--instructions", TASKS["PushCube"].instruction) == 0
    printed = [
        shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  par-agent ")
    ]
    assert [words[0] for words in printed] == ["render", "finetune"]
    assert " ".join(printed[0]).startswith("render --trajectory FILE.h5 --crop 0 128 512 256 --size 64 32 --stride 4")
    record(tmp_path / "FILE.h5", "PushCube-v1", (9, 9, 9), {})
    printed[1][printed[1].index("cuda")] = "cpu"
    assert main([*printed[0], "--workers", "1", "--include-failures"]) == 0
    assert main([*printed[1], "--steps", "2", "--window", "2", "--variants", "1"]) == 0
    options = json.loads(Path("runs/NAME/finetune.json").read_text())
    assert (options["learning_rate"], options["batch_size"], options["accumulation"]) == (1e-4, 4, 8)
    image = torch.randint(0, 256, (1, 512, 512, 3), dtype=torch.uint8)
    obs = {"agent": {"qpos": torch.zeros(1, JOINTS)}, "sensor_data": {"render_camera": {"rgb": image}}}
    for dtype in ("float32", "float16"):
        policy = PARPolicy.from_pretrained("runs/NAME/policy", TASKS["PushCube"].instruction, dtype=dtype)
        assert policy.act(obs).isfinite().all()


def test_the_published_model_reads_the_middle_of_the_render_camera() -> None:
    rows, columns = preset("par-nova-0.6b").nova.latent_size
    config = ImportNovaConfig(Path("nova"), out=Path("par"))
    render, finetune_command = next_commands(config, (8 * rows, 8 * columns))  # the VAE's stride is 8
    assert "--crop 96 0 320 512 --size 480 768 --out" in render
    assert "--init par --gradient-checkpointing --device cuda" in finetune_command


def test_an_instruction_without_features_stops_training_before_it_starts(imported: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, size=(64, 32), crop=(0, 0, 64, 32), instruction="lift the cube")
    with pytest.raises(UserError, match="no text features are stored for the instruction 'lift the cube'"):
        finetune(FinetuneConfig(out=tmp_path / "run", data=(data,), init=imported))
    assert not (data / "latents").exists()


def drop(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / name)

    return change


def weights(part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / part / WEIGHTS
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def shrink_text(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["layers.0.mlp.fc1.weight"]
    save_file(tensors, path, {"format": "pt"})


def more_latents(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_dim": 8}))


def truncate(folder: Path) -> None:
    path = folder / "vae" / WEIGHTS
    path.write_bytes(path.read_bytes()[:5000])


def truncate_text(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def nan_text(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    save_file({name: value * torch.nan for name, value in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("vae"), "lacks vae; expected a released NOVA folder"),
        (drop("text_encoder"), "lacks text_encoder.*--text-cache FOLDER"),
        (weights("transformer", lambda t: t.pop("text_embed.proj.bias")), r"missing keys \(1\): text_embed.proj.bias"),
        (weights("transformer", lambda t: t.update(extra=torch.ones(1))), r"left-over keys \(1\): extra"),
        (weights("vae", lambda t: t.pop("quant_conv.bias")), r"missing keys \(1\): quant_conv.bias"),
        (more_latents, r"video_encoder.patch_embed.proj.weight is 64x4x4x4, the configuration says 64x8x4x4"),
        (truncate, "not a complete safetensors file"),
        (shrink_text, "lack layers.0.mlp.fc1.weight"),
        (weights("transformer", lambda t: t["mask_embed.bos_token"].fill_(torch.nan)), "NaN .* mask_embed.bos_token"),
        (truncate_text, "cannot load Phi from"),
        (nan_text, "for 'push the red cube' gives text features that are NaN or infinite; download it again"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json does not"),
        (lambda folder: (folder / "transformer" / "config.json").write_text("[1"), "config.json is not valid JSON"),
    ],
)
def test_broken_folders_are_refused_by_name_and_leave_nothing(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], message: str
) -> None:
    import re

    folder = tmp_path / "nova"
    shutil.copytree(released, folder)
    damage(folder)
    assert run(folder, tmp_path / "out") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_not_overwritten(released: Path, imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(released, imported) == 2
    assert "already holds a checkpoint; choose another --out" in capsys.readouterr().err


def test_cached_text_features_replace_the_text_encoder(released: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run(released, tmp_path / "first", "--text-cache", str(cache)) == 0
    bare = tmp_path / "bare"
    shutil.copytree(released, bare, ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    assert run(bare, tmp_path / "second", "--text-cache", str(cache)) == 0
    first, second = (load_file(tmp_path / name / "text_features.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first) and list(first) == list(second)
