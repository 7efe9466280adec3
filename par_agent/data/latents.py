"""Frozen-VAE latents of rendered frames: kept on disk (:mod:`par_agent.data.latent_cache`), or encoded when needed.

Variant 0 holds the frames as they are. In every other variant each episode is augmented at random, all of its frames
alike. Without the cache every window gets an augmentation of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from par_agent.data.augmentation import Augmentation, Change
from par_agent.data.episodes import RenderedDataset, read_frames
from par_agent.data.index import EpisodeIndex
from par_agent.errors import UserError
from par_agent.policy.transforms import Cameras, beside, camera_names
from par_agent.utils.checked import Checked, Count, MayBeEmpty
from par_agent.utils.hashes import hash_bytes

Encoder = Callable[[Tensor], Tensor]
"""Frames (B, H, W, 3) uint8 to scaled latents (B, C, h, w)."""

ENCODE_BATCH = 64
"""Frames that are encoded together."""


@dataclass(frozen=True)
class LatentSpec(Checked):
    """What decides the latents of a dataset."""

    camera: Cameras
    """Camera of the frames, or several, whose frames stand side by side."""
    encoder_hash: str
    """Hash of the frozen encoder's weights."""
    shape: tuple[int, int, int]
    """Channels, height and width of one latent frame."""
    variants: Count = 4
    """Copies of every frame in the cache, the first unchanged."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How far the others are changed."""
    encoder_config: Annotated[str, MayBeEmpty] = ""
    """The encoder's configuration."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return camera_names(self.camera)

    def frames(self, by_camera: Mapping[str, np.ndarray], change: Change) -> np.ndarray:
        """The cameras' frames (n, H, W, 3) uint8, each changed alike, side by side: (n, H, K W, 3)."""
        return beside([change(by_camera[camera]) for camera in self.cameras], self.cameras)

    def name(self, dataset: RenderedDataset) -> str:
        """File name of the cache without its suffix."""
        name = f"{'+'.join(self.cameras)}-{self.encoder_hash}-{self.variants}x{self.augmentation.shift}"
        if self.augmentation.color_jitter:
            name += f"-color{self.augmentation.color_jitter:g}"
        if dataset.skipped:
            names = " ".join(path.name for path in dataset.skipped)
            name += f"-without-{hash_bytes(names.encode(), 8)}"
        return name


class LatentSource:
    """Where training windows get their latents from: here frames are read, changed and encoded when they are needed.

    A dataset without one of the cameras is refused.
    """

    def __init__(self, index: EpisodeIndex, spec: LatentSpec, encode: Encoder) -> None:
        for camera in spec.cameras:
            index.dataset.check_camera(camera)
        self._index, self._spec, self._encode = index, spec, encode

    def prepare(self) -> None:
        """Computes what is missing on disk; call it before the first :meth:`read`."""

    def read(self, rows: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
        """What is stored of frames ``rows`` (n,) int64, ascending, of one episode: an array with leading dimension n.

        All are augmented alike, as ``generator`` draws it; not at all if it is None.
        """
        path, first = self._index.file_of(int(rows[0]))
        change = Change() if generator is None else self._spec.augmentation.draw(generator)
        frames = {camera: read_frames(path, camera, rows - first) for camera in self._spec.cameras}
        return self._spec.frames(frames, change)

    def latents(self, stored: np.ndarray) -> Tensor:
        """Scaled latents (n, C, h, w) float32 of what :meth:`read` gave, of any number of episodes."""
        return encode_frames(stored, self._spec, self._encode).float()


def changes(seed: int, spec: LatentSpec) -> list[Change]:
    """The change in every variant of an episode with this environment seed; variant 0 is unchanged."""
    augmentation = spec.augmentation
    moves = np.random.default_rng([seed, augmentation.shift])
    shifts = moves.integers(-augmentation.shift, augmentation.shift + 1, (spec.variants, 2)).tolist()
    colors = np.random.default_rng([seed, augmentation.shift, 1])
    factors = colors.uniform(1 - augmentation.color_jitter, 1 + augmentation.color_jitter, (spec.variants, 3)).tolist()
    drawn = [Change((s[0], s[1]), (f[0], f[1], f[2])) for s, f in zip(shifts, factors, strict=True)]
    return [Change(), *drawn[1:]]


def encode_frames(frames: np.ndarray, spec: LatentSpec, encode: Encoder) -> Tensor:
    """Latents (n, C, h, w), on the CPU, of frames (n, H, W, 3) uint8; other sizes than the model reads are refused."""
    parts = torch.from_numpy(np.ascontiguousarray(frames)).split(ENCODE_BATCH)
    latents = torch.cat([encode(part).cpu() for part in parts])
    if tuple(latents.shape[1:]) != spec.shape:
        raise UserError(
            f"frames of {frames.shape[1]}x{frames.shape[2]} pixels give latents {tuple(latents.shape[1:])}; the model "
            f"reads {spec.shape}: render the dataset with another crop or size"
        )
    return latents
