"""Changes of what cameras see: camera, light, colours, textures, background and distractors; physics stays.

Every change is a function of a :class:`World` and a :class:`Draw`. It notes in ``world.drawn`` what it drew.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from par_agent.simulation.textures import draw_pattern, paint
from par_agent.simulation.world import ROLES, Draw, World, rounded

Change = Callable[[World, Draw], None]

CAMERA_SHIFT, CAMERA_TURN = 0.03, 2.0
"""How far a camera moves along each of its axes, metres, and turns about each of them, degrees."""
LIGHT = 0.5
"""By how much of its intensity light changes."""
DISTRACTORS = 2
"""Objects that are added."""
DISTRACTOR_SIZE = 0.022
"""Half of a distractor's width, metres."""
CLEARANCE = 0.09
"""Least distance of a distractor from the task's objects and the lines between them, metres."""
TABLE_AREA = ((-0.25, 0.25), (-0.35, 0.35))
"""Where distractors stand: x and y, metres."""
DISTRACTOR_HUES = (0.14, 0.08, 0.5, 0.8, 0.9)
"""Yellow, orange, cyan, violet and pink: not the red, green and blue of the tasks' cubes and goals."""
HORIZON = 45.0
"""How far the walls of another background are, metres; cameras see 100."""
TABLE, GROUND, SKY = "table-workspace", "ground", "sky"
"""Names of actors."""


def move_cameras(world: World, draw: Draw) -> None:
    """Moves and turns every camera, the render cameras and the sensors', about its own axes, all alike."""
    import sapien
    from transforms3d.euler import euler2quat

    offset = draw.around(0, CAMERA_SHIFT, 3)
    angles = draw.around(0, np.deg2rad(CAMERA_TURN), 3)
    moved = sapien.Pose(offset, euler2quat(*angles))
    for name, camera in world.cameras():
        one = camera._render_cameras[world.row]  # one an environment; camera.set_local_pose would give all the same
        pose = one.local_pose * moved
        world.set(one, "local_pose", pose)
        for cache in ("_cached_local_pose", "_cached_model_matrix", "_cached_extrinsic_matrix"):
            world.set(camera, cache, None)
        world.drawn[f"camera_pose.{name}"] = rounded([*pose.p, *pose.q])


def color_light(world: World, draw: Draw) -> None:
    """Multiplies red, green and blue of every lamp."""
    _scale_lamps(world, "light_color", np.maximum(draw.around(1, LIGHT, 3), 0))


def scale_ambient(world: World, draw: Draw) -> None:
    """Multiplies the ambient light."""
    _scale_ambient(world, "ambient", draw.factor(LIGHT))


def scale_light(world: World, draw: Draw) -> None:
    """Multiplies all light: the ambient light and every lamp."""
    factor = draw.factor(LIGHT)
    _scale_ambient(world, "light_intensity", factor)
    _scale_lamps(world, "light_intensity", np.full(3, factor))


def _scale_ambient(world: World, name: str, factor: float) -> None:
    world.set(world.render_system, "ambient_light", world.render_system.ambient_light * factor)
    world.drawn[name] = rounded([factor])


def _scale_lamps(world: World, name: str, factors: np.ndarray) -> None:
    for light in world.render_system.lights:
        world.set(light, "color", light.color * factors)
    world.drawn[name] = rounded(factors)


def color_objects(role: str) -> Change:
    """Gives the objects of a role other colours; parts of one colour stay alike."""

    def change(world: World, draw: Draw) -> None:
        share, new = min(draw.strength, 1.0), dict[tuple[float, ...], np.ndarray]()
        for material in world.materials(world.objects(role)):
            *own, alpha = material.base_color
            if tuple(own) not in new:
                new[tuple(own)] = draw.color()
            if material.base_color_texture is not None:  # it hides the base colour
                paint(world, material, new[tuple(own)][None, None], draw.strength)
                continue
            mixed = (1 - share) * np.array(own) + share * new[tuple(own)] ** 2.2  # base colours are linear
            world.set(material, "base_color", [*mixed, alpha])
        world.drawn[f"{role}_color"] = [rounded(color) for color in new.values()]

    return change


def texture_objects(role: str) -> Change:
    """Gives the objects of a role a pattern of two colours."""

    def change(world: World, draw: Draw) -> None:
        pattern = draw_pattern(draw)
        for material in world.materials(world.objects(role)):
            paint(world, material, pattern.image, draw.strength)
        world.drawn[f"{role}_texture"] = pattern.drawn

    return change


def color_table(world: World, draw: Draw) -> None:
    """Gives the table one colour in place of its wood."""
    color = draw.color()
    for material in world.materials([world.actor(TABLE)]):
        paint(world, material, color[None, None], draw.strength)
    world.drawn["table_color"] = rounded(color)


