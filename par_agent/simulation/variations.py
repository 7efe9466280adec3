"""Variations of a task for measuring robustness: one thing differs from training.

Geometry, physics and success stay the task's own. Only the images change, or the time when an action takes effect.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from par_agent.errors import UserError
from par_agent.simulation.materials import actor_materials

CAMERA_SHIFT = 0.02
"""How far cameras move to their left, metres."""
LIGHT = 0.3
"""By how much of its intensity light changes."""
GREY = (0.4, 0.4, 0.4)
"""Colour that replaces an object's own."""
HUE_TURN = 1 / 6
"""Part of the colour wheel by which loose objects change: a red cube turns yellow, a blue one magenta."""


@dataclass(frozen=True)
class Variation:
    """One change."""

    description: str
    """What is different, in a few words."""
    change: Callable[[Any], None] = lambda base: None
    """Applied to the unwrapped ManiSkill environment whenever its scene has been built."""
    after_first_look: Callable[[Any], Callable[[], None]] | None = None
    """Applied to it when an episode's first image has been taken; returns what takes it back."""
    delay: int = 0
    """Control steps that pass before an action takes effect; the robot holds still until the first one does."""
    shader: str = "minimal"
    """ManiSkill's shader pack."""


def move_cameras(base: Any) -> None:
    """Moves every camera, the render camera and the sensors', along its own y axis (to its left)."""
    import sapien

    sensors = [sensor for sensor in base.scene.sensors.values() if hasattr(sensor, "camera")]
    for camera in (found.camera for found in [*base.scene.human_render_cameras.values(), *sensors]):
        for one in camera._render_cameras:  # one an environment; camera.set_local_pose would give all the same pose
            one.set_local_pose(one.get_local_pose() * sapien.Pose([0.0, CAMERA_SHIFT, 0.0]))
        camera._cached_local_pose = None


def scale_light(factor: float) -> Callable[[Any], None]:
    """Multiplies the intensity of ambient light and of every lamp."""

    def change(base: Any) -> None:
        for scene in base.scene.sub_scenes:
            scene.render_system.ambient_light = scene.render_system.ambient_light * factor
            for light in scene.render_system.lights:
                light.color = light.color * factor

    return change


def turn_colors(base: Any) -> None:
    """Turns the hue of everything that can be pushed or picked up; grey things have none and stay grey."""
    loose = [actor for actor in base.scene.actors.values() if actor.px_body_type == "dynamic"]
    materials = {id(found): found for actor in loose for found in actor_materials(actor)}  # actors may share one
    for material in materials.values():
        *color, alpha = material.base_color
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        material.base_color = [*colorsys.hsv_to_rgb((hue + HUE_TURN) % 1, saturation, value), alpha]


def hide_what_to_remember(base: Any) -> Callable[[], None]:
    """Hides the goal; makes loose objects alike by taking their colours, where there are several.

    Raises:
        UserError: the task has neither.
    """
    goals = [actor for name, actor in base.scene.actors.items() if "goal" in name]
    loose = [actor for actor in base.scene.actors.values() if actor.px_body_type == "dynamic"]
    materials = [found for actor in loose for found in actor_materials(actor)] if len(loose) > 1 else []
    colors = [material.base_color for material in materials]
    if not goals and not materials:
        raise UserError(f"{base.spec.id} has neither a goal to hide nor several loose objects: blink changes nothing")
    registered = base._hidden_objects  # rendering shows those that are listed there
    base._hidden_objects = [actor for actor in registered if actor not in goals]
    for actor in goals:
        actor.hide_visual()
    for material in materials:
        material.base_color = [*GREY, material.base_color[3]]

    def show() -> None:
        base._hidden_objects = registered
        for actor in goals:
            actor.show_visual()
        for material, color in zip(materials, colors, strict=True):
            material.base_color = color

    return show


VARIATIONS: dict[str, Variation] = {
    "none": Variation("as in training"),
    "camera": Variation(f"camera moved by {100 * CAMERA_SHIFT:g} cm", move_cameras),
    "dim": Variation(f"light {LIGHT:.0%} weaker", scale_light(1 - LIGHT)),
    "bright": Variation(f"light {LIGHT:.0%} stronger", scale_light(1 + LIGHT)),
    "color": Variation("objects of another colour", turn_colors),
    "delay": Variation("every action one control step late", delay=1),
    "blink": Variation(
        "after the first image the goal is hidden, and cubes of several colours are grey",
        after_first_look=hide_what_to_remember,
    ),
    "shader": Variation("ManiSkill's shader pack `default`, whose background is grey, not black", shader="default"),
}
"""What `--variation` of `par-agent benchmark` and `par-agent render` knows."""


def get_variation(name: str) -> Variation:
    """The variation of that name."""
    if name not in VARIATIONS:
        raise UserError(f"unknown variation {name!r}; known variations: {', '.join(VARIATIONS)}")
    return VARIATIONS[name]
