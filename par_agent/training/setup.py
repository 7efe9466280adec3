"""The model and the data of a run, checked against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from par_agent.data.conventions import check_conventions, check_frames, extra_observations, fit_transforms, image_size
from par_agent.data.episodes import RenderedDataset, open_datasets
from par_agent.data.index import EpisodeIndex, VideoIndex
from par_agent.data.windows import MixedSampler, WindowSampler
from par_agent.errors import UserError
from par_agent.policy.checkpoint import Checkpoint
from par_agent.policy.transforms import Transforms
from par_agent.training.config import FinetuneConfig
from par_agent.training.samplers import open_samplers
from par_agent.training.start import for_robot, load_start, with_cameras, with_proprioception
from par_agent.training.trainable import choose_weights, hash_frozen


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
    start = load_start(config)
    indices, transforms = _open_indices(config, datasets, start)
    start = with_cameras(start, config)
    model = start.model
    if config.has_actions and transforms is not None:
        if config.model.new_camera:
            model = with_proprioception(model, transforms.proprioception_size)
        model = for_robot(model, transforms, fresh=config.model.new_robot)
    model.config = dataclasses.replace(model.config, max_context=config.window)  # acting may see what training showed
    choose_weights(model, config, fresh_actions=start.transforms is None)
    for instruction in sorted({text for index in indices for wordings in index.instructions for text in wordings}):
        start.text_encoder.encode(instruction)  # one without stored features is refused before the long work
    shape = (model.config.nova.latent_channels, *model.config.nova.latent_size)
    train, held_out = open_samplers(config, indices, start.encoder.to(device), shape)
    context = config.window if start.transforms is None else min(start.inference.context, config.window)
    inference = dataclasses.replace(start.inference, context=context)
    if config.has_actions:  # past ones are read if training shows whole chunks
        known = config.loss.past_action_dropout < 1 and inference.n_action_steps is None
        inference = dataclasses.replace(inference, past_actions=known)
    policy = dataclasses.replace(start, model=model, transforms=transforms, inference=inference)
    return Setup(policy, train, held_out, hash_frozen(config))


def describe_run(config: FinetuneConfig, setup: Setup) -> str:
    """What a run trains, on what, and where to look at it, as it is printed when it begins."""
    samplers, model = setup.train.samplers, setup.policy.model
    names = ", ".join(f"{count} of {name}" for name, count in setup.train.demonstrations.items())
    windows, held = sum(map(len, samplers)), sum(sampler.episodes for sampler in setup.held_out)
    numbers = [(value.numel(), value.requires_grad) for value in model.parameters()]
    trained = sum(count for count, learns in numbers if learns)
    lines = [
        f"episodes: {names}; {held} more are held out",
        f"windows: {windows:,} of {config.window} physical tokens; {config.steps:,} steps of "
        f"{config.batch_size * config.accumulation} a process",
        f"model: {model.config.name}, {sum(count for count, _ in numbers):,} parameters, {trained:,} trained",
        f"watch: tensorboard --logdir {config.out / 'tensorboard'}; pictures in {config.out / 'pictures'}",
    ]
    return "\n".join(lines)


def _open_indices(
    config: FinetuneConfig, datasets: list[RenderedDataset], start: Checkpoint
) -> tuple[Sequence[EpisodeIndex], Transforms | None]:
    """What the datasets hold, and the transforms to read it with.

    A checkpoint that was trained on actions keeps its transforms; a new camera replaces their part of the cameras.
    Otherwise they are fitted to the data. A model that was only trained on videos has none.
    """
    action, name = start.model.config.action, f"the checkpoint {config.init}"
    camera, new_camera = config.camera, config.model.new_camera
    if start.transforms is not None and config.cameras != start.transforms.cameras and not new_camera:
        raise UserError(
            f"--camera {' '.join(config.cameras)}: {name} sees through {' '.join(start.transforms.cameras)}; give "
            "--new-camera to go on with another one"
        )
    if not config.has_actions:
        if not start.model.config.imagination:
            raise UserError(f"{start.model.config.name} has no frame path, and videos train only the frame path")
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
