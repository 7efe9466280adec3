"""Trains a PAR policy on rendered demonstrations: from scratch or from a checkpoint, one or several tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from par_agent.checkpoint import Checkpoint, make_text_encoder
from par_agent.data.augmentation import Augmentation
from par_agent.data.conventions import check_conventions, fit_transforms
from par_agent.data.episodes import RenderedDataset
from par_agent.data.index import EpisodeIndex
from par_agent.data.latents import CachedLatents, EncodedFrames, LatentSpec, cached_latents, file_hash
from par_agent.data.prefetch import prefetch
from par_agent.data.windows import MixedSampler, Windows, WindowSampler
from par_agent.errors import UserError
from par_agent.files import read_json, write_json
from par_agent.modeling.frame_encoder import FrameEncoder, load_frame_encoder
from par_agent.modeling.par import PARLoss, PARModel
from par_agent.modeling.presets import preset
from par_agent.modeling.text_encoder import TextEncoder
from par_agent.modeling.weights import find_weights
from par_agent.tasks import TASKS
from par_agent.training.batches import tensors
from par_agent.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from par_agent.training.optimisation import EMA, clip_and_step, learning_rate, make_optimizer, set_learning_rate
from par_agent.training.validation import validate
from par_agent.transforms import Transforms

MOST_STEPS = 48
"""Windows are placed at random rollout steps below this, so that long rollouts are nothing new."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Trains a policy on rendered demonstrations; run the same command again to resume."""

    out: Path
    """Folder of the run; the trained policy ends up in its `policy` folder."""
    task: tuple[str, ...] = ()
    """Tasks, short for --data DATA_ROOT/TASK of each."""
    data: tuple[Path, ...] = ()
    """Rendered datasets with actions."""
    data_root: Path = Path("data/rendered")
    """Folder that --task looks in."""
    weights: tuple[float, ...] = ()
    """Share of each dataset in a batch; equal if not given."""
    init: Path | None = None
    """Policy checkpoint to start from (its transforms and frame encoder are kept); from scratch if not given."""
    vae: Path | None = None
    """Frozen frame VAE made by `par-agent train-vae`; needed from scratch."""
    preset: str = "par-mini"
    """Sizes of a model that starts from scratch."""
    camera: str = "render_camera"
    """Camera that the policy sees through."""
    steps: int = 3000
    """Optimiser steps."""
    batch_size: int = 32
    """Windows a step."""
    window: int = 4
    """Physical tokens per window; a large number for whole episodes, of which short ones then share a window."""
    single_step: float = 0.5
    """Share of steps that see no past at all; the others see a random number of past steps of their window."""
    past_action_dropout: float = 0.5
    """Share of past chunks that begin-of-action takes the place of."""
    proprioception_noise: float = 0.05
    """Noise on joint positions, in standard deviations of the data."""
    frame_fraction: float = 0.25
    """Share of steps that enter the frame loss; 0 leaves it out."""
    cache: bool = True
    """Keeps the frames' latents on disk, in `variants` copies; otherwise frames are encoded when they are needed."""
    variants: int = 4
    """Augmented copies of every frame in the cache, the unchanged one included; without cache every window is one."""
    shift: int = 6
    """Largest shift of a copy, pixels; the same for all frames of an episode."""
    color_jitter: float = 0.0
    """Largest relative change of a copy's brightness, contrast and saturation, below 1."""
    skip_corrupt: bool = False
    """Reads all episodes first and trains without the damaged ones; otherwise the first damaged one is an error."""
    new_robot: bool = False
    """With --init: fits action parts and statistics anew, for another robot, camera or crop than the checkpoint's."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.05
    """Decay of matrices."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.998
    """Decay of the averaged weights, which are what is saved as the policy."""
    validate_every: int = 250
    """Steps between measurements on held-out episodes."""
    checkpoint_minutes: float = 3.0
    """Minutes between checkpoints."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass instead of keeping them: less memory, a third more work."""
    seed: int = 0
    """Fixes initial weights, order and noise."""
    device: str = "cpu"
    """cpu (float32) or cuda (bfloat16)."""

    def folders(self) -> list[Path]:
        """The datasets to train on.

        Raises:
            UserError: none were given.
        """
        for name in self.task:
            if name not in TASKS and not (self.data_root / name).is_dir():
                raise UserError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}, or give --data FOLDER")
        folders = [self.data_root / name for name in self.task] + list(self.data)
        if not folders:
            raise UserError("nothing to train on; give --task NAME or --data FOLDER")
        return folders


@dataclass
class Setup:
    """What a run trains and what it trains on."""

    model: PARModel
    encoder: FrameEncoder
    transforms: Transforms
    text_encoder: TextEncoder
    train: MixedSampler
    held_out: list[WindowSampler]


