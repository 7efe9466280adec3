"""The model that a run starts from, made anew or read from a checkpoint, and the data, by which it gets its sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from par_agent.data.conventions import check_conventions, check_frames, extra_observations, fit_transforms, image_size
from par_agent.data.episodes import RenderedDataset, open_datasets
from par_agent.data.index import EpisodeIndex, VideoIndex
from par_agent.data.windows import MixedSampler, WindowSampler
from par_agent.errors import UserError
from par_agent.modeling.par import PARModel
from par_agent.modeling.presets import preset
from par_agent.modeling.text_encoder import HashTextEncoder
from par_agent.modeling.vae.frame_encoder import load_frame_encoder
from par_agent.modeling.weights import find_weights
from par_agent.policy.checkpoint import Checkpoint
from par_agent.policy.transforms import Transforms
from par_agent.training.config import FinetuneConfig
from par_agent.training.samplers import open_samplers
from par_agent.training.trainable import choose_weights
from par_agent.utils.hashes import hash_file


@dataclass
class Setup:
    """A model and its data."""

    policy: Checkpoint
    """The model before its training, and its frozen parts. It has no transforms where it was trained on videos only."""
    train: MixedSampler
    held_out: list[WindowSampler]
    base: str | None
    """Hash of the frozen weights, if there are some: training states hold only those that are trained."""


def prepare(config: FinetuneConfig, device: torch.device) -> Setup:
    """Loads or makes the model, and opens the data (computing latents that are missing, on ``device``).

    Data that does not fit the model, and an instruction that it has no features of, are a UserError before the work.
    """
    torch.manual_seed(config.seed)
    datasets = open_datasets(config.folders(), skip_corrupt=config.dataset.skip_corrupt)
    start, encoder_folder = _load_start(config)
    indices, transforms = _open_indices(config, datasets, start)
    model = start.model
    if config.has_actions and transforms is not None:
        if config.model.new_camera:
            model = with_proprioception(model, transforms.proprioception_size)
        model = _for_robot(model, transforms, fresh=config.model.new_robot)
    model.config = dataclasses.replace(model.config, max_context=config.window)  # acting may see what training showed
    choose_weights(model, config, fresh_actions=start.transforms is None)
    for instruction in sorted({text for index in indices for wordings in index.instructions for text in wordings}):
        start.text_encoder.encode(instruction)  # one without stored features is refused before the long work
    shape = (model.config.nova.latent_channels, *model.config.nova.latent_size)
    train, held_out = open_samplers(config, indices, start.encoder.to(device), encoder_folder, shape)
    inference = dataclasses.replace(start.inference, context=min(start.inference.context, config.window))
    if config.has_actions:  # past ones are read if training shows whole chunks
        known = config.loss.past_action_dropout < 1 and inference.n_action_steps is None
        inference = dataclasses.replace(inference, past_actions=known)
    policy = dataclasses.replace(start, model=model, transforms=transforms, inference=inference)
    base = None if config.init is None or config.trains_all else hash_file(find_weights(config.init))
    return Setup(policy, train, held_out, base)


def _load_start(config: FinetuneConfig) -> tuple[Checkpoint, Path]:
    """The model to begin with and its frozen parts, and the folder of its frame encoder.

    A model whose action parts are random, from scratch or on imported video weights, has no transforms.
    """
    if config.init is not None:
        loaded = Checkpoint.load(config.init)
        loaded.model = _with_foresight(loaded.model.train(), config.model.foresight)
        loaded.transforms = None if config.model.new_robot else loaded.transforms
        return loaded, config.init / "frame_encoder"
    if config.vae is None:
        raise UserError("training from scratch needs --vae FOLDER, made by `par-agent train-vae`")
    encoder = load_frame_encoder(config.vae)
    model = _with_foresight(PARModel(preset(config.preset)), config.model.foresight)
    text_encoder = HashTextEncoder(model.config.nova.text_dim, model.config.nova.text_length)
    return Checkpoint(model, encoder, None, text_encoder), config.vae


def _with_foresight(model: PARModel, foresight: tuple[int, ...] | None) -> PARModel:
    """The model with the same weights and another foresight; None: unchanged."""
    if foresight is None or foresight == model.config.action.foresight:
        return model
    return PARModel.from_weights(model.config.with_action(foresight=foresight), model.state_dict())


def with_proprioception(model: PARModel, size: int) -> PARModel:
    """The model with ``size`` numbers of proprioception, no fewer than it has; the weights of new ones are zero."""
    known = model.config.action.proprioception_size
    if not 0 < known <= size:
        raise UserError(f"the model reads {known} numbers of proprioception; that cannot become {size}")
    weights, name = model.state_dict(), "action_tokenizer.proprioception.weight"
    wider = weights | {name: F.pad(weights[name], (0, size - known))}
    return PARModel.from_weights(model.config.with_action(proprioception_size=size), wider)


def _for_robot(model: PARModel, transforms: Transforms, *, fresh: bool) -> PARModel:
    """The model with action parts of the data's sizes; new ones if they differ or ``fresh`` ones are wanted."""
    action = model.config.action
    sizes = transforms.action_size, transforms.proprioception_size
    if sizes == (action.action_size, action.proprioception_size) and not fresh:
        return model
    config = model.config.with_action(action_size=sizes[0], proprioception_size=sizes[1])
    video = {name: value for name, value in model.state_dict().items() if not name.startswith("action_")}
    return PARModel.from_weights(config, video)


def _open_indices(
    config: FinetuneConfig, datasets: list[RenderedDataset], start: Checkpoint
) -> tuple[Sequence[EpisodeIndex], Transforms | None]:
    """What the datasets hold, and the transforms to read it with.

    A checkpoint that was trained on actions keeps its transforms; a new camera replaces their part of the camera.
    Otherwise they are fitted to the data. A model that was only trained on videos has none.
    """
    action, name = start.model.config.action, f"the checkpoint {config.init}"
    camera, new_camera = config.dataset.camera, config.model.new_camera
    if start.transforms is not None and camera != start.transforms.camera and not new_camera:
        raise UserError(
            f"--camera {camera}: {name} sees through {start.transforms.camera}; give --new-camera to go on with "
            "another one"
        )
    if not config.has_actions:
        if not start.model.config.imagination:
            raise UserError(f"{start.model.config.name} has no frame path, which is all that videos can train")
        sizes = (action.proprioception_size, action.action_size, action.chunk_length, action.targets)
        videos = [VideoIndex(dataset, *sizes) for dataset in datasets]
        if start.transforms is not None:
            check_frames(videos, start.transforms, name)
        return videos, start.transforms
    extra = start.transforms.extra if start.transforms and not new_camera else extra_observations(datasets)
    indices = [EpisodeIndex(dataset, action.chunk_length, action.foresight, extra) for dataset in datasets]
    fitted = fit_transforms(indices, camera, image_size(datasets, camera), config.dataset.demos)
    if start.transforms is None:
        return indices, fitted
    if new_camera:
        start.transforms = start.transforms.with_camera_of(fitted)
    check_conventions(indices, start.transforms, name)
    if start.transforms.image_size is None:
        start.transforms = dataclasses.replace(start.transforms, image_size=fitted.image_size)
    if config.model.foresight is None:
        return indices, start.transforms
    return indices, start.transforms.with_foresight_of(fitted, action.chunk_length)
