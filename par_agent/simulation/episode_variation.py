"""A variation at work in the environments of one task, from reset to reset."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from par_agent.errors import UserError
from par_agent.simulation.disturbances import SIZED_TASKS, ObjectSizes, add_noise, move_joints
from par_agent.simulation.variations import Variation, get_variation
from par_agent.simulation.world import ROLES, Draw, World
from par_agent.tasks import TaskSpec
from par_agent.wordings import HELD_OUT_WORDINGS, held_out_wordings

if TYPE_CHECKING:
    import torch


def parts_for(spec: TaskSpec, text: str, backend: str = "cpu") -> tuple[Variation, ...]:
    """The variations that ``NAME`` or ``NAME=STRENGTH`` applies to a task; of ``all``, those that the task can have.

    Raises:
        UserError: the task or the backend cannot have it.
    """
    variation = get_variation(text)
    if backend == "gpu" and (fixed := [part.name for part in variation.all_parts if not part.on_gpu]):
        raise UserError(
            f"variation {variation.name} changes {', '.join(fixed)}, in which environments that a GPU simulates "
            "together cannot differ: use --backend cpu"
        )
    lacking = {part.name: _lack(part, spec) for part in variation.all_parts}
    if not variation.parts and (lack := lacking[variation.name]):
        raise UserError(f"variation {variation.name} does not fit task {spec.name}: {lack}")
    return tuple(part for part in variation.all_parts if not lacking[part.name])


def _lack(part: Variation, spec: TaskSpec) -> str:
    """What a task lacks for a variation; empty: nothing."""
    if part.role and not getattr(spec, ROLES[part.role]):
        return f"its TaskSpec has no {ROLES[part.role]}"
    if part.size and spec.env_id not in SIZED_TASKS:
        return f"success with other sizes is known for {', '.join(SIZED_TASKS)}"
    if part.language and spec.name not in HELD_OUT_WORDINGS:
        return f"there are held-out wordings for {', '.join(HELD_OUT_WORDINGS)}"
    return ""


class EpisodeVariation:
    """Applies the parts of a variation; what is drawn follows from the initial states' environment seeds.

    Args:
        parts: as :func:`parts_for` gives them.
        base: ManiSkill's own environment.
        spec: its task.
        num_envs: environments simulated at once (B).
    """

    def __init__(self, parts: Sequence[Variation], base: Any, spec: TaskSpec, num_envs: int) -> None:
        self.parts, self._spec = parts, spec
        self.worlds = [World(base, spec, row) for row in range(num_envs)]
        self.delay = max((round(part.strength * part.delay) for part in parts), default=0)
        """Control steps that pass before an action takes effect."""
        self.latency = max((round(part.strength * part.latency) for part in parts), default=0)
        """Control steps that pass between a frame that is planned from and the chunk's first action."""
        sized = [part.role for part in parts if part.size]
        self._sizes = ObjectSizes(base, sized) if sized else None
        self._noise = [part for part in parts if part.noise]
        self._seeds: tuple[int, ...] = ()
        self.instructions: tuple[str, ...] | None = None
        """(B) instructions of the present episodes in other words; None: the task's own."""

    def check(self, policy: Any) -> None:
        """Raises UserError for a policy that the variation cannot reach."""
        told = "instruction" in inspect.signature(policy.reset).parameters
        if not told and any(part.language for part in self.parts):
            raise UserError(
                f"the reset() of {type(policy).__name__} has no parameter instruction, so that it cannot be told the "
                "task in other words: leave the variation language out"
            )

    def begin(self, seeds: Sequence[int]) -> None:
        """Takes the last episodes' changes back, before the scene is built for other ones."""
        self.restore()
        self._seeds = tuple(seeds)
        if self._sizes is not None:
            sized = {part.role: self._draw(part, 0) for part in self.parts if part.size}
            self._sizes.draw(self.worlds[0], sized)
        if any(part.language for part in self.parts):
            wordings = held_out_wordings(self._spec.name)
            choices = [Draw("language", seed).choice(len(wordings)) for seed in self._seeds]
            self.instructions = tuple(wordings[choice] for choice in choices)

    def place(self, states: dict[str, dict[str, torch.Tensor]]) -> None:
        """Changes the initial states, ManiSkill's dictionary with (B, n) tensors."""
        base = self.worlds[0].base
        if self._sizes is not None:
            self._sizes.place(states["actors"])
        for part in self.parts:
            if part.pose:
                robot = states["articulations"][base.agent.robot.name]
                move_joints(base, robot, [self._draw(part, row) for row in range(len(self.worlds))])

    def show(self) -> None:
        """Changes what the environments show, once they are in their initial states."""
        for part in self.parts:
            for row, world in enumerate(self.worlds):
                if part.change is not None:
                    part.change(world, self._draw(part, row))

    def look_again(self, base: Any) -> None:
        """An episode's first image has been taken; the next reset builds another scene."""
        for part in self.parts:
            if part.after_first_look is not None:
                part.after_first_look(base)

    def observed(self, observation: dict[str, Any], step: int) -> dict[str, Any]:
        """What sensors give after so many control steps; the same whenever it is asked for."""
        for part in self._noise:
            draws = [Draw(f"{part.name} {step}", seed, part.strength) for seed in self._seeds]
            observation = add_noise(observation, draws)
        return observation

    def restore(self) -> None:
        """Takes back what :meth:`show` changed."""
        for world in self.worlds:
            world.restore()

    def _draw(self, part: Variation, row: int) -> Draw:
        return Draw(part.name, self._seeds[row], part.strength)
