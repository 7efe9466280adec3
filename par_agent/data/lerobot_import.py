"""Reads a LeRobotDataset into a rendered dataset, whatever tool wrote it.

The K rows of an episode become K - 1 control steps: what the last row's action led to was not observed. Frames are
taken every ``stride`` rows, and at the end. What :mod:`par_agent.data.lerobot_export` wrote is read back as it was.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from par_agent.data import lerobot
from par_agent.data.episodes import Episode, frame_steps, image_size_attributes, write_episode
from par_agent.data.lerobot_frames import CameraFrames
from par_agent.data.lerobot_plan import ImportPlan, read_rows
from par_agent.data.rendering import episode_path, has_episodes, summarise
from par_agent.errors import UserError
from par_agent.policy.transforms import crop_and_resize
from par_agent.utils.files import claimed_folder, only_process, write_json, writing
from par_agent.utils.interrupts import deferred_interrupts


def import_lerobot(plan: ImportPlan, out: Path) -> int:
    """Writes the planned episodes into a dataset folder; the same call again goes on where it was stopped.

    Returns:
        How many episodes the folder holds.

    Raises:
        UserError: damaged images or videos, unless such episodes are left out; a folder of other settings; a full disk.
        Interrupted: the process was told to end; whole episodes are kept.
    """
    source, request = plan.source, plan.request
    names = ("image_key", "state_key", "action_key", "instruction")
    settings = {name: getattr(request, name) for name in names} | {"control_mode": plan.control_mode}

    def begun() -> bool:
        return has_episodes(out)

    with (
        deferred_interrupts() as interrupts,
        writing(out),
        only_process(out / ".lock", f"writes into {out}", within=out),
        claimed_folder(out / "spec.json", plan.spec.to_json(), begun=begun),
        claimed_folder(out / "import.json", settings, begun=begun),
        contextlib.ExitStack() as stack,
    ):
        frames = {
            name: stack.enter_context(contextlib.closing(CameraFrames(source, feature)))
            for name, feature in plan.keys.cameras.items()
        }
        for place, number in enumerate(tqdm(plan.episodes, desc=f"import {out.name}", unit="episode")):
            interrupts.check()
            path = episode_path(out, place)
            if path.exists():
                continue
            try:
                write_episode(path, _episode(plan, number, frames))
            except UserError as error:
                if not request.skip_corrupt:
                    raise UserError(f"{error}; or leave such episodes out: --skip-corrupt") from None
                tqdm.write(f"left out: {error}")
        if not begun():
            raise UserError(f"no episode of {source.folder} is left: none of their images can be read")
        summary = summarise(out)
        write_json(out / "dataset.json", summary)
    return int(summary["num_episodes"])


def _episode(plan: ImportPlan, number: int, frames: dict[str, CameraFrames]) -> Episode:
    """One episode as it is stored."""
    source, spec = plan.source, plan.spec
    images = tuple(feature for feature in plan.keys.cameras.values() if feature.dtype == "image")
    rows = read_rows(source, plan.keys, plan.request, number, images)
    steps = frame_steps(len(rows.state) - 1, spec.stride, spec.phase)
    if lerobot.IS_NEW in rows.table:
        told = np.flatnonzero(rows.table.values(lerobot.IS_NEW, bool))
        if not np.array_equal(told, steps):
            raise rows.table.damaged(f"it has frames at rows {told.tolist()}; {lerobot.OURS} says {steps.tolist()}")
    taken = {camera: reader.take(number, rows.table, steps) for camera, reader in frames.items()}
    sizes = image_size_attributes(taken)
    if source.ours is None:
        taken = {
            camera: np.stack([crop_and_resize(image, spec.crop, spec.size) for image in images])
            for camera, images in taken.items()
        }
    attributes: dict[str, Any] = {
        "env_id": spec.env_id,
        "seed": number,
        "source": source.folder.name,
        "source_episode": number,
        "control_mode": plan.control_mode,
        **(sizes if source.ours is None else dict(source.ours["episodes"][number])),
        "instruction": rows.instruction,
    }
    actions = None if rows.action is None else rows.action[:-1]
    return Episode(taken, steps, rows.state, actions, attributes, rows.extra)
