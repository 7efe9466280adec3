"""Policy checkpoints: everything that is needed to act, in one folder.

::

    par-mini/
      config.json          sizes of the model (PARConfig)
      model.safetensors    its weights
      policy.json          transforms, text encoder, how to act by default, how it was trained
      frame_encoder/       config.json + model.safetensors of the frozen frame VAE
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from par_agent.errors import UserError
from par_agent.files import read_json, write_json
from par_agent.modeling.config import PARConfig, build
from par_agent.modeling.frame_vae import FrameVAE, FrameVAEConfig
from par_agent.modeling.par import PARModel
from par_agent.modeling.pretrained import load_module, save_module
from par_agent.modeling.text_encoder import HashTextEncoder, TextEncoder
from par_agent.transforms import Transforms

POLICY = "policy.json"
ENCODER = "frame_encoder"


@dataclass(frozen=True)
class Acting:
    """How a policy acts unless told otherwise."""

    context: int = 1
    """Physical tokens remembered, the present one included."""
    past_actions: bool = False
    """Whether executed chunks enter the context; otherwise begin-of-action takes their place."""
    execute: int | None = None
    """Actions of a chunk that are executed before the next frame is looked at; None: all of it."""
    denoising_steps: int = 10
    """Steps of the Action-DiT's sampler."""
    random_start: bool = False
    """Whether denoising starts from random noise; otherwise from zero, which makes the policy deterministic."""

    def __post_init__(self) -> None:
        for name in ("context", "execute", "denoising_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")


@dataclass
class Checkpoint:
    """A policy's parts, loaded."""

    model: PARModel
    encoder: FrameVAE
    transforms: Transforms
    text_encoder: TextEncoder
    acting: Acting = field(default_factory=Acting)
    trained: dict[str, Any] = field(default_factory=dict)
    """How it was trained: data, options, steps; for the record."""

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Writes the folder; every file appears complete, ``policy.json`` last.

        Args:
            folder: where to.
            dtype: type to store the model's weights in; None: as they are. The small frame encoder stays as it is.
        """
        folder = Path(folder)
        save_module(self.encoder, dataclasses.asdict(self.encoder.config), folder / ENCODER)
        save_module(_cast(self.model, dtype), self.model.config.to_json(), folder)
        content = {
            "transforms": self.transforms.to_json(),
            "acting": dataclasses.asdict(self.acting),
            "trained": self.trained,
        }
        write_json(folder / POLICY, content)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
        """Reads a folder, with modules in evaluation mode on ``device`` and float32 weights.

        Raises:
            UserError: a file is missing, damaged, from a newer version, or does not fit the others.
        """
        folder = Path(folder)
        if not (folder / POLICY).is_file():
            raise UserError(
                f"{folder} is not a policy checkpoint (no {POLICY}); expected one made by `par-agent finetune`"
            )
        content = read_json(folder / POLICY)
        config = PARConfig.from_json(read_json(folder / "config.json"))
        with torch.device("meta"):
            model = PARModel(config)
        load_module(model, folder)
        for name in ("transforms", "acting"):
            if name not in content:
                raise UserError(
                    f"{folder / POLICY} lacks {name!r}; the checkpoint is incomplete: copy or train it again"
                )
        transforms = Transforms.from_json(content["transforms"])
        _check(config, transforms, folder)
        acting: Acting = build(Acting, content["acting"])
        text = make_text_encoder(config)
        trained = content.get("trained", {})
        encoder = load_frame_encoder(folder / ENCODER)
        return cls(model.eval().to(device), encoder.to(device), transforms, text, acting, trained)


def load_frame_encoder(folder: Path) -> FrameVAE:
    """A frozen frame VAE from its folder, in evaluation mode.

    Raises:
        UserError: missing or damaged.
    """
    content = read_json(folder / "config.json")
    content.pop("metrics", None)
    with torch.device("meta"):
        encoder = FrameVAE(build(FrameVAEConfig, content))
    load_module(encoder, folder)
    return encoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_text_encoder(config: PARConfig) -> TextEncoder:
    """The frozen text encoder of a configuration."""
    return HashTextEncoder(config.nova.text_dim, config.nova.text_length)


def _check(config: PARConfig, transforms: Transforms, folder: Path) -> None:
    pairs = {
        "chunk length": (config.action.chunk_length, transforms.chunk_length),
        "action size": (config.action.action_size, transforms.action_size),
        "joint positions": (config.action.proprioception_size, transforms.proprioception_size),
    }
    for name, (model, data) in pairs.items():
        if model != data:
            raise UserError(
                f"{folder}: the model's {name} is {model}, its transforms' {data}; the files do not belong together"
            )


def _cast(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    if dtype is None:
        return module
    import copy

    return copy.deepcopy(module).to(dtype)
