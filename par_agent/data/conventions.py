"""From rendered datasets to the conventions of a policy: which camera and crop, and the statistics that normalise.

Datasets that differ where they have to be alike are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from par_agent.data.episodes import RenderedDataset
from par_agent.data.index import EpisodeIndex
from par_agent.data.statistics import RunningStatistics
from par_agent.errors import UserError
from par_agent.policy.transforms import Cameras, Extra, Transforms, camera_names, pixels
from par_agent.tasks import UNKNOWN_CONTROLLER, find_task

STD_FLOOR = 1e-3
"""Smallest standard deviation, radians, that is divided by."""


def joint_targets(control_mode: str, action_size: int, joint_count: int) -> tuple[bool, ...]:
    """(A,) which numbers of an action are target positions, in radians, of the joint of the same index.

    With ``pd_joint_pos`` as many numbers as joints are one target each (SO100: 6 of 6 joints); fewer numbers end with
    the gripper, one command in [-1, 1] for all of its fingers (Panda: 8 numbers, 9 joints). With other controllers
    there are none: changes of joints (``pd_joint_delta_pos``), velocities (``pd_joint_vel``) and the hand's movements
    (``pd_ee_delta_pose``) are not relative to where the joints are.
    """
    if control_mode != "pd_joint_pos" or action_size > joint_count:
        return (False,) * action_size
    gripper = action_size < joint_count
    return (True,) * (action_size - gripper) + (False,) * gripper


def extra_observations(datasets: Sequence[RenderedDataset]) -> Extra:
    """All extra observations that some of the datasets have, in the order of their names."""
    asked = {str(dataset.folder): sorted(dataset.spec.extra) for dataset in datasets}
    found = {pair for dataset in datasets for pair in dataset.extra.items()}
    if len(set(map(tuple, asked.values()))) > 1 or len({name for name, _ in found}) < len(found):
        details = "; ".join(f"{folder}: {' '.join(names) or 'none'}" for folder, names in asked.items())
        raise UserError(f"the datasets differ in extra observations ({details}); render them with the same --extra")
    return tuple(sorted(found))


def image_size(datasets: Sequence[RenderedDataset], cameras: Cameras) -> tuple[int, int] | None:
    """Height and width of a whole image, before it was cropped, the same for all cameras; None where no dataset or task
    gives them."""
    sizes = {}
    for dataset, camera in itertools.product(datasets, camera_names(cameras)):
        task = find_task(dataset.spec.env_id)
        size = dataset.image_size(camera) or (task.image_size if task is not None and camera == task.camera else None)
        if size is not None:
            sizes[size] = f"{dataset.folder}: {pixels(size)}" + f" of {camera}" * (not isinstance(cameras, str))
    if len(sizes) > 1:
        names, details = ", ".join(camera_names(cameras)), "; ".join(sizes.values())
        raise UserError(f"images of {names} differ in size ({details}); train on datasets rendered alike")
    return next(iter(sizes), None)


def fit_transforms(
    indices: list[EpisodeIndex], camera: Cameras, image_size: tuple[int, int] | None, demos: int | None = None
) -> Transforms:
    """Conventions and statistics of datasets that share camera, crop, size and robot.

    The statistics are those of the first ``demos`` training episodes of each dataset (:meth:`EpisodeIndex.split`);
    None: of all episodes, the held-out ones included. ``image_size`` is the height and width of each camera's whole
    image.
    """
    specs = {(index.dataset.spec.crop, index.dataset.spec.size) for index in indices}
    robots = {(index.control_mode, index.action_size, index.joint_count) for index in indices}
    if len(specs) > 1 or len(robots) > 1:
        names = ", ".join(str(index.dataset.folder) for index in indices)
        raise UserError(
            f"{names} differ in crop, size, control mode, actions or joints; train on datasets rendered alike"
        )
    (crop, size), robot = specs.pop(), robots.pop()
    positions, actions = RunningStatistics(), RunningStatistics()
    relative = joint_targets(*robot)
    joints = np.flatnonzero(relative)
    for index in indices:
        rows = index.rows(list(range(len(index.dataset))) if demos is None else index.split(demos)[0])
        columns = {name: values[rows] for name, values in index.columns.items()}
        complete = columns["action_weights"].all(1)
        chunks = columns["target_actions"][complete]
        chunks[..., joints] -= columns["proprioception"][complete][:, None, joints]
        positions.add(columns["proprioception"])
        actions.add(chunks)
    if not actions.count:
        raise UserError(f"no episode of {indices[0].dataset.folder} is as long as one chunk; train on longer episodes")
    proprioception, chunk = positions.result(), actions.result()
    return Transforms(
        camera=camera,
        image_size=image_size,
        crop=crop,
        size=size,
        relative=relative,
        proprioception_mean=tuple(proprioception["mean"]),
        proprioception_std=tuple(np.maximum(proprioception["std"], STD_FLOOR).tolist()),
        action_mean=tuple(map(tuple, chunk["mean"])),
        action_std=tuple(map(tuple, np.maximum(chunk["std"], STD_FLOOR).tolist())),
        extra=indices[0].extra,
        control_mode=robot[0],
    )


def check_frames(indices: Sequence[EpisodeIndex], transforms: Transforms, checkpoint: str) -> None:
    """Refuses datasets of other frames or extra observations than a checkpoint, named for the message, knows."""
    known = transforms.image_size
    for index, camera in itertools.product(indices, transforms.cameras):
        found = index.dataset.image_size(camera)
        if None not in (found, known) and found != known:
            raise UserError(
                f"the frames in {index.dataset.folder} were cut from {pixels(found)} images of {camera}; "
                f"{checkpoint} was trained on {pixels(known)} images, where this crop covers another region: render it "
                "again from a camera of that size"
            )
        if lacking := {name for name, _ in transforms.extra} - set(index.dataset.spec.extra):
            raise UserError(
                f"{index.dataset.folder} was rendered without {', '.join(sorted(lacking))}, which {checkpoint} reads: "
                f"render it again with --extra {' '.join(name for name, _ in transforms.extra)}"
            )
        for name in ("crop", "size"):
            wanted, found = getattr(transforms, name), getattr(index.dataset.spec, name)
            if found != wanted:
                raise UserError(
                    f"{index.dataset.folder} was rendered with {name} {found}; {checkpoint} was trained with {wanted}: "
                    f"render it again with --{name} {' '.join(map(str, wanted or ()))}"
                )


def check_conventions(indices: Sequence[EpisodeIndex], transforms: Transforms, checkpoint: str) -> None:
    """Refuses datasets of another robot, controller or other frames than a checkpoint, named for the message, knows."""
    check_frames(indices, transforms, checkpoint)
    for index in indices:
        folder = index.dataset.folder
        for name, here, there in (
            ("numbers per action", index.action_size, transforms.action_size),
            ("joint positions", index.joint_count, transforms.joint_count),
        ):
            if here != there:
                raise UserError(
                    f"{folder} has {here} {name}, {checkpoint} was trained with {there}: another robot; give "
                    "--new-robot to start its action parts anew, or train from scratch"
                )
        modes = {index.control_mode, transforms.control_mode} - {UNKNOWN_CONTROLLER}
        targets = joint_targets(index.control_mode, index.action_size, index.joint_count)
        if len(modes) > 1 or targets != transforms.relative:
            raise UserError(
                f"the actions of {folder} are {index.control_mode}; {checkpoint} was trained with "
                f"{transforms.control_mode}: give --new-robot to start its action parts anew, or train from scratch"
            )
