"""Small rendered datasets of made-up pictures and motions, in the format of `par-agent render`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from par_agent.cli.render import summarise
from par_agent.data.episodes import Episode, episode_path, frame_steps, image_size_attributes, write_episode
from par_agent.data.render_spec import RenderSpec
from par_agent.utils.files import write_json


def made_up_episode(
    number: int, spec: RenderSpec, size: tuple[int, int], num_steps: int, image_size: tuple[int, int] | None = None
) -> Episode:
    """A square that moves over a coloured background; joint positions and actions are a random walk."""
    generator = np.random.default_rng(number)
    steps = frame_steps(num_steps, spec.stride, spec.phase)
    frames = np.empty((len(steps), *size, 3), np.uint8)
    frames[:] = generator.integers(0, 256, 3)
    for image, step in zip(frames, steps, strict=True):
        left = int(step) % (size[1] - 4)
        image[2:6, left : left + 4] = (255, 0, number)
    walk = generator.normal(0, 0.1, (num_steps + 1, 9)).cumsum(0).astype(np.float32)
    actions = None if spec.is_random else walk[1:, :8]
    attributes = {
        "instruction": spec.instruction,
        "env_id": spec.env_id,
        "seed": number,
        "source": spec.source,
        "source_episode": number,
        "control_mode": "pd_joint_pos",
    }
    if image_size is not None:
        attributes |= image_size_attributes(dict.fromkeys(spec.cameras, np.empty((*image_size, 3))))
    extra = dict.fromkeys(spec.extra, walk[:, :3] + 1)
    return Episode(dict.fromkeys(spec.cameras, frames), steps, walk, actions, attributes, extra)


def write_dataset(
    folder: Path,
    episodes: int = 3,
    size: tuple[int, int] = (16, 24),
    image_size: tuple[int, int] | None = None,
    **fields,
) -> RenderSpec:
    """Writes a finished dataset of episodes of 10, 11, … control steps; `fields` are a RenderSpec's."""
    defaults = {"source": "demos.h5", "instruction": "Move the square.", "stride": 4}
    spec = RenderSpec(env_id="PickCube-v1", num_episodes=episodes, **{**defaults, **fields})
    write_json(folder / "spec.json", spec.to_json())
    for number in range(episodes):
        write_episode(episode_path(folder, number), made_up_episode(number, spec, size, 10 + number, image_size))
    write_json(folder / "dataset.json", summarise(folder))
    return spec
