"""Checkpoints: everything that a policy needs, in one folder.

::

    par-mini/
      config.json          sizes of the model (PARConfig)
      model.safetensors    its weights
      policy.json          transforms, kind of text encoder, how to act by default, how it was trained
      frame_encoder/       config.json + model.safetensors of the frozen frame VAE
      text_features.safetensors   only with Phi: features of the instructions, so that Phi is never loaded

A checkpoint fresh from `par-agent import-nova` has no transforms (null): nothing has been fitted to data yet, and only
`par-agent finetune --init` takes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from par_agent.errors import UserError
from par_agent.modeling.config import InferenceConfig, PARConfig
from par_agent.modeling.par import PARModel
from par_agent.modeling.text_encoder import HashTextEncoder, StoredTextEncoder, TextEncoder
from par_agent.modeling.vae.frame_encoder import FrameEncoder, for_cameras, load_frame_encoder, save_frame_encoder
from par_agent.policy.transforms import Transforms, pixels
from par_agent.tasks import find_task
from par_agent.utils.checkpoint_folders import POLICY, checkpoint_folder
from par_agent.utils.device import floating_type, usable_device
from par_agent.utils.files import naming, read_object, write_json
from par_agent.utils.json_fields import build, check

ENCODER = "frame_encoder"
FEATURES = "text_features.safetensors"
TEXT_ENCODERS = {HashTextEncoder: "hash", StoredTextEncoder: "phi"}
"""What ``policy.json`` calls the text encoders that a checkpoint can hold."""


@dataclass
class Checkpoint:
    """A policy's parts, loaded."""

    model: PARModel
    encoder: FrameEncoder
    transforms: Transforms | None
    """None: fitted to no data yet; such a checkpoint is for training only."""
    text_encoder: TextEncoder
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    trained: dict[str, Any] = field(default_factory=dict)
    """How it was trained: data, instructions, options, steps; for the record."""

    @property
    def instructions(self) -> tuple[str, ...]:
        """Instructions that it was trained with; empty where that is not known.

        Older checkpoints name their datasets only; those that are named after tasks have the tasks' instructions.
        """
        if "instructions" in self.trained:
            return tuple(self.trained["instructions"])
        tasks = [find_task(name) for name in self.trained.get("demonstrations", {})]
        return tuple(task.instruction for task in tasks if task is not None) if None not in tasks else ()

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Writes the folder; every file appears complete, ``policy.json`` last.

        Weights are stored as ``dtype``, or as they are if it is None. A small frame encoder stays as it is.
        """
        folder = Path(folder)
        if (text := TEXT_ENCODERS.get(type(self.text_encoder))) is None:
            raise UserError(
                f"a checkpoint cannot hold a {type(self.text_encoder).__name__}; put the features of the "
                "policy's instructions into a StoredTextEncoder"
            )
        if isinstance(self.text_encoder, StoredTextEncoder):
            self.text_encoder.save(folder / FEATURES)
        save_frame_encoder(self.encoder, folder / ENCODER, dtype=dtype)
        self.model.save_pretrained(folder, dtype)
        content = {
            "transforms": None if self.transforms is None else dataclasses.asdict(self.transforms),
            "text_encoder": text,
            "inference": dataclasses.asdict(self.inference),
            "trained": self.trained,
        }
        write_json(folder / POLICY, content)

    @classmethod
    def load(
        cls,
        name_or_folder: Path | str,
        device: torch.device | str | None = "cpu",
        dtype: torch.dtype | str = torch.float32,
        revision: str | None = None,
    ) -> Checkpoint:
        """Reads a checkpoint, with modules in evaluation mode on ``device`` and weights of ``dtype``.

        ``name_or_folder`` and ``revision`` are those of
        :func:`~par_agent.utils.checkpoint_folders.checkpoint_folder`.
        """
        device, dtype = usable_device(device), floating_type(dtype)
        folder = checkpoint_folder(name_or_folder, revision)
        content = read_policy(folder)
        model = PARModel.from_pretrained(folder)
        config = model.config
        encoder = for_cameras(load_frame_encoder(folder / ENCODER), config.nova.cameras)
        with naming(folder / POLICY):
            transforms = None if content["transforms"] is None else build(Transforms, content["transforms"], added=())
            fields = content["inference"]
            if isinstance(fields, dict) and "n_action_steps" not in fields:  # older files call it execute
                fields = {"n_action_steps" if name == "execute" else name: value for name, value in fields.items()}
            inference = build(InferenceConfig, fields, added=("denoising_shift",))
        if encoder.channels != config.nova.latent_channels:
            raise UserError(
                f"{folder}: the model reads latents of {config.nova.latent_channels} channels, its frame encoder gives "
                f"{encoder.channels}; the files do not belong together"
            )
        if transforms is not None:
            _check(config, encoder, transforms, folder)
        text = _load_text_encoder(content["text_encoder"], config, folder)
        return cls(model.to(device, dtype), encoder.to(device, dtype), transforms, text, inference, content["trained"])


def read_policy(folder: Path) -> dict[str, Any]:
    """Content of a checkpoint's ``policy.json``: ``transforms``, ``inference``, ``text_encoder``, ``trained``."""
    path = folder / POLICY
    if not path.is_file():
        raise UserError(
            f"{folder} is not a policy checkpoint (no {POLICY}); expected one made by `par-agent finetune` or "
            "`par-agent import-nova`"
        )
    content = read_object(path)
    for name in ("transforms", "text_encoder", "inference", "trained"):
        if name not in content:
            raise UserError(f"{path} lacks {name!r}; the checkpoint is incomplete: copy or train it again")
    check(f"{path}: text_encoder", content["text_encoder"], str)
    check(f"{path}: trained", content["trained"], dict)
    check(f"{path}: trained.steps", content["trained"].get("steps"), int | None)
    check(f"{path}: trained.instructions", content["trained"].get("instructions", []), list[str])
    check(f"{path}: trained.demonstrations", content["trained"].get("demonstrations", {}), dict)
    return content


def _load_text_encoder(kind: str, config: PARConfig, folder: Path) -> TextEncoder:
    if kind not in TEXT_ENCODERS.values():
        raise UserError(
            f"{folder / POLICY} names the text encoder {kind!r}; known: {', '.join(TEXT_ENCODERS.values())}. It may "
            "come from a newer version: update par_agent"
        )
    if kind == "hash":
        return HashTextEncoder(config.nova.text_dim, config.nova.text_length)
    return StoredTextEncoder.load(folder / FEATURES, config.nova.text_dim, config.nova.text_length)


def _check(config: PARConfig, encoder: FrameEncoder, transforms: Transforms, folder: Path) -> None:
    pairs = {
        "number of actions predicted": (config.action.targets, transforms.targets),
        "action size": (config.action.action_size, transforms.action_size),
        "joint positions": (config.action.proprioception_size, transforms.proprioception_size),
        "number of cameras": (config.nova.cameras, len(transforms.cameras)),
    }
    for name, (model, data) in pairs.items():
        if model != data:
            raise UserError(
                f"{folder}: the model's {name} is {model}, its transforms' {data}; the files do not belong together"
            )
    frame = transforms.frame_size
    height, width = config.nova.latent_size
    wanted = encoder.stride * height, encoder.stride * width // config.nova.cameras
    if frame is not None and frame != wanted:
        raise UserError(
            f"{folder}: the model reads frames of {pixels(wanted)} pixels, its transforms make {pixels(frame)}; the "
            "files do not belong together"
        )