def texture_table(world: World, draw: Draw) -> None:
    """Gives the table a pattern of two colours in place of its wood."""
    pattern = draw_pattern(draw)
    for material in world.materials([world.actor(TABLE)]):
        paint(world, material, pattern.image, draw.strength)
    world.drawn["table_texture"] = pattern.drawn


def color_background(world: World, draw: Draw) -> None:
    """Gives the floor one colour, and the black behind it another, which is that of walls far away."""
    floor, sky = draw.color(), draw.color()
    for material in world.materials([world.actor(GROUND)]):
        paint(world, material, floor[None, None], draw.strength)
    walls = world.added_actor(SKY, _build_sky)
    glow = [*(min(draw.strength, 1.0) * sky**2.2), 1.0]
    for material in world.materials([walls]):
        world.set(material, "emission", glow)
    _place(world, walls, [0, 0, 0])
    world.drawn["background_color"] = [rounded(floor), rounded(sky)]


def _build_sky(builder: Any) -> None:
    """Four walls and a ceiling, without thickness to speak of, black but for what they emit."""
    import sapien

    black = sapien.render.RenderMaterial(base_color=[0, 0, 0, 1], specular=0)
    for x, y, z in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1)):
        middle = np.array([x, y, z]) * HORIZON
        half = [0.1 if part else HORIZON for part in (x, y, z)]
        builder.add_box_visual(sapien.Pose(middle), half_size=half, material=black)


def add_distractors(world: World, draw: Draw) -> None:
    """Puts objects that the task does not need on the table, away from those that it needs and the lines between them.

    They are solid and do not move. Above a strength of 1 there are more of them; below, fewer.
    """
    needed = [actor for role in ROLES for actor in world.objects(role, required=False)]
    taken = [actor.pose.p[world.row, :2].cpu().numpy().astype(float) for actor in needed]
    standing: list[np.ndarray] = []
    for number in range(max(1, round(DISTRACTORS * draw.strength))):
        kind, hue = draw.choice(len(_SHAPES)), DISTRACTOR_HUES[draw.choice(len(DISTRACTOR_HUES))]
        places = np.stack([draw.numbers.uniform(low, high, 64) for low, high in TABLE_AREA], 1)
        apart = np.minimum(_distances(places, taken), _distances(places, standing, lines=False))
        place = places[int(np.argmax(np.minimum(apart, CLEARANCE)))]  # the first that is far enough, or the farthest
        standing.append(place)
        actor = world.added_actor(f"distractor-{number}-{kind}", _SHAPES[kind])
        for material in world.materials([actor]):
            world.set(material, "base_color", [*(np.array(colorsys.hsv_to_rgb(hue, 0.85, 0.9)) ** 2.2), 1])
        _place(world, actor, [*place, DISTRACTOR_SIZE])
        world.drawn[f"distractor_object.{number}"] = [kind, hue, *rounded(place)]


def _distances(places: np.ndarray, others: Sequence[np.ndarray], *, lines: bool = True) -> np.ndarray:
    """Least distance (n,) of places (n, 2) from other points and, with ``lines``, from the lines between those."""
    nearest = np.full(len(places), np.inf)
    for index, first in enumerate(others):
        for second in others[index:] if lines else [first]:
            along = second - first
            share = np.clip((places - first) @ along / max(float(along @ along), 1e-9), 0, 1)
            nearest = np.minimum(nearest, np.linalg.norm(places - first - share[:, None] * along, axis=1))
    return nearest


def _box(builder: Any) -> None:
    import sapien

    builder.add_box_collision(half_size=[DISTRACTOR_SIZE] * 3)
    builder.add_box_visual(half_size=[DISTRACTOR_SIZE] * 3, material=sapien.render.RenderMaterial())


def _ball(builder: Any) -> None:
    import sapien

    builder.add_sphere_collision(radius=DISTRACTOR_SIZE)
    builder.add_sphere_visual(radius=DISTRACTOR_SIZE, material=sapien.render.RenderMaterial())


def _can(builder: Any) -> None:
    import sapien

    upright = sapien.Pose(q=[0.5**0.5, 0, 0.5**0.5, 0])
    builder.add_cylinder_collision(upright, radius=DISTRACTOR_SIZE, half_length=DISTRACTOR_SIZE)
    builder.add_cylinder_visual(
        upright, radius=DISTRACTOR_SIZE, half_length=DISTRACTOR_SIZE, material=sapien.render.RenderMaterial()
    )


_SHAPES: tuple[Callable[[Any], None], ...] = (_box, _ball, _can)


def _place(world: World, actor: Any, position: Sequence[float]) -> None:
    import sapien

    world.set(actor, "pose", sapien.Pose(position))
