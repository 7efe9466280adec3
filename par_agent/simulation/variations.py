"""Variations of a task for measuring robustness: one thing differs from training.

Names and ranges are Colosseum's (MO: manipulated object, RO: receiver object), and some more. What is drawn for a
rollout follows from the variation's name and the environment seed of its initial state alone, so that every policy
meets the same worlds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from par_agent.errors import UserError
from par_agent.simulation import appearance
from par_agent.simulation.materials import actor_materials

GREY = (0.4, 0.4, 0.4)
"""Colour that replaces an object's own."""
MOST = 10.0
"""Largest strength."""


@dataclass(frozen=True)
class Variation:
    """One change, or several at once."""

    name: str
    description: str
    """What is different at strength 1, in a few words."""
    change: appearance.Change | None = None
    """Changes what an environment shows."""
    role: str = ""
    """Role of the objects that it changes: MO or RO; empty: neither."""
    size: bool = False
    """Whether their size changes."""
    pose: bool = False
    """Whether the robot starts in another pose."""
    language: bool = False
    """Whether the instruction has other words."""
    noise: bool = False
    """Whether sensors are noisy."""
    delay: int = 0
    """Control steps, at strength 1, that pass before an action takes effect; the robot holds still until then."""
    latency: int = 0
    """Control steps, at strength 1, that pass between a frame that is planned from and the chunk's first action."""
    after_first_look: Callable[[Any], Callable[[], None]] | None = None
    """Applied to ManiSkill's environment when an episode's first image has been taken; returns what takes it back."""
    shader: str = "minimal"
    """ManiSkill's shader pack."""
    on_gpu: bool = False
    """Whether environments that are simulated together on a GPU can differ in it."""
    graded: bool = True
    """Whether it can be stronger or weaker."""
    parts: tuple[str, ...] = ()
    """Names of the variations that this one applies at once."""
    strength: float = 1.0
    """Multiplies the ranges."""

    @property
    def label(self) -> str:
        """As it is given on the command line, and stored: ``camera_pose``, or ``camera_pose=0.5``."""
        return self.name if self.strength == 1 else f"{self.name}={self.strength:g}"

    @property
    def told(self) -> str:
        """The description, with a strength that is not 1."""
        return self.description if self.strength == 1 else f"{self.description}, strength {self.strength:g}"

    @property
    def all_parts(self) -> tuple[Variation, ...]:
        """The variations that are applied at once: this one alone, unless it has parts."""
        return tuple(replace(VARIATIONS[name], strength=self.strength) for name in self.parts) or (self,)

    @property
    def is_rendered(self) -> bool:
        """Whether it changes images alone."""
        return not any(
            part.size or part.pose or part.language or part.noise or part.delay or part.latency
            for part in self.all_parts
        )


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


_LIGHT = f"x{1 - appearance.LIGHT:g} to x{1 + appearance.LIGHT:g}"
COLOSSEUM = (
    Variation(
        "camera_pose",
        f"cameras moved by up to {100 * appearance.CAMERA_SHIFT:g} cm along each axis and turned by up to "
        f"{appearance.CAMERA_TURN:g} degrees about each",
        appearance.move_cameras,
        on_gpu=True,
    ),
    Variation("light_color", f"red, green and blue of the lamps {_LIGHT}", appearance.color_light, on_gpu=True),
    Variation("ambient", f"ambient light {_LIGHT}", appearance.scale_ambient, on_gpu=True),
    Variation("MO_color", "manipulated object of another colour", appearance.color_objects("MO"), role="MO"),
    Variation("RO_color", "receiver object (or goal) of another colour", appearance.color_objects("RO"), role="RO"),
    Variation("MO_texture", "manipulated object with a pattern", appearance.texture_objects("MO"), role="MO"),
    Variation("RO_texture", "receiver object (or goal) with a pattern", appearance.texture_objects("RO"), role="RO"),
    Variation("MO_size", "manipulated object x0.8 to x1.2", role="MO", size=True),
    Variation("RO_size", "receiver object (or goal) x0.8 to x1.2", role="RO", size=True),
    Variation("table_color", "table of one colour", appearance.color_table),
    Variation("table_texture", "table with a pattern", appearance.texture_table),
    Variation("background_color", "floor and background of other colours", appearance.color_background),
    Variation("distractor_object", "two more objects on the table", appearance.add_distractors),
    Variation("pose_randomization", "joints of the arm start up to 0.1 rad elsewhere", pose=True, on_gpu=True),
    Variation("language", "instruction in words that training did not show", language=True, on_gpu=True, graded=False),
)
"""Those of Colosseum V2; ``all`` applies them at once."""
VARIATIONS: dict[str, Variation] = {
    variation.name: variation
    for variation in (
        Variation("none", "as in training", on_gpu=True, graded=False),
        *COLOSSEUM,
        Variation("all", "all of Colosseum's variations at once", parts=tuple(part.name for part in COLOSSEUM)),
        Variation("light_intensity", f"all light {_LIGHT}", appearance.scale_light, on_gpu=True),
        Variation(
            "sensor_noise", "noise of 10/255 on images, of 0.005 rad on joint positions", noise=True, on_gpu=True
        ),
        Variation("action_delay", "every action four control steps late", delay=4, on_gpu=True),
        Variation("chunk_latency", "eight control steps pass before each chunk begins", latency=8, on_gpu=True),
        Variation(
            "shader",
            "ManiSkill's shader pack `default`, whose background is grey, not black",
            shader="default",
            on_gpu=True,
            graded=False,
        ),
        Variation(
            "blink",
            "after the first image the goal is hidden, and cubes of several colours are grey",
            after_first_look=hide_what_to_remember,
            on_gpu=True,
            graded=False,
        ),
    )
}
"""What `--variation` of `par-agent benchmark` and `par-agent render` knows, at strength 1."""


def get_variation(text: str) -> Variation:
    """The variation that ``NAME`` or ``NAME=STRENGTH`` says; raises UserError where there is none."""
    name, given, strength = text.partition("=")
    if name not in VARIATIONS:
        raise UserError(f"unknown variation {name!r}; known variations: {', '.join(VARIATIONS)}")
    found = VARIATIONS[name]
    if not given:
        return found
    try:
        number = float(strength)
    except ValueError:
        number = -1.0
    if not 0 <= number <= MOST:
        raise UserError(f"variation {text!r}: the strength must be a number from 0 to {MOST:g}, as in camera_pose=0.5")
    if not found.graded:
        raise UserError(f"variation {name} has no strength; give it as {name}")
    return replace(found, strength=number)
