"""The model that a run starts from, made anew or read from a checkpoint, and its parts that take the data's sizes."""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F

from par_agent.errors import UserError
from par_agent.modeling.par import PARModel
from par_agent.modeling.presets import preset
from par_agent.modeling.text_encoder import HashTextEncoder
from par_agent.modeling.vae.frame_encoder import for_cameras, load_frame_encoder
from par_agent.policy.checkpoint import Checkpoint
from par_agent.policy.transforms import Transforms
from par_agent.training.config import FinetuneConfig


def load_start(config: FinetuneConfig) -> Checkpoint:
    """The model to begin with and its frozen parts.

    A model whose action parts are random, from scratch or on imported video weights, has no transforms.
    """
    if config.init is not None:
        loaded = Checkpoint.load(config.init_folder)
        loaded.model = _with_foresight(loaded.model.train(), config.model.foresight)
        loaded.transforms = None if config.model.new_robot else loaded.transforms
        return loaded
    if config.vae is None:
        raise UserError("training from scratch needs --vae FOLDER, made by `par-agent train-vae`")
    encoder = load_frame_encoder(config.vae)
    model = _with_foresight(PARModel(preset(config.preset)), config.model.foresight)
    text_encoder = HashTextEncoder(model.config.nova.text_dim, model.config.nova.text_length)
    return Checkpoint(model, encoder, None, text_encoder)


def _with_foresight(model: PARModel, foresight: tuple[int, ...] | None) -> PARModel:
    """The model with the same weights and another foresight; None: unchanged."""
    if foresight is None or foresight == model.config.action.foresight:
        return model
    return PARModel.from_weights(model.config.with_action(foresight=foresight), model.state_dict())


def with_cameras(start: Checkpoint, config: FinetuneConfig) -> Checkpoint:
    """The same weights for as many cameras as the run reads; embeddings of cameras that the model did not have are
    zero."""
    model, cameras = start.model, len(config.cameras)
    if cameras == model.config.nova.cameras:
        return start
    if config.train != "full":
        raise UserError(f"--train {config.train} keeps what tells cameras apart: another number of them needs full")
    known = model.nova.camera_embed
    model = PARModel.from_weights(model.config.with_cameras(cameras), model.state_dict())
    if known is not None and model.nova.camera_embed is not None:
        shared = min(cameras, len(known))
        model.nova.camera_embed.data[:shared] = known.data[:shared]
    return dataclasses.replace(start, model=model, encoder=for_cameras(start.encoder, cameras))


def with_proprioception(model: PARModel, size: int) -> PARModel:
    """The model with ``size`` numbers of proprioception, no fewer than it has; the weights of new ones are zero."""
    known = model.config.action.proprioception_size
    if not 0 < known <= size:
        raise UserError(f"the model reads {known} numbers of proprioception; that cannot become {size}")
    weights, name = model.state_dict(), "action_tokenizer.proprioception.weight"
    wider = weights | {name: F.pad(weights[name], (0, size - known))}
    return PARModel.from_weights(model.config.with_action(proprioception_size=size), wider)


def for_robot(model: PARModel, transforms: Transforms, *, fresh: bool) -> PARModel:
    """The model with action parts of the data's sizes; new ones if they differ or ``fresh`` ones are wanted."""
    action = model.config.action
    sizes = transforms.action_size, transforms.proprioception_size
    if sizes == (action.action_size, action.proprioception_size) and not fresh:
        return model
    config = model.config.with_action(action_size=sizes[0], proprioception_size=sizes[1])
    video = {name: value for name, value in model.state_dict().items() if not name.startswith("action_")}
    return PARModel.from_weights(config, video)
