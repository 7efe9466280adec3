"""Training of a baseline, in the loop that trains PAR: same windows, optimiser, averaging and records."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from par_agent.baselines.checkpoint import METHODS, BaselineCheckpoint, Prompt
from par_agent.baselines.common import Method, MethodConfig
from par_agent.data.conventions import fit_transforms, image_size
from par_agent.data.episodes import open_datasets
from par_agent.data.index import EpisodeIndex
from par_agent.data.windows import MixedSampler, Windows, WindowSampler
from par_agent.errors import UserError
from par_agent.modeling.par import PARLoss
from par_agent.modeling.random_numbers import normal
from par_agent.modeling.text_encoder import HashTextEncoder
from par_agent.modeling.vae.frame_encoder import FrameEncoder, load_frame_encoder
from par_agent.policy.transforms import Transforms
from par_agent.training.config import TrainingConfig
from par_agent.training.finetune import make_accelerator
from par_agent.training.loop import SavedPolicy, TrainingLoop, channels_last
from par_agent.training.monitor import Monitor
from par_agent.training.objective import perturb_proprioception, tensors
from par_agent.training.setup import open_samplers
from par_agent.training.state import full_tensor
from par_agent.training.validation import action_metrics, held_out_windows
from par_agent.utils.checked import Strength
from par_agent.utils.json_fields import build
from par_agent.utils.strict_json import parse_options

MEASURED = 64
"""Steps measured per dataset, spread over its held-out episodes."""
STEP_SEEDS = 1_000_003
"""A batch's noise follows from ``seed * STEP_SEEDS + number``, as in PAR's training."""


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(TrainingConfig):
    """Trains a baseline on rendered demonstrations; run the same command again to resume."""

    settings_file = "train_baseline.json"

    method: str = "act"
    """What to train: act, bc-t, dp, icrt, rdt, or a method of your own (`benchmarks/baselines/README.md`)."""
    model: tuple[str, ...] = ()
    """Sizes that differ from the method's own, as key=value: width=128 horizon=16."""
    proprioception_noise: Strength = 0.0
    """Noise on joint positions, in standard deviations of the data."""
    recovery_noise: Strength = 0.25
    """Displacement of the joint positions that targets start from; see `par-agent finetune`."""
    compile: bool = False
    """Compiles the transformer's blocks with torch.compile, which needs a C++ compiler: RDT trains nearly twice as fast
    on a CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise UserError(f"method is {self.method!r}; it must be one of {', '.join(METHODS)}")

    def sizes(self, **data: object) -> MethodConfig:
        """The method's sizes, with those that follow from the ``data``.

        Raises:
            UserError: a size that follows from the data was given, or one that cannot be.
        """
        asked = parse_options(self.model)
        if settled := sorted(asked.keys() & data.keys()):
            raise UserError(
                f"--model {settled[0]}=... is not to be given: it follows from the data and the frame encoder"
            )
        return build(METHODS[self.method].Config, {**data, **asked})


@dataclass
class BaselineSetup:
    """A method and its data."""

    model: Method
    encoder: FrameEncoder
    transforms: Transforms
    prompts: dict[str, Prompt]
    train: MixedSampler
    held_out: list[WindowSampler]


def train(config: BaselineConfig) -> BaselineCheckpoint:
    """Runs or resumes training; returns the trained policy, which is also in ``config.out / "policy"``.

    Raises:
        UserError: data that does not fit, a run folder of other options or of another process, a loss that explodes or
            is not finite, a full disk.
    """
    accelerator = make_accelerator(config)
    config.folders()  # unknown ones are refused before anything is written
    accelerator.print(config.describe())
    with config.claimed() if accelerator.is_main_process else nullcontext():
        with accelerator.main_process_first():
            setup = prepare(config, accelerator.device)
        training = BaselineTraining(config, setup, accelerator)
        training.resume()
        training.run()
        return training.policy()


def prepare(config: BaselineConfig, device: torch.device) -> BaselineSetup:
    """Makes the model, and opens the data (computing latents that are missing).

    Raises:
        UserError: data or sizes that do not fit.
    """
    if config.vae is None:
        raise UserError("a baseline needs --vae FOLDER, made by `par-agent train-vae`")
    encoder = load_frame_encoder(config.vae).to(device)
    datasets = open_datasets(config.folders(), skip_corrupt=config.dataset.skip_corrupt)
    asked = config.sizes()
    indices = [EpisodeIndex(dataset, asked.chunk_length, asked.foresight) for dataset in datasets]
    camera = config.dataset.camera
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
    train, held_out = open_samplers(config, indices, encoder, config.vae, shape, model.sequence)
    prompts: dict[str, Prompt] = {}
    if model.prompted and model.sequence is not None:
        prompts = make_prompts(train.samplers, config.dataset.demos, transforms, model.sequence - model.context)
    return BaselineSetup(model, encoder, transforms, prompts, train, held_out)


class BaselineObjective(nn.Module):
    """Method and loss as one module, whose forward accelerate can distribute over processes."""

    def __init__(self, model: Method, transforms: Transforms, config: BaselineConfig) -> None:
        super().__init__()
        self.model, self.transforms, self.config = model, transforms, config
        self.text_encoder = HashTextEncoder(model.config.text_dim, model.config.text_length)

    def forward(self, windows: Windows, number: int, device: torch.device) -> PARLoss:
        """Loss of batch ``number``, whose noise and dropout follow from the number and the run's seed alone."""
        with seeded(self.config.seed * STEP_SEEDS + number, device):
            if self.config.recovery_noise:
                length = self.model.config.chunk_length
                windows = perturb_proprioception(windows, self.transforms, length, self.config.recovery_noise, None)
            inputs, targets, features = tensors(windows, self.transforms, self.text_encoder, device)
            noise = self.config.proprioception_noise * normal(inputs.proprioception.shape, device)
            inputs = dataclasses.replace(inputs, proprioception=inputs.proprioception + noise)
            loss = self.model.loss(inputs, targets, features, context_length(windows).to(device))
        return PARLoss(loss, loss, torch.zeros_like(loss))


