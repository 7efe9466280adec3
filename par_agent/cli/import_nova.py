"""`par-agent import-nova`: makes a PAR checkpoint from a released NOVA folder."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from par_agent.errors import UserError
from par_agent.tasks import TASKS, TaskSpec
from par_agent.utils.checked import Checked, Length, Seed
from par_agent.utils.files import only_process, writing


@dataclass(frozen=True)
class ImportNovaConfig(Checked):
    """Makes a policy checkpoint from NOVA's video weights; `par-agent finetune --init OUT` trains its action parts."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """NOVA folder in the diffusers layout: transformer, vae, scheduler, text_encoder, tokenizer."""
    out: Path
    """Checkpoint folder to write."""
    instructions: tuple[str, ...] = ()
    """Instructions whose text features are stored in the checkpoint; the policy accepts no others. Default: those of
    the tasks that this package knows, in all their wordings."""
    text_cache: Path | None = None
    """Folder of cached text features; instructions in it need no text encoder."""
    chunk_length: Length = 8
    """Actions per chunk."""
    seed: Seed = 0
    """Random seed of the action parts' initial weights."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the stored weights; the published ones are float16."""
    device: str = "cpu"
    """Torch device for the text encoder."""


def main(config: ImportNovaConfig) -> int:
    """Checks every part, then writes the checkpoint; nothing is written if a part is broken."""
    with writing(config.out), only_process(config.out / ".lock", f"writes {config.out}", within=config.out):
        _import(config)
    return 0


def _import(config: ImportNovaConfig) -> None:
    import torch
    from tqdm import tqdm

    from par_agent.cli.nova_folder import folder_text_encoder, require_parts
    from par_agent.modeling.nova.model import NOVA
    from par_agent.modeling.par import PARModel
    from par_agent.modeling.text_encoder import StoredTextEncoder
    from par_agent.modeling.vae.frame_encoder import load_frame_encoder
    from par_agent.policy.checkpoint import POLICY, Checkpoint
    from par_agent.utils.device import usable_device

    if (config.out / POLICY).exists():
        raise UserError(f"{config.out} already holds a checkpoint; choose another --out")
    device = usable_device(config.device)
    if not all(text.strip() for text in config.instructions):
        raise UserError("an instruction of --instructions is empty; leave it out")
    require_parts(config.model, config.text_cache)
    nova = NOVA.from_pretrained(config.model)
    encoder = load_frame_encoder(config.model / "vae")
    if encoder.channels != nova.config.latent_channels:
        raise UserError(
            f"the VAE gives latents of {encoder.channels} channels; the transformer reads {nova.config.latent_channels}"
        )
    phi = folder_text_encoder(config.model, config.text_cache, nova.config, device)
    known = dict.fromkeys(text for spec in TASKS.values() for text in spec.wordings)
    texts = tqdm(config.instructions or known, desc="text features", unit="instruction")
    text = StoredTextEncoder({text: phi.encode(text) for text in texts}, phi.dim, phi.length)
    torch.manual_seed(config.seed)  # of the action parts' random weights
    model = PARModel.from_nova(nova, config.chunk_length)
    trained = {"imported_from": "NOVA", "seed": config.seed}
    checkpoint = Checkpoint(model, encoder, None, text, trained=trained)
    checkpoint.save(config.out, None if config.dtype == "float32" else getattr(torch, config.dtype))
    numbers = sum(parameter.numel() for parameter in nova.parameters())
    print(f"every key and shape fits: {len(nova.state_dict())} tensors of the transformer, {numbers:,} numbers")
    print(f"text features of {len(text.features)} instructions are stored")
    height, width = (side * encoder.stride for side in nova.config.latent_size)
    print("\n".join([f"wrote {config.out}; train it:", *next_commands(config, (height, width))]))


def next_commands(config: ImportNovaConfig, size: tuple[int, int]) -> list[str]:
    """The commands that make a policy of the checkpoint.

    The model reads frames of one ``size`` only, height and width in pixels: they are the largest part of the render
    camera's image of that shape, from its middle.
    """
    image = TaskSpec("", "").image_size
    scale = min(whole / side for whole, side in zip(image, size, strict=True))
    cut = [int(side * scale) for side in size]
    top, left = ((whole - side) // 2 for whole, side in zip(image, cut, strict=True))
    chunk = f" --stride {config.chunk_length}" if config.chunk_length != 8 else ""
    words = f" --instruction {shlex.quote(config.instructions[0])}" if config.instructions else ""
    return [
        f"  par-agent render --trajectory FILE.h5 --crop {top} {left} {cut[0]} {cut[1]} --size {size[0]} {size[1]}"
        f"{chunk}{words} --out data/rendered/NAME",
        f"  par-agent finetune --data data/rendered/NAME --init {config.out} --gradient-checkpointing --device cuda "
        "--out runs/NAME",
    ]