def finetune(config: FinetuneConfig) -> Checkpoint:
    """Runs or resumes training; returns the trained policy's checkpoint, which is also in ``config.out / "policy"``.

    Raises:
        UserError: data that does not fit the model, a run folder of another configuration, a diverging loss, a full
            disk.
    """
    _claim_folder(config)
    torch.manual_seed(config.seed)
    setup = prepare(config)
    device = torch.device(config.device)
    model = setup.model.to(device)
    model.nova.video_encoder.patch_embed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    ema = EMA(model, config.ema)
    optimizer = make_optimizer(model, config.learning_rate, config.weight_decay)
    modules = {"model": model, "ema": ema.module}
    start = 0
    if (found := latest_checkpoint(config.out / "checkpoints")) is not None:
        start = load_checkpoint(found, modules, optimizer)["step"]
        print(f"resumed from {found}")
    _train(config, setup, ema, optimizer, start)
    checkpoint = _policy(config, setup, ema, config.steps)
    checkpoint.save(config.out / "policy")
    return checkpoint


def prepare(config: FinetuneConfig) -> Setup:
    """Loads or makes the model, and opens the data (computing latents that are missing).

    Raises:
        UserError: as for :func:`finetune`.
    """
    datasets = [RenderedDataset(folder, skip_corrupt=config.skip_corrupt) for folder in config.folders()]
    if config.init is not None:
        loaded = Checkpoint.load(config.init)
        model, encoder, text_encoder = loaded.model.train(), loaded.encoder, loaded.text_encoder
        encoder_folder = config.init / "frame_encoder"
        indices = [EpisodeIndex(dataset, model.config.action.chunk_length) for dataset in datasets]
        if loaded.transforms is None or config.new_robot:  # None: imported video weights, nothing trained yet
            transforms = fit_transforms(indices, config.camera, _image_size(datasets[0], config.camera))
            model = model.for_robot(transforms.action_size, transforms.proprioception_size)
        else:
            transforms = loaded.transforms
            _check_camera(transforms, config)
            check_conventions(indices, transforms, f"the checkpoint {config.init}")
    else:
        if config.vae is None:
            raise UserError("training from scratch needs --vae FOLDER, made by `par-agent train-vae`")
        encoder_folder, encoder = config.vae, load_frame_encoder(config.vae)
        sizes = preset(config.preset)
        indices = [EpisodeIndex(dataset, sizes.action.chunk_length) for dataset in datasets]
        transforms = fit_transforms(indices, config.camera, _image_size(datasets[0], config.camera))
        model = PARModel(sizes.for_robot(transforms.action_size, transforms.proprioception_size))
        text_encoder = make_text_encoder(model.config)
    for instruction in sorted({text for index in indices for text in index.instructions}):
        text_encoder.encode(instruction)  # an instruction without stored features is refused before the long work
    shape = (model.config.nova.latent_channels, *model.config.nova.latent_size)
    digest = file_hash(find_weights(encoder_folder))
    augmentation = Augmentation(config.shift, config.color_jitter)
    spec = LatentSpec(transforms.camera, digest, shape, config.variants, augmentation)
    encoder = encoder.to(config.device)

    def encode(frames: Tensor) -> Tensor:
        return encoder.encode(frames.to(config.device))

    latents = [
        CachedLatents(cached_latents(index, spec, encode)) if config.cache else EncodedFrames(index, spec, encode)
        for index in indices
    ]
    splits = [index.split() for index in indices]
    train = [
        WindowSampler(index, source, split[0], config.window, config.seed + number)
        for number, (index, source, split) in enumerate(zip(indices, latents, splits, strict=True))
    ]
    held = [
        WindowSampler(index, source, split[1], config.window, config.seed)
        for index, source, split in zip(indices, latents, splits, strict=True)
    ]
    mixed = MixedSampler(train, list(config.weights) or [1.0] * len(train), config.batch_size)
    return Setup(model, encoder, transforms, text_encoder, mixed, held)


def batch_loss(
    model: PARModel, setup: Setup, config: FinetuneConfig, windows: Windows, generator: torch.Generator
) -> PARLoss:
    """Loss of one batch, with the noise and the dropout of training; ``generator`` decides all randomness."""
    device = generator.device
    inputs, targets, features = tensors(windows, setup.transforms, setup.text_encoder, device)
    shape = windows.steps.shape
    noise = torch.randn(inputs.proprioception.shape, generator=generator, device=device)
    dropped = torch.rand(shape, generator=generator, device=device) < config.past_action_dropout
    alone = torch.rand(shape, generator=generator, device=device) < config.single_step
    context = torch.randint(1, config.window + 1, shape, generator=generator, device=device)
    offset = torch.randint(0, MOST_STEPS, (shape[0], 1), generator=generator, device=device)
    inputs = dataclasses.replace(
        inputs,
        proprioception=inputs.proprioception + config.proprioception_noise * noise,
        actions_known=inputs.actions_known & ~dropped,
    )
    if config.frame_fraction == 0:
        targets = dataclasses.replace(targets, latents=None)
    return model.loss(
        features,
        inputs,
        offset + torch.arange(shape[1], device=device),
        targets,
        context=torch.where(alone, 1, context).minimum(windows.visible.to(device)),
        frame_fraction=config.frame_fraction,
        generator=generator,
    )


