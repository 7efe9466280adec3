"""Changes of more than images: sizes of objects, the robot's initial pose, and noise of the sensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from par_agent.errors import UserError
from par_agent.simulation.world import Draw, World

if TYPE_CHECKING:
    import torch

SIZE = 0.2
"""By how much of its size an object grows or shrinks."""
INITIAL_POSE = 0.1
"""By how much the initial position of an arm's joint changes, radians."""
IMAGE_NOISE, JOINT_NOISE = 10.0, 0.005
"""Standard deviation of a camera's noise, of 255, and of measured joint positions, radians or metres."""

SIZED_TASKS = ("PushCube-v1", "PullCube-v1", "PickCube-v1", "StackCube-v1", "PickCubeSO100-v1")
"""Tasks whose conditions of success are known to follow the sizes below."""
CUBE, GOAL_RADII = "cube_half_size", {"goal_region": "goal_radius", "goal_site": "goal_thresh"}
"""Attributes of ManiSkill's environments: the cubes' size, and how near the goal of that name counts as reached."""


class ObjectSizes:
    """Builds the task's objects larger or smaller, and what counts as success with them.

    ManiSkill builds a scene in its hook ``_load_scene``; here the sizes that it asks for are multiplied by
    :attr:`factors`. The goal's tolerance grows with the goal, the height of a stack with the cubes.
    """

    def __init__(self, base: Any, roles: Sequence[str]) -> None:
        if base.spec.id not in SIZED_TASKS:
            raise UserError(f"sizes of objects can be varied in {', '.join(SIZED_TASKS)}; {base.spec.id} is another")
        self.roles, self._base = roles, base
        self.factors: dict[str, float] = {}
        """Actor -> factor of its size, for the scene that is built next."""
        self._own = {name: getattr(base, name) for name in (CUBE, *GOAL_RADII.values()) if hasattr(base, name)}
        self._load_scene = base._load_scene
        base._load_scene = self._load

    def draw(self, world: World, draws: Mapping[str, Draw]) -> None:
        """Draws the factors of the next scene; ``draws`` are those of each role."""
        self.factors = {actor.name: draws[role].factor(SIZE) for role in self.roles for actor in world.objects(role)}

    def place(self, actors: Mapping[str, torch.Tensor]) -> None:
        """Puts objects that stand on the table onto it again: changes their states (B, 13)."""
        for name, factor in self.factors.items():
            if name not in GOAL_RADII:
                actors[name][:, 2] *= factor

    def _load(self, options: dict[str, Any]) -> None:
        for name, value in self._own.items():
            setattr(self._base, name, value)
        scene = self._base.scene
        create = scene.create_actor_builder
        scene.create_actor_builder = lambda: self._scaling(create())
        self._load_scene(options)
        cubes = [self.factors.get(name, 1.0) for name in self._base.scene.actors if name.startswith("cube")]
        factors = {CUBE: float(np.mean(cubes))}
        factors |= {GOAL_RADII[name]: factor for name, factor in self.factors.items() if name in GOAL_RADII}
        for name, factor in factors.items():
            setattr(self._base, name, getattr(self._base, name) * factor)

    def _scaling(self, builder: Any) -> Any:
        """A builder that multiplies the sizes of an actor's shapes when it builds it."""
        import sapien

        build = builder.build

        def scaled(name: str) -> Any:
            factor = self.factors.get(name, 1.0)
            for shape in (*builder.collision_records, *builder.visual_records) if factor != 1 else ():
                shape.scale = [factor * float(length) for length in shape.scale]
                shape.radius, shape.length = factor * shape.radius, factor * shape.length
                shape.pose = sapien.Pose(factor * shape.pose.p, shape.pose.q)
            return build(name)

        builder.build = scaled
        return builder


def move_joints(base: Any, robot: torch.Tensor, draws: Sequence[Draw]) -> None:
    """Changes the states (B, n) of the robot: the positions of its arm's joints, within their limits.

    The joints of the gripper stay.
    """
    import torch

    names = getattr(base.agent, "arm_joint_names", None)
    if not names:
        raise UserError(
            f"{type(base.agent).__name__} does not say which joints are its arm's: its pose cannot be varied"
        )
    limits = base.agent.robot.get_qlimits()[0].cpu()
    for number, joint in enumerate(base.agent.robot.active_joints):
        if joint.name in names:
            moved = robot[:, 13 + number] + torch.tensor([float(draw.around(0, INITIAL_POSE, 1)[0]) for draw in draws])
            robot[:, 13 + number] = moved.clamp(*limits[number].tolist())


def add_noise(observation: dict[str, Any], draws: Sequence[Draw]) -> dict[str, Any]:
    """An observation with Gaussian noise on every camera's image and on the joint positions; ``draws`` are by row."""
    noisy = {**observation, "agent": dict(observation["agent"])}
    joints = noisy["agent"]["qpos"]
    noisy["agent"]["qpos"] = joints + _noise(joints, draws, JOINT_NOISE)
    if "sensor_data" in noisy:
        noisy["sensor_data"] = {
            camera: {
                **data,
                "rgb": (data["rgb"] + _noise(data["rgb"], draws, IMAGE_NOISE)).clamp(0, 255).round().byte(),
            }
            for camera, data in noisy["sensor_data"].items()
        }
    return noisy


def _noise(like: torch.Tensor, draws: Sequence[Draw], deviation: float) -> torch.Tensor:
    import torch

    rows = [draw.strength * deviation * draw.numbers.standard_normal(like.shape[1:]) for draw in draws]
    return torch.from_numpy(np.stack(rows)).to(like.device, torch.float32)
