"""One environment's scene, with changes that can be taken back, and the random numbers that decide them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from par_agent.errors import UserError
from par_agent.simulation.materials import actor_materials
from par_agent.tasks import TaskSpec

EVALUATION_SEED = 20_260_527
"""Seed of what variations draw for rollouts; frozen, so that every policy meets the same worlds."""
ROLES = {"MO": "manipulated_objects", "RO": "receiver_objects"}
"""Colosseum's abbreviations -> the fields of a task that name the objects."""
OUT_OF_SIGHT = (0.0, 0.0, -1000.0)
"""Where an added actor is while no change shows it, metres: beyond every camera's far plane."""


class Draw:
    """The random numbers of one change: they follow from its name, a number and a seed, and from nothing else.

    ``number`` is the environment seed of a rollout's initial state, or the number of an episode. ``strength``
    multiplies ranges: the same world is drawn at every strength, closer to the task's own or farther from it.
    """

    def __init__(self, name: str, number: int, strength: float = 1.0, seed: int = EVALUATION_SEED) -> None:
        words = np.random.SeedSequence([seed, number, *name.encode()]).generate_state(8)
        self.numbers = np.random.RandomState(words)  # its numbers never change between versions of numpy
        self.strength = strength

    def around(self, middle: float, reach: float, count: int) -> np.ndarray:
        """(count,) float64, uniform within ``reach`` times the strength of ``middle``."""
        return middle + self.strength * reach * self.numbers.uniform(-1, 1, count)

    def factor(self, reach: float) -> float:
        """A factor within ``reach`` times the strength of 1, never below 0."""
        return max(0.0, float(self.around(1, reach, 1)[0]))

    def color(self) -> np.ndarray:
        """(3,) float64 sRGB, uniform in [0, 1]."""
        return self.numbers.uniform(0, 1, 3)

    def choice(self, count: int) -> int:
        """A whole number from 0 to ``count - 1``."""
        return int(self.numbers.randint(count))


class World:
    """What environment ``row`` of ManiSkill's ``base`` shows; ``spec`` is None for a task that is not known here."""

    def __init__(self, base: Any, spec: TaskSpec | None, row: int = 0) -> None:
        self.base, self.spec, self.row = base, spec, row
        self.drawn: dict[str, Any] = {}
        """What was drawn, as numbers, to be stored."""
        self._undo: list[Callable[[], None]] = []

    def set(self, thing: Any, name: str, value: Any) -> None:
        """Sets an attribute until :meth:`restore`."""
        old = getattr(thing, name)
        self._undo.append(partial(setattr, thing, name, old.copy() if isinstance(old, np.ndarray) else old))
        setattr(thing, name, value)

    def restore(self) -> None:
        """Takes all changes back, the last one first."""
        while self._undo:
            self._undo.pop()()
        self.drawn = {}

    @property
    def render_system(self) -> Any:
        """SAPIEN's render system of this environment."""
        return self.base.scene.sub_scenes[self.row].render_system

    def cameras(self) -> Iterator[tuple[str, Any]]:
        """ManiSkill's cameras by name: the render cameras and the sensors'."""
        for group in (self.base.scene.human_render_cameras, self.base.scene.sensors):
            yield from ((name, found.camera) for name, found in group.items() if hasattr(found, "camera"))

    def objects(self, role: str, *, required: bool = True) -> list[Any]:
        """The actors of a role, ``MO`` or ``RO``; raises UserError for a task that names none, if they are required."""
        names = () if self.spec is None else getattr(self.spec, ROLES[role])
        if required and not names:
            task = self.base.spec.id if self.spec is None else self.spec.name
            raise UserError(f"task {task} has no {ROLES[role]} in its TaskSpec, which this variation changes")
        if missing := [name for name in names if name not in self.base.scene.actors]:
            raise UserError(f"{self.base.spec.id} has no actor {missing[0]!r}, which its TaskSpec names")
        return [self.base.scene.actors[name] for name in names]

    def actor(self, name: str) -> Any:
        """An actor of the scene by name; raises UserError where there is none."""
        if name not in self.base.scene.actors:
            raise UserError(f"{self.base.spec.id} has no {name!r}, which this variation changes")
        return self.base.scene.actors[name]

    def materials(self, actors: Sequence[Any]) -> list[Any]:
        """SAPIEN's materials of some actors in this environment, each once."""
        found = {id(material): material for actor in actors for material in actor_materials(actor, self.row)}
        return list(found.values())

    def added_actor(self, name: str, describe: Callable[[Any], None]) -> Any:
        """A kinematic actor that is no part of the task's state; built out of sight on first use of the scene.

        ``describe`` gives ManiSkill's actor builder its shapes. Needs the simulation on the CPU.
        """
        import sapien

        scene = self.base.scene
        if name not in scene.actors:
            builder = scene.create_actor_builder()
            describe(builder)
            builder.initial_pose = sapien.Pose(OUT_OF_SIGHT)
            scene.remove_from_state_dict_registry(builder.build_kinematic(name))
        return scene.actors[name]


def rounded(values: Iterable[float]) -> list[float]:
    """Numbers to be stored, to five places."""
    return [round(float(value), 5) for value in values]