class BaselineTraining(TrainingLoop):
    """One run."""

    config: BaselineConfig
    model: Method

    def __init__(self, config: BaselineConfig, setup: BaselineSetup, accelerator: Accelerator) -> None:
        self.setup = setup
        channels_last(setup.model.stem.patch_embed, accelerator)
        if config.compile:
            setup.model.compile_for_training()
        objective = BaselineObjective(setup.model, setup.transforms, config)
        super().__init__(config, objective, setup.train, accelerator)

    def policy(self) -> BaselineCheckpoint:
        setup = self.setup
        tensors = {name: full_tensor(value) for name, value in (self.model.state_dict() | self.average.tensors).items()}
        with torch.device("meta"):
            model = type(setup.model)(setup.model.config)
        model.load_state_dict({name: value.clone() for name, value in tensors.items()}, assign=True)
        model.eval().requires_grad_(False)
        return BaselineCheckpoint(
            self.config.method, model, setup.encoder, setup.transforms, setup.prompts, self.trained()
        )

    def measure(self, policy: SavedPolicy, monitor: Monitor) -> tuple[dict[str, float], float]:
        assert isinstance(policy, BaselineCheckpoint)
        metrics: dict[str, float] = {}
        for sampler in self.setup.held_out:
            found = measure(policy, sampler, self.accelerator.device)
            for name, value in found.items():
                metrics[name] = metrics.get(name, 0.0) + value / len(self.setup.held_out)
            dataset = sampler.index.dataset.folder.name
            metrics |= {f"{name}/{dataset}": found[name] for name in ("action_error", "shuffled_error")}
        return metrics, metrics["action_error"]


@torch.inference_mode()
def measure(policy: BaselineCheckpoint, sampler: WindowSampler, device: torch.device) -> dict[str, float]:
    """Errors of the deterministic policy on one dataset's held-out episodes, of the chunks that it would execute."""
    windows = held_out_windows(sampler, max(2, MEASURED // sampler.window))
    counted = policy.model.counted(context_length(windows))
    windows = dataclasses.replace(windows, action_weights=windows.action_weights * counted[..., None])
    other = dataclasses.replace(windows, latents=windows.latents.roll(1, 0))
    chunks, blind = (predict(policy, shown, device) for shown in (windows, other))
    return action_metrics(chunks, blind, windows, policy.transforms)


def predict(policy: BaselineCheckpoint, windows: Windows, device: torch.device) -> Tensor:
    """Deterministic chunks (B, N, L, A) in the controller's units, one from every step."""
    inputs, _, features = tensors(windows, policy.transforms, policy.text_encoder, device)
    z = policy.model.conditions(policy.model.history(inputs, features, context_length(windows).to(device)))
    drawn = policy.model.draw(z.flatten(0, 1), None).unflatten(0, z.shape[:2]).cpu()
    return policy.transforms.denormalise_actions(
        drawn[:, :, : policy.model.config.chunk_length], windows.proprioception
    )


def context_length(windows: Windows) -> Tensor:
    """(B, N) steps of the same episode so far, 0 in padding; see :class:`par_agent.baselines.common.History`."""
    return windows.context_length * (windows.action_weights[..., 0] > 0)


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


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws of torch's own generators inside follow from ``seed``; outside nothing changes."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
