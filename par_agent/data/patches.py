"""Random patches of rendered frames, which a frame VAE is trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from par_agent.data.episodes import ADVICE, IMAGES, RenderedDataset, damaged_episode, open_datasets
from par_agent.data.index import HELD_OUT
from par_agent.data.prefetch import prefetch
from par_agent.errors import UserError
from par_agent.policy.transforms import Cameras, camera_names
from par_agent.utils.hdf5 import HDF5Reader


class FrameSampler:
    """Random square patches of random frames of one camera or several, fixed by seed and step."""

    def __init__(self, paths: list[Path], camera: Cameras, seed: int) -> None:
        self.paths, self.cameras, self.seed = paths, camera_names(camera), seed

    def patches(self, step: int, count: int, size: int | None) -> Tensor:
        """(count, size, size, 3) uint8 patches; whole frames if ``size`` is None."""
        generator = np.random.default_rng([self.seed, step])
        images: list[np.ndarray] = []
        for number in generator.integers(len(self.paths), size=count):
            chosen = 0 if len(self.cameras) == 1 else int(generator.integers(len(self.cameras)))
            name = f"frames/{self.cameras[chosen]}"
            with HDF5Reader(self.paths[number], ADVICE) as file:
                frames, *extents, _ = file.check(name, np.uint8, IMAGES)
                if not frames or min(extents) < (size or 1):
                    raise file.damaged(f"{name} has {frames} frames of {extents[0]}x{extents[1]} pixels")
                row = np.array([generator.integers(frames)])
                image = file.array(name, np.uint8, IMAGES, rows=row)[0]
            if size is not None:
                top, left = (int(generator.integers(extent - size + 1)) for extent in image.shape[:2])
                image = image[top : top + size, left : left + size]
            elif images and image.shape != images[0].shape:
                raise damaged_episode(self.paths[number], "its frames have another size than those of others")
            images.append(image)
        return torch.from_numpy(np.stack(images))

    def batches(self, start: int, stop: int, count: int, patch: int) -> AbstractContextManager[Iterator[Tensor]]:
        """The :meth:`patches` of steps ``start`` to ``stop - 1``, made ahead in a background thread."""
        return prefetch(lambda step: self.patches(step, count, patch), start, stop)


def open_frames(folders: Sequence[Path], camera: Cameras, patch: int, stride: int) -> tuple[list[Path], list[Path]]:
    """Compares one episode of each dataset with the patches to take, before hours of training.

    Args:
        folders: rendered datasets.
        camera: the camera, or cameras, whose frames are used.
        patch: side of the patches, pixels.
        stride: pixels of a frame for one pixel of its latent, along each side.

    Returns:
        The files of :func:`split_paths`.
    """
    datasets = open_datasets(folders)
    if not datasets:
        raise UserError("no rendered dataset given; name at least one with --data")
    sizes = {}
    for dataset, name in itertools.product(datasets, camera_names(camera)):
        dataset.check_camera(name)
        where = f"{dataset.folder}" if isinstance(camera, str) else f"{name} of {dataset.folder}"
        sizes[where] = dataset.read(dataset.paths[0]).frames[name].shape[1:3]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{height}x{width} in {where}" for where, (height, width) in sizes.items())
        raise UserError(f"the datasets' frames differ in size ({listed}); render them with one crop and size")
    height, width = next(iter(sizes.values()))
    if height % stride or width % stride:
        raise UserError(
            f"frames of {height}x{width} pixels do not divide by the VAE's stride, {stride}; render them with another "
            "crop or size"
        )
    if patch > min(height, width):
        raise UserError(f"patch is {patch}; patches do not fit frames of {height}x{width} pixels")
    return split_paths(datasets)


def split_paths(datasets: list[RenderedDataset]) -> tuple[list[Path], list[Path]]:
    """Episode files for training and for validation, one in :data:`HELD_OUT` of each dataset."""
    paths = [path for dataset in datasets for path in dataset.paths]
    held = [path for dataset in datasets for path in dataset.paths[::HELD_OUT]]
    return [path for path in paths if path not in set(held)] or paths, held
