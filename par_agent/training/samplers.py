"""Opens the batches of a run and the windows of its held-out episodes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from par_agent.data.augmentation import Augmentation
from par_agent.data.index import EpisodeIndex
from par_agent.data.latent_cache import CachedLatents
from par_agent.data.latents import LatentSource, LatentSpec
from par_agent.data.windows import MixedSampler, WindowSampler
from par_agent.errors import UserError, user_errors
from par_agent.modeling.vae.frame_encoder import FrameEncoder, describe_frame_encoder
from par_agent.modeling.weights import hash_weights
from par_agent.training.config import TrainingConfig


def open_samplers(
    config: TrainingConfig,
    indices: Sequence[EpisodeIndex],
    encoder: FrameEncoder,
    shape: tuple[int, int, int],
    window: int | None = None,
) -> tuple[MixedSampler, list[WindowSampler]]:
    """The training batches, and the windows of each dataset's held-out episodes; computes latents that are missing.

    Latent frames are of ``shape``, channels, height and width. ``window`` is the number of steps a window, in place of
    the options'; the longer it is, the fewer windows make a batch.

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
    digest, about = hash_weights(encoder), describe_frame_encoder(encoder)
    spec = LatentSpec(config.camera, digest, shape, config.dataset.variants, augmentation, about)
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


def _latents(index: EpisodeIndex, spec: LatentSpec, encoder: FrameEncoder, cache: bool) -> LatentSource:
    """Where windows of a dataset get their latents from."""

    def encode(frames: Tensor) -> Tensor:
        with user_errors():
            return encoder.encode(frames.to(next(encoder.parameters()).device))

    return CachedLatents(index, spec, encode) if cache else LatentSource(index, spec, encode)
