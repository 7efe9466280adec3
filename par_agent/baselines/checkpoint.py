"""Baselines on disk: all that is needed to act, in one folder of JSON and safetensors.

::

    runs/dp/policy/
      config.json           sizes of the method (MethodConfig)
      model.safetensors     its weights
      baseline.json         method, transforms, how it was trained
      prompts.safetensors   only of a method that is prompted: one demonstration per instruction
      frame_encoder/        the frozen frame VAE
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from par_agent.baselines.methods import METHODS, Method
from par_agent.errors import UserError
from par_agent.modeling.text_encoder import HashTextEncoder
from par_agent.modeling.vae.frame_encoder import FrameEncoder, load_frame_encoder, save_frame_encoder
from par_agent.modeling.weights import load_module, read_tensors, save_module, write_tensors
from par_agent.policy.transforms import Transforms
from par_agent.utils.checkpoint_folders import BASELINE
from par_agent.utils.device import usable_device
from par_agent.utils.files import naming, read_object, write_json
from par_agent.utils.json_fields import build, check


@dataclass(frozen=True)
class Prompt:
    """A demonstration, as a method reads it: N steps."""

    latents: Tensor
    """(N, C, h, w) scaled latents."""
    proprioception: Tensor
    """(N, P) normalised joint positions."""
    past_actions: Tensor
    """(N, L, A) normalised chunk before each frame."""
    past_actions_known: Tensor
    """(N,) bool; False at the start."""

    def __post_init__(self) -> None:
        ranks = {"latents": 4, "proprioception": 2, "past_actions": 3, "past_actions_known": 1}
        values: dict[str, Tensor] = {name: getattr(self, name) for name in ranks}
        if any(values[name].ndim != rank for name, rank in ranks.items()) or len({*map(len, values.values())}) > 1:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in values.items())
            raise UserError(f"the arrays of a prompt do not fit one another: {shapes}")
        if not all(len(value) and value.isfinite().all() for value in values.values()):
            raise UserError("the arrays of a prompt are empty, or hold NaN or infinity")


@dataclass
class BaselineCheckpoint:
    """A trained baseline's parts, loaded."""

    method: str
    model: Method
    encoder: FrameEncoder
    transforms: Transforms
    prompts: dict[str, Prompt] = field(default_factory=dict)
    """By instruction; empty for a method that is not prompted."""
    trained: dict[str, Any] = field(default_factory=dict)
    """How it was trained, for the record."""

    @property
    def text_encoder(self) -> HashTextEncoder:
        """The frozen text encoder."""
        return HashTextEncoder(self.model.config.text_dim, self.model.config.text_length)

    def save(self, folder: Path) -> None:
        """Writes the folder; every file appears complete, ``baseline.json`` last."""
        save_frame_encoder(self.encoder, folder / "frame_encoder")
        if self.prompts:
            tensors = {
                f"{instruction}/{name}": value
                for instruction, prompt in self.prompts.items()
                for name, value in vars(prompt).items()
            }
            write_tensors(folder / "prompts.safetensors", tensors)
        save_module(self.model, dataclasses.asdict(self.model.config), folder)
        content = {"method": self.method, "transforms": dataclasses.asdict(self.transforms), "trained": self.trained}
        write_json(folder / BASELINE, content)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> BaselineCheckpoint:
        """Reads a folder, with modules in evaluation mode on ``device``."""
        folder, device = Path(folder), usable_device(device)
        if not (folder / BASELINE).is_file():
            raise UserError(f"{folder} holds no baseline (no {BASELINE}); train one with `par-agent train-baseline`")
        content = read_object(folder / BASELINE)
        if (method := str(content.get("method"))) not in METHODS:
            raise UserError(f"{folder / BASELINE} names the method {method!r}; known: {', '.join(METHODS)}")
        for name in ("transforms", "trained"):
            if name not in content:
                raise UserError(f"{folder / BASELINE} lacks {name!r}; copy or train the checkpoint again")
        cls_ = METHODS[method]
        fields = read_object(folder / "config.json")
        with naming(folder / "config.json"):
            config = build(cls_.Config, fields)
        with torch.device("meta"):
            model = cls_(config)
        load_module(model, folder)
        with naming(folder / BASELINE):
            transforms = build(Transforms, content["transforms"], added=())
            check("trained", content["trained"], dict)
        if (config.horizon, config.action_size) != (transforms.targets, transforms.action_size):
            raise UserError(
                f"{folder}: the model and its transforms differ in actions; the files do not belong together"
            )
        prompts = _read_prompts(folder / "prompts.safetensors") if cls_.prompted else {}
        encoder = load_frame_encoder(folder / "frame_encoder")
        return cls(method, model.eval().to(device), encoder.to(device), transforms, prompts, content["trained"])


def _read_prompts(path: Path) -> dict[str, Prompt]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in read_tensors(path).items():
        instruction, _, name = key.rpartition("/")
        parts.setdefault(instruction, {})[name] = value
    try:
        with naming(path):
            return {instruction: Prompt(**tensors) for instruction, tensors in parts.items()}
    except TypeError as error:
        raise UserError(f"{path} holds incomplete prompts ({error}); copy or train the checkpoint again") from None
