"""Loads and checks the model and the data of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from par_agent.data.augmentation import Augmentation
from par_agent.data.conventions import (
    check_conventions,
    check_frames,
    extra_observations,
    fit_transforms,
    image_size,
)
from par_agent.data.episodes import RenderedDataset, open_datasets
from par_agent.data.index import EpisodeIndex, VideoIndex
from par_agent.data.latent_cache import CachedLatents
from par_agent.data.latents import EncodedFrames, LatentSource, LatentSpec
from par_agent.data.windows import MixedSampler, WindowSampler
from par_agent.errors import UserError, user_errors
from par_agent.modeling.par import PARModel
from par_agent.modeling.presets import preset
from par_agent.modeling.text_encoder import TextEncoder
from par_agent.modeling.vae.frame_encoder import FrameEncoder, describe_frame_encoder, load_frame_encoder
from par_agent.modeling.weights import find_weights
from par_agent.policy.checkpoint import Checkpoint, InferenceConfig, make_text_encoder
from par_agent.policy.transforms import Transforms
from par_agent.training.config import FinetuneConfig, TrainingConfig
from par_agent.training.trainable import choose_weights
from par_agent.utils.hashes import hash_file


@dataclass
class Setup:
    """A model and its data."""

    model: PARModel
    encoder: FrameEncoder
    transforms: Transforms | None
    """None: videos, and a model that was trained on no actions either."""
    text_encoder: TextEncoder
    inference: InferenceConfig
    """How the policy acts: as the one that the run starts from."""
    train: MixedSampler
    held_out: list[WindowSampler]
    base: str | None
    """Hash of the frozen weights, if there are some: training states hold only those that are trained."""


def prepare(config: FinetuneConfig, device: torch.device) -> Setup:
    """Loads or makes the model, and opens the data (computing latents that are missing, on ``device``).

    Raises:
        UserError: data that does not fit the model, a checkpoint that is damaged, an instruction without features, an
            unknown LoRA target.
    """
    torch.manual_seed(config.seed)
    datasets = open_datasets(config.folders(), skip_corrupt=config.dataset.skip_corrupt)
    start, encoder_folder = _start(config)
    indices, transforms = _index(config, datasets, start)
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
    encoder = start.encoder.to(device)
    train, held = open_samplers(config, indices, encoder, encoder_folder, shape)
    base = None
    if config.init is not None and not config.trains_all:
        base = hash_file(find_weights(config.init))
    return Setup(model, encoder, transforms, start.text_encoder, _inference_config(config, start), train, held, base)


def _inference_config(config: FinetuneConfig, start: Checkpoint) -> InferenceConfig:
    """The start's, with a context within the training windows; past actions are read if training shows whole chunks."""
    inference = dataclasses.replace(start.inference, context=min(start.inference.context, config.window))
    if not config.has_actions:
        return inference
    known = config.loss.past_action_dropout < 1 and inference.execute is None
    return dataclasses.replace(inference, past_actions=known)


def open_samplers(
    config: TrainingConfig,
    indices: Sequence[EpisodeIndex],
    encoder: FrameEncoder,
    encoder_folder: Path,
    shape: tuple[int, int, int],
    window: int | None = None,
) -> tuple[MixedSampler, list[WindowSampler]]:
    """The training batches, and the windows of each dataset's held-out episodes; computes latents that are missing.

    Args:
        config: the run's options.
        indices: what the datasets hold.
        encoder: the frozen frame encoder.
        encoder_folder: where it was read from.
        shape: channels, height and width of one latent frame as the model reads it.
        window: steps a window; None: as in the options. As many fewer windows make a batch as they are longer.

    Raises:
        UserError: frames that do not give such latents, fewer demonstrations than asked for, or a batch of fewer steps
            than a window.
    """
    window = config.window if window is None else window
    batch_size = config.batch_size * config.window // window
    if batch_size < 1:
        raise UserError(
            f"--batch-size {config.batch_size} of --window {config.window} are fewer steps than one sequence of the "
            f"model, {window}: give a larger --batch-size"
        )
    augmentation = Augmentation(config.dataset.shift, config.dataset.color_jitter)
    digest, about = hash_file(find_weights(encoder_folder)), describe_frame_encoder(encoder)
    spec = LatentSpec(config.dataset.camera, digest, shape, config.dataset.variants, augmentation, about)
    splits = [index.split(config.dataset.demos) for index in indices]
    latents = [_latents(index, spec, encoder, config.dataset.cache) for index in indices]
    train = [
        WindowSampler(index, source, split[0], window, config.seed + number)
        for number, (index, source, split) in enumerate(zip(indices, latents, splits, strict=True))
    ]
    held = [
        WindowSampler(index, source, split[1], window, config.seed)
        for index, source, split in zip(indices, latents, splits, strict=True)
    ]
    mixed = MixedSampler(train, list(config.dataset.weights) or [1.0] * len(train), batch_size)
    for source in latents:
        source.prepare()  # long; everything else was checked before
    return mixed, held


def _start(config: FinetuneConfig) -> tuple[Checkpoint, Path]:
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
    return Checkpoint(model, encoder, None, make_text_encoder(model.config)), config.vae


def _with_foresight(model: PARModel, foresight: tuple[int, ...] | None) -> PARModel:
    """The model with the same weights and another foresight; None: unchanged."""
    if foresight is None or foresight == model.config.action.foresight:
        return model
    return PARModel.from_weights(model.config.with_action(foresight=foresight), model.state_dict())


def with_proprioception(model: PARModel, size: int) -> PARModel:
    """An equal model that reads ``size`` numbers of proprioception; those that are new count nothing at first.

    Raises:
        UserError: the model reads none, or already more than that.
    """
    known = model.config.action.proprioception_size
    if not 0 < known <= size:
        raise UserError(f"the model reads {known} numbers of proprioception; that cannot become {size}")
    weights, name = model.state_dict(), "action_tokenizer.proprioception.weight"
    wider = weights | {name: F.pad(weights[name], (0, size - known))}
    return PARModel.from_weights(model.config.with_action(proprioception_size=size), wider)


def _index(
    config: FinetuneConfig, datasets: list[RenderedDataset], start: Checkpoint
) -> tuple[Sequence[EpisodeIndex], Transforms | None]:
    """What the datasets hold, and the transforms to read it with.

    These are the checkpoint's own where it was trained on actions before, for a new camera with the data's frames; else
    they are fitted to the data. A model that was only trained on videos has none.
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


def _for_robot(model: PARModel, transforms: Transforms, *, fresh: bool) -> PARModel:
    """The model with action parts of the data's sizes; new ones if they differ or ``fresh`` ones are wanted."""
    action = model.config.action
    sizes = transforms.action_size, transforms.proprioception_size
    if sizes == (action.action_size, action.proprioception_size) and not fresh:
        return model
    config = model.config.with_action(action_size=sizes[0], proprioception_size=sizes[1])
    video = {name: value for name, value in model.state_dict().items() if not name.startswith("action_")}
    return PARModel.from_weights(config, video)


def _latents(index: EpisodeIndex, spec: LatentSpec, encoder: FrameEncoder, cache: bool) -> LatentSource:
    """Where windows of a dataset get their latents from."""

    def encode(frames: Tensor) -> Tensor:
        with user_errors():
            return encoder.encode(frames.to(next(encoder.parameters()).device))

    return CachedLatents(index, spec, encode) if cache else EncodedFrames(index, spec, encode)
