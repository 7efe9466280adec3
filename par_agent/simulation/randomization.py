"""Randomised appearance of training data: what `par-agent render --randomize` draws for every episode.

It draws with the changes of :mod:`par_agent.simulation.variations`, in their ranges, with other random numbers than
those of rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence

from par_agent.errors import UserError
from par_agent.simulation.textures import give_textures
from par_agent.simulation.variations import VARIATIONS, get_variation
from par_agent.simulation.world import ROLES, Draw, World

RANDOMIZED: dict[str, tuple[tuple[str, ...], ...]] = {
    "camera": (("camera_pose",),),
    "light": (("light_color",), ("ambient",), ("light_intensity",)),
    "color": (("MO_color", "MO_texture"), ("RO_color", "RO_texture")),
    "table": (("table_color", "table_texture"),),
    "background": (("background_color",),),
    "distractors": (("distractor_object",),),
}
"""Names on the command line -> variations, all of which are applied; of several in one place, one is drawn."""


def randomized(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The choices of variations, each ``NAME`` or ``NAME=STRENGTH``, that names on the command line stand for.

    ``camera=1.5`` is ``camera`` with 1.5 times the range; names of single variations are taken, too.
    """
    found: list[tuple[str, ...]] = []
    for text in names:
        name, given, strength = text.partition("=")
        slots = RANDOMIZED.get(name, ((name,),))
        if name not in RANDOMIZED and name not in VARIATIONS:
            raise UserError(f"--randomize {text}: expected {', '.join(RANDOMIZED)}, or the name of a variation")
        for slot in slots:
            choice = tuple(f"{option}{given}{strength}" for option in slot)
            for option in choice:
                if get_variation(option).change is None:
                    raise UserError(
                        f"--randomize {text}: {option} changes more than images, or all of a dataset's alike"
                    )
            found.append(choice)
    return found


def prepare(world: World) -> None:
    """Prepares a scene, before it is rendered for the first time, for whatever may be drawn for its episodes."""
    give_textures(world, tuple(ROLES))


def randomize(world: World, slots: Sequence[tuple[str, ...]], seed: int, episode: int) -> None:
    """Changes what a world shows as episode number ``episode`` shows it; ``world.drawn`` tells what was drawn."""
    for slot in slots:
        choice = Draw(f"choice of {slot[0]}", episode, seed=seed).choice(len(slot))
        variation = get_variation(slot[choice])
        assert variation.change is not None
        variation.change(world, Draw(variation.name, episode, variation.strength, seed))
