"""From simulator states to frames: sets each chunk-boundary state and renders it once; no physics is re-stepped.

Episodes that start from an initial state of the evaluation protocol are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from par_agent.data.episodes import Episode, episode_path, frame_steps, image_size_attributes, write_episode
from par_agent.data.render_spec import RenderSpec
from par_agent.data.trajectory import Demonstration, EpisodeInfo, TrajectoryFile
from par_agent.errors import UserError
from par_agent.jobs.runner import DoJob
from par_agent.policy.transforms import crop_and_resize
from par_agent.simulation.randomization import prepare, randomize, randomized
from par_agent.simulation.recorded_environment import (
    camera_images,
    check_states,
    extra_observations,
    make_recorded_environment,
    set_state,
)
from par_agent.simulation.variations import get_variation
from par_agent.simulation.world import Draw, World
from par_agent.tasks import PROTOCOL_SEED, find_task, get_task


class Renderer:
    """A ManiSkill environment that shows given states to chosen cameras.

    ``options`` are those of the environment when the states were recorded; None: as the task says.
    """

    def __init__(self, spec: RenderSpec, options: dict[str, Any] | None = None) -> None:
        self.spec = spec
        self._sizes: dict[str, str] = {}
        if options is None:
            options = {"control_mode": get_task(spec.env_id).control_mode}
        obs_mode = "none" if spec.cameras == ("render_camera",) else "rgb"
        self._parts, self._randomized = get_variation(spec.variation).all_parts, randomized(spec.randomize)
        shader = next((part.shader for part in self._parts if part.shader != "minimal"), "minimal")
        self.env = make_recorded_environment(spec.env_id, obs_mode, options, shader)
        self.base = self.env.unwrapped
        self._world, self._scene = World(self.base, find_task(spec.env_id)), None
        self.base.get_obs = lambda *_, **__: {}  # reset and step would show all cameras
        self._reset(0)
        available = ["render_camera", *self.base.scene.sensors]
        if unknown := [camera for camera in spec.cameras if camera not in available]:
            raise UserError(f"{spec.env_id} has no camera {unknown[0]!r}; it has {', '.join(available)}")
        cameras = {**self.base.scene.sensors, **self.base.scene.human_render_cameras}
        for config in (cameras[name].config for name in spec.cameras):
            crop_and_resize(np.empty((config.height, config.width, 3), np.uint8), spec.crop, None)

    def _reset(self, seed: int, reconfigure: bool = False) -> None:
        """Resets the environment, and prepares a scene that is new for what is drawn for its episodes."""
        self.env.reset(seed=seed, options={"reconfigure": reconfigure})
        if self.base.scene is not self._scene:
            self._scene = self.base.scene
            if self._randomized or any(part.role for part in self._parts):
                prepare(self._world)

    @contextmanager
    def _varied(self, seed: int, number: int) -> Iterator[Callable[[], None]]:
        """Within the block the scene, in an episode's first state, looks as the spec says; yields what is to be called
        after each frame. The episode's number decides what is drawn for it.
        """
        world, seen = self._world, 0
        with ExitStack() as undo:
            undo.callback(world.restore)
            for part in self._parts:
                if part.change is not None:
                    part.change(world, Draw(part.name, seed, part.strength))
            randomize(world, self._randomized, self.spec.randomize_seed, number)

            def after_frame() -> None:
                nonlocal seen
                seen += 1
                for part in self._parts if seen == 1 else ():
                    if part.after_first_look is not None:
                        undo.callback(part.after_first_look(self.base))

            yield after_frame

    def _attributes(self, seed: int, number: int) -> dict[str, Any]:
        """Attributes of the episode whose frames were just rendered."""
        found = _attributes(self.spec, seed, number, self.base.control_mode) | self._sizes
        return {**found, "appearance": json.dumps(self._world.drawn)} if self._world.drawn else found

    def frames(self) -> dict[str, np.ndarray]:
        """Camera -> (H, W, 3) uint8 RGB of the present state, cropped and resized as the spec says."""
        images = camera_images(self.base, self.spec.cameras)
        self._sizes = image_size_attributes(images)
        return {camera: crop_and_resize(image, self.spec.crop, self.spec.size) for camera, image in images.items()}

    def render_demonstration(self, demonstration: Demonstration, number: int) -> Episode:
        """Renders an episode of the trajectory file at its chunk boundaries; its objects must be the environment's.

        ``number`` is the dataset's.
        """
        info = demonstration.info
        check_seed(self.spec, info)
        self._reset(info.seed)  # for what is no part of the states, such as a peg of random length
        check_states(self.base, demonstration.states, f"{self.spec.source}: episode {info.episode_id}")
        steps = frame_steps(demonstration.num_steps, self.spec.stride, self.spec.phase)
        images: list[dict[str, np.ndarray]] = []
        extra = []
        set_state(self.base, demonstration.states, 0)
        with self._varied(info.seed, number) as after_frame:
            for step in range(demonstration.num_steps + 1) if self.spec.extra else steps:
                set_state(self.base, demonstration.states, int(step))
                extra.append(extra_observations(self.base, self.spec.extra))
                if step in steps:
                    images.append(self.frames())
                    after_frame()
            attributes = self._attributes(info.seed, info.episode_id)
        proprioception = demonstration.joint_positions(self.base.agent.robot.name)
        return Episode(_stack(images), steps, proprioception, demonstration.actions, attributes, _stack(extra))

    def render_random_motion(self, number: int) -> Episode:
        """Steps a smooth random walk of the arm from a random initial state; the episode has no actions.

        The scene is rebuilt before a motion: contacts carry traces of earlier episodes.
        """
        seed = self.spec.first_seed + number
        self._reset(seed, reconfigure=self.spec.motion_steps > 0)
        generator = np.random.default_rng(seed)
        dof = int(self.base.agent.robot.get_qpos().shape[1])
        low, high = self.base.single_action_space.low, self.base.single_action_space.high
        size = len(low)
        steps = frame_steps(self.spec.motion_steps, self.spec.stride, self.spec.phase)
        target = self.base.agent.robot.get_qpos()[0, :size].cpu().numpy()
        velocity = np.zeros(size, np.float32)
        images: list[dict[str, np.ndarray]] = []
        extra, positions = [], np.zeros((self.spec.motion_steps + 1, dof), np.float32)
        with self._varied(seed, number) as after_frame:
            for step in range(self.spec.motion_steps + 1):
                positions[step] = self.base.agent.robot.get_qpos()[0].cpu().numpy()
                extra.append(extra_observations(self.base, self.spec.extra))
                if step in steps:
                    images.append(self.frames())
                    after_frame()
                if step < self.spec.motion_steps:
                    velocity = 0.9 * velocity + generator.normal(0, 0.01, size).astype(np.float32)
                    target = np.clip(target + velocity, low, high)
                    self.env.step(target)
            attributes = self._attributes(seed, number)
        return Episode(_stack(images), steps, positions, None, attributes, _stack(extra))


def recorded_episode(spec: RenderSpec, trajectories: TrajectoryFile, number: int) -> Episode:
    """An episode of a trajectory file with the images that were recorded at its chunk boundaries."""
    info = trajectories.info(number)
    seen = trajectories.read_recording(number, spec.cameras, spec.stride, spec.phase, spec.extra)
    check_seed(spec, info)
    frames = {
        camera: np.stack([crop_and_resize(image, spec.crop, spec.size) for image in images])
        for camera, images in seen.frames.items()
    }
    attributes = _attributes(spec, info.seed, number, info.control_mode) | image_size_attributes(seen.frames)
    return dataclasses.replace(seen, frames=frames, attributes=attributes)


def check_seed(spec: RenderSpec, info: EpisodeInfo) -> None:
    """Refuses the initial states of the evaluation protocol."""
    if info.seed >= PROTOCOL_SEED:
        raise UserError(
            f"{spec.source}: episode {info.episode_id} starts from seed {info.seed}, which the evaluation protocol "
            f"reserves (from {PROTOCOL_SEED}): leave it out of training data, and record with smaller seeds"
        )


def _attributes(spec: RenderSpec, seed: int, source_episode: int, control_mode: str) -> dict[str, Any]:
    return {
        "instruction": spec.instruction,
        "env_id": spec.env_id,
        "seed": seed,
        "source": Path(spec.source).name,
        "source_episode": source_episode,
        "control_mode": control_mode,
    }


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class RenderJob:
    """One episode to write."""

    number: int
    """Number of the episode in the dataset."""
    source: Demonstration | Episode | None
    """States to render, an episode that holds its frames already, or None for random motion."""


def episode_renderer(make_renderer: Callable[[], Renderer] | None, folder: Path) -> DoJob:
    """What a worker does: renders an episode into its file, and yields its number of frames.

    Jobs whose episodes hold their frames already need no renderer.
    """
    renderer = make_renderer() if make_renderer is not None else None

    def render(job: RenderJob) -> Iterator[int]:
        episode = job.source
        if not isinstance(episode, Episode):
            assert renderer is not None
            if episode is None:
                episode = renderer.render_random_motion(job.number)
            else:
                episode = renderer.render_demonstration(episode, job.number)
        write_episode(episode_path(folder, job.number), episode)
        yield len(episode.frame_steps)

    return render
