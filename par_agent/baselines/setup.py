"""Loads and checks the method and the data of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from par_agent.baselines.checkpoint import BaselineCheckpoint, Prompt
from par_agent.baselines.config import BaselineConfig
from par_agent.baselines.methods import METHODS
from par_agent.data.conventions import fit_transforms, image_size
from par_agent.data.episodes import open_datasets
from par_agent.data.index import EpisodeIndex
from par_agent.data.windows import MixedSampler, WindowSampler
from par_agent.errors import UserError
from par_agent.modeling.vae.frame_encoder import load_frame_encoder
from par_agent.policy.transforms import Transforms
from par_agent.training.samplers import open_samplers


@dataclass
class BaselineSetup:
    """A method and its data."""

    policy: BaselineCheckpoint
    """The method before its training, and its frozen parts."""
    train: MixedSampler
    held_out: list[WindowSampler]


def prepare(config: BaselineConfig, device: torch.device) -> BaselineSetup:
    """Makes the model, and opens the data (computing latents that are missing)."""
    if config.vae is None:
        raise UserError("a baseline needs --vae FOLDER, made by `par-agent train-vae`")
    encoder = load_frame_encoder(config.vae).to(device)
    datasets = open_datasets(config.folders(), skip_corrupt=config.dataset.skip_corrupt)
    asked = config.sizes()
    if len(config.cameras) > 1:
        raise UserError(f"--camera {' '.join(config.cameras)}: a baseline reads one camera")
    indices = [EpisodeIndex(dataset, asked.chunk_length, asked.foresight) for dataset in datasets]
    camera = config.camera
    transforms = fit_transforms(indices, camera, image_size(datasets, camera), config.dataset.demos)
    if transforms.frame_size is None:
        raise UserError(f"{datasets[0].folder} does not say how large its frames are; render it with --crop or --size")
    sizes = config.sizes(
        latent_channels=encoder.channels,
        latent_size=tuple(size // encoder.stride for size in transforms.frame_size),
        action_size=transforms.action_size,
        proprioception_size=transforms.proprioception_size,
    )
    torch.manual_seed(config.seed)
    model = METHODS[config.method](sizes).to(device)
    limit = model.max_context
    if limit is not None and model.sequence is None and config.window > limit:
        raise UserError(
            f"--window is {config.window}; {config.method} reads {limit} steps at most: give a shorter --window, or a "
            "larger size by --model"
        )
    shape = (sizes.latent_channels, *sizes.latent_size)
    train, held_out = open_samplers(config, indices, encoder, shape, model.sequence)
    prompts: dict[str, Prompt] = {}
    if model.prompted and model.sequence is not None:
        prompts = make_prompts(train.samplers, config.dataset.demos, transforms, model.sequence - model.context)
    policy = BaselineCheckpoint(config.method, model, encoder, transforms, prompts)
    return BaselineSetup(policy, train, held_out)


def make_prompts(
    samplers: list[WindowSampler], demos: int | None, transforms: Transforms, limit: int
) -> dict[str, Prompt]:
    """The shortest of the first demonstrations of every instruction, cut to ``limit`` steps."""
    prompts: dict[str, Prompt] = {}
    for sampler in samplers:
        index = sampler.index
        by_instruction: dict[tuple[str, ...], list[int]] = {}
        for episode in index.split(demos)[0]:
            by_instruction.setdefault(index.instructions[episode], []).append(episode)
        for wordings, episodes in by_instruction.items():
            episode = min(episodes[:10], key=lambda number: index.boundaries[number])
            for instruction in wordings:
                prompts.setdefault(instruction, _prompt(sampler, episode, transforms, limit))
    return prompts


def _prompt(sampler: WindowSampler, episode: int, transforms: Transforms, limit: int) -> Prompt:
    index = sampler.index
    rows = index.rows([episode])[:: index.chunk_stride][: max(1, limit)]
    column = {name: torch.from_numpy(np.asarray(values[rows])) for name, values in index.columns.items()}
    return Prompt(
        sampler.latents.latents(sampler.latents.read(column["row"].numpy(), None)).half(),
        transforms.normalise_proprioception(column["proprioception"]),
        transforms.normalise_actions(column["past_actions"], column["past_proprioception"]),
        column["past_actions_known"],
    )
