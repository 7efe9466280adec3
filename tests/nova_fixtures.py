"""Where the reference tensors of NOVA and its VAE lie, and how a folder of them is damaged on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from par_agent.modeling.config import DiffusionConfig
from par_agent.modeling.nova.config import nova_config
from par_agent.modeling.nova.model import NOVA

ROOT = Path(__file__).parent / "fixtures" / "nova"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def reference(stem: str) -> dict[str, torch.Tensor]:
    """All `in.*` and `out.*` tensors of one reference file."""
    return load_file(ROOT / f"{stem}.safetensors")


def full_keys() -> dict[str, Any]:
    """Keys, shapes and counts of the full-size models."""
    return json.loads((ROOT / "full_keys.json").read_text())


def damaged(
    source: Path,
    target: Path,
    config: Callable[[dict[str, Any]], Any] | None = None,
    weights: Callable[[dict[str, torch.Tensor]], Any] | None = None,
) -> Path:
    """Copies a model folder and changes its configuration or weights in place."""
    shutil.copytree(source, target)
    if config is not None:
        content = json.loads((target / "config.json").read_text())
        config(content)
        (target / "config.json").write_text(json.dumps(content))
    if weights is not None:
        tensors = load_file(target / WEIGHTS)
        weights(tensors)
        save_file(tensors, target / WEIGHTS)
    return target


def write_nova(folder: Path, rotary: bool = False, mixer_rank: int | None = None, **changes: Any) -> dict[str, Any]:
    """Writes a randomly initialised model in the published layout; returns its configuration."""
    fields: dict[str, Any] = {
        "_class_name": "NOVATransformer3DModel",
        "image_dim": 4,
        "image_size": [64, 32],
        "image_stride": 8,
        "text_token_dim": 12,
        "text_token_len": 4,
        "rotary_pos_embed": rotary,
        "video_base_size": [5, 2, 1],
        "image_base_size": [4, 2],
        "video_mixer_rank": mixer_rank,
        "arch": ["vit_d3w64", "vit_d5w64", "mlp_d1w32"],
        "arch_hparams": {name: {"heads": 2} for name in ("video_encoder", "image_encoder")},
    }
    fields.update(changes)
    torch.manual_seed(0)
    model = NOVA(nova_config({k: v for k, v in fields.items() if k[0] != "_"}, {}, DiffusionConfig("ddpm")))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file({name: value.half() for name, value in model.state_dict().items()}, folder / WEIGHTS)
    return fields


def write_phi(folder: Path, width: int) -> Path:
    """Writes a tiny Phi with random weights and a word tokenizer, as in a released NOVA folder."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(["[unk]", "push", "the", "red", "cube"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unk]")
    fast.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = transformers.PhiConfig(
        vocab_size=5, hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.PhiModel(config).save_pretrained(folder / "text_encoder")
    return folder


def write_released_folder(folder: Path, text_width: int = 16, text_length: int = 4) -> Path:
    """Writes a whole released NOVA folder in miniature: transformer, vae, scheduler, text encoder and tokenizer."""
    write_phi(folder, text_width)
    sizes = {"text_token_dim": text_width, "text_token_len": text_length}
    write_nova(folder / "transformer", mixer_rank=2, **sizes)
    shutil.copytree(ROOT / "vae_tiny", folder / "vae")
    (folder / "scheduler").mkdir()
    config = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder
