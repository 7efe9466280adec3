"""What a rendered dataset is asked to hold: the content of its ``spec.json``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from par_agent.errors import UserError
from par_agent.policy.transforms import check_crop
from par_agent.simulation.episode_variation import parts_for
from par_agent.simulation.randomization import randomized
from par_agent.simulation.variations import get_variation
from par_agent.tasks import PROTOCOL_SEED, TaskSpec, find_task
from par_agent.utils.checked import Checked, Count, MayBeEmpty, NonNegative, Pixels, Seed
from par_agent.utils.files import naming
from par_agent.utils.json_fields import build

ADDED_FIELDS = {"variation": "none", "randomize": [], "randomize_seed": 0}
"""Fields that older datasets lack, and what they would say."""


@dataclass(frozen=True)
class RenderSpec(Checked):
    """Everything that decides the pixels and the steps of a rendered dataset."""

    env_id: str
    """Gymnasium id of the environment."""
    source: str
    """Trajectory file, or ``random-motion`` for action-free video of random arm motion from random initial states."""
    num_episodes: Count
    """Episodes to render."""
    instruction: Annotated[str, MayBeEmpty] | tuple[str, ...]
    """Language instruction stored with every episode, or several wordings of it."""
    cameras: tuple[str, ...] = ("render_camera",)
    """``render_camera`` and/or names of the environment's sensor cameras."""
    crop: tuple[int, int, int, int] | None = None
    """Top, left, height and width in pixels of the rendered image; None keeps all of it."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width of the stored frames; None keeps the crop's."""
    stride: Count = 8
    """Control steps between stored frames."""
    phase: NonNegative = 0
    """Control step of the first stored frame."""
    first_seed: NonNegative = 1_000_000
    """``random-motion`` only: environment seed of the first episode."""
    motion_steps: NonNegative = 0
    """``random-motion`` only: control steps of random arm motion after the initial state; 0: only that state."""
    recorded: bool = False
    """Whether frames are the trajectory file's own images, instead of being rendered."""
    extra: tuple[str, ...] = ()
    """Entries of ManiSkill's ``obs["extra"]`` to store for every control step, those that the task has."""
    variation: str = "none"
    """What differs from the task's own images, as in the benchmark: ``NAME`` or ``NAME=STRENGTH`` of
    :data:`par_agent.simulation.variations.VARIATIONS`."""
    randomize: tuple[str, ...] = ()
    """What is drawn anew for every episode; names of :data:`par_agent.simulation.randomization.RANDOMIZED`."""
    randomize_seed: Seed = 0
    """Seed of what is drawn; it follows from this seed and the episode's number."""
    source_episodes: str | None = None
    """Numbers of the trajectory file's episodes that the dataset's are, such as ``0-99,120``; None: its first ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phase >= self.stride:
            raise UserError(f"phase is {self.phase}; it must be from 0 to stride - 1 = {self.stride - 1}")
        names = (*self.cameras, *self.extra)
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{twice[0]!r} is named twice")
        if unfit := [name for name in self.cameras if name in (".", "..") or "/" in name]:
            raise UserError(f"{unfit[0]!r} is no name of a camera; files and folders are called by it")
        if (self.variation != "none" or self.randomize) and self.recorded:
            raise UserError("recorded images are as they were recorded: leave --variation and --randomize out")
        if not get_variation(self.variation).is_rendered:
            raise UserError(f"{self.variation} changes more than images: it cannot be rendered")
        task = find_task(self.env_id) or TaskSpec(self.env_id, "")
        for option in (self.variation, *chain(*randomized(self.randomize))):
            parts_for(task, option)
        if self.is_random and self.first_seed + self.num_episodes > PROTOCOL_SEED:
            raise UserError(
                f"seeds {self.first_seed} to {self.first_seed + self.num_episodes - 1} reach the evaluation protocol's "
                f"(from {PROTOCOL_SEED}), which never enter training data; choose a smaller first_seed"
            )

    @property
    def is_random(self) -> bool:
        """Whether the episodes are made here, without actions, instead of being read from a trajectory file."""
        return self.source == "random-motion"

    def check_cameras(self, task: TaskSpec) -> None:
        """Compares cameras and crop with those of the task, before a worker builds its scene."""
        known = (task.camera, *task.sensor_cameras)
        if unknown := [name for name in self.cameras if name not in known]:
            raise UserError(f"{task.env_id} has no camera {unknown[0]!r}; it has {', '.join(known)}")
        if self.crop is not None and task.camera in self.cameras:
            check_crop(self.crop, task.image_size)

    def to_json(self) -> dict[str, Any]:
        """As it is written to JSON; tuples become lists there."""
        return dataclasses.asdict(self)

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """Height and width of the stored frames; None where the camera decides them."""
        return self.size if self.size is not None or self.crop is None else self.crop[2:]

    @classmethod
    def from_json(cls, content: dict[str, Any], origin: Path) -> RenderSpec:
        """Makes a spec from the JSON of file ``origin``; only :data:`ADDED_FIELDS` may be absent."""
        with naming(origin):
            return build(cls, content, ADDED_FIELDS)


def wordings(instructions: tuple[str, ...]) -> str | tuple[str, ...]:
    """An instruction as it is stored: one text, or a tuple of several that differ; empty where none is given."""
    texts = tuple(dict.fromkeys(instructions))
    return texts if len(texts) > 1 else "".join(texts)


def read_by(checkpoint: str) -> dict[str, Any]:
    """The fields of a spec whose frames a policy checkpoint, a folder or a name, reads."""
    from par_agent.policy.checkpoint import Checkpoint

    loaded = Checkpoint.load(checkpoint)
    if (seen := loaded.transforms) is None:
        raise UserError(f"{checkpoint} cannot act yet and has no camera: give --crop and --size in place of --like")
    return {
        "cameras": seen.cameras,
        "crop": seen.crop,
        "size": seen.size,
        "extra": tuple(name for name, _ in seen.extra),
        "stride": loaded.model.config.action.chunk_length,
    }