def _train(config: FinetuneConfig, setup: Setup, ema: EMA, optimizer: torch.optim.Optimizer, start: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    model, device = setup.model, torch.device(config.device)
    checkpoints = config.out / "checkpoints"
    modules = {"model": model, "ema": ema.module}
    half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    saved, waited, shown = time.monotonic(), 0.0, {"data_wait": "0%"}
    began = time.monotonic()
    batches = prefetch(setup.train.batch, start, config.steps)
    with (
        SummaryWriter(str(config.out / "tensorboard"), purge_step=start) as writer,
        tqdm(total=config.steps, initial=start, desc="finetune", unit="step", smoothing=0.05) as progress,
    ):
        for step in range(start, config.steps):
            before = time.monotonic()
            windows = next(batches)
            waited += time.monotonic() - before
            rate = learning_rate(step, config.steps, config.warmup, config.learning_rate)
            set_learning_rate(optimizer, rate)
            generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + step)
            with half:
                loss = batch_loss(model, setup, config, windows, generator)
            loss.total.backward()
            norm = clip_and_step(
                model, optimizer, config.clip, f"at step {step}; episodes {', '.join(windows.episodes)}"
            )
            ema.update(model, step)
            progress.update(1)
            if step % 10 == 0:
                scalars = {"action": loss.action.item(), "frame": loss.frame.item()}
                shown |= {name: f"{value:.3f}" for name, value in scalars.items()}
                shown["data_wait"] = f"{waited / (time.monotonic() - began):.0%}"
                progress.set_postfix(shown)
                for name, value in {**scalars, "gradient_norm": norm, "learning_rate": rate}.items():
                    writer.add_scalar(f"train/{name}", value, step)
            done = step + 1
            if done % config.validate_every == 0 or done == config.steps:
                metrics = validate(ema.module, setup.held_out, setup.transforms, setup.text_encoder, device)
                for name, value in metrics.items():
                    writer.add_scalar(f"validation/{name}", value, done)
                shown["err"] = f"{metrics['action_error']:.4f}rad"
                if "gripper_accuracy" in metrics:
                    shown["grip"] = f"{metrics['gripper_accuracy']:.1%}"
                progress.write(f"step {done}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
            if time.monotonic() - saved > 60 * config.checkpoint_minutes or done == config.steps:
                save_checkpoint(checkpoints, done, modules, optimizer, {})
                _policy(config, setup, ema, done).save(config.out / "policy")
                saved = time.monotonic()


def _policy(config: FinetuneConfig, setup: Setup, ema: EMA, step: int) -> Checkpoint:
    trained = {"steps": step, "options": _plain(config)}
    assert isinstance(ema.module, PARModel)
    return Checkpoint(ema.module, setup.encoder, setup.transforms, setup.text_encoder, trained=trained)


def _plain(config: FinetuneConfig) -> dict[str, Any]:
    content = dataclasses.asdict(config)
    return {
        name: [str(v) if isinstance(v, Path) else v for v in value]
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in content.items()
    }


def _claim_folder(config: FinetuneConfig) -> None:
    """Writes the configuration, or checks that the folder was begun with the same one."""
    path, wanted = config.out / "finetune.json", _plain(config)
    free = ("out", "checkpoint_minutes", "validate_every", "gradient_checkpointing", "skip_corrupt", "device")
    if path.exists():
        found = _plain(FinetuneConfig(config.out)) | read_json(
            path
        )  # options that are newer than the run: as they were
        differing = [key for key in wanted if key not in free and found.get(key) != wanted[key]]
        if differing:
            details = "; ".join(f"{key}: {found.get(key)} there, {wanted[key]} asked for" for key in differing)
            raise UserError(f"{config.out} was begun with other settings ({details}); choose another --out")
    else:
        write_json(path, wanted)


def _check_camera(transforms: Transforms, config: FinetuneConfig) -> None:
    """Raises a UserError where the policy is to see through another camera than the checkpoint's."""
    if config.camera != transforms.camera:
        raise UserError(f"--camera {config.camera}: the checkpoint {config.init} sees through {transforms.camera}")


def _image_size(dataset: RenderedDataset, camera: str) -> tuple[int, int] | None:
    """Full image size of a camera where the task registry knows it."""
    for spec in TASKS.values():
        if spec.env_id == dataset.spec["env_id"] and camera == spec.camera:
            return spec.image_size
    return None
