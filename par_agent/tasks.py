"""The manipulation tasks this package knows by name, as the paper's evaluation protocol uses them (section 5.1).

A task is one :class:`TaskSpec`; adding one to :data:`TASKS` (or handing your own to the benchmark) is all it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from par_agent.errors import UserError
from par_agent.utils.references import load_object
from par_agent.wordings import TRAINING_WORDINGS

PROTOCOL_SEED = 20241201
"""First environment seed of the evaluation protocol; this seed and all larger ones never enter training data."""

PROTOCOL_STATES = 25
"""Initial states per task in the evaluation protocol: environment seeds ``PROTOCOL_SEED + i``."""

ALL_STATES = 125
"""The protocol's initial states and 100 further ones per task, from the seeds that follow: for more certain reports.
Like the protocol's, they are never used in training or development."""

PROTOCOL_POLICY_SEEDS = 5
"""Policy seeds per initial state in the evaluation protocol."""

UNKNOWN_CONTROLLER = "unknown"
"""Stands in place of a control mode that data does not tell."""

Track = Literal["paper", "native"]
TRACKS: tuple[Track, ...] = get_args(Track)
"""What the policy sees: ``paper`` is the image of the task's render camera and the joint positions, ``native`` is what
ManiSkill itself gives for ``obs_mode="rgb"``."""

BUNDLED = {"paper": "par-mini", "native": "par-mini-native"}
"""Name of the bundled checkpoint of each track."""


@dataclass(frozen=True)
class TaskSpec:
    """One ManiSkill task as the paper's protocol uses it. The benchmark checks all of it against the environment."""

    env_id: str
    """Gymnasium id, for example ``PushCube-v1``."""
    instruction: str
    """Natural-language instruction that the policy reads."""
    control_mode: str = "pd_joint_pos"
    """ManiSkill controller: absolute joint targets in radians, a Panda's gripper in [-1, 1]."""
    action_size: int = 8
    """Numbers per action; Panda: 7 joint targets and, where the robot has one, the gripper."""
    max_steps: int = 400
    """Control steps after which a rollout counts as failed."""
    joint_count: int = 9
    """Joint positions observed; Panda: 7 arm joints and, where the robot has one, the gripper's 2 fingers."""
    camera: str = "render_camera"
    """Camera of the ``paper`` track, one of the environment's human render cameras."""
    image_size: tuple[int, int] = (512, 512)
    """Height and width of that camera's image, pixels."""
    sensor_cameras: tuple[str, ...] = ("base_camera",)
    """Cameras of the ``native`` track."""
    state_is_complete: bool = True
    """Whether the simulator's state and the seed's objects are all there is to an episode; False where the environment
    keeps more that it draws or computes at a reset. Such a task runs on the CPU backend only."""
    manipulated_objects: tuple[str, ...] = ()
    """Names of the actors that the robot moves, for variations of their colour, texture and size."""
    receiver_objects: tuple[str, ...] = ()
    """Names of the actors that these are brought to, the goal among them."""
    other_wordings: tuple[str, ...] = ()
    """Other wordings of the instruction, which training data shows as well."""

    @property
    def name(self) -> str:
        """Short name, for example ``PushCube``."""
        return self.env_id.rsplit("-v", 1)[0]

    @property
    def wordings(self) -> tuple[str, ...]:
        """The instruction, then its other wordings."""
        return self.instruction, *self.other_wordings

    def cameras(self, track: str) -> tuple[str, ...]:
        """Cameras whose images a policy gets on a track."""
        return (self.camera,) if track == "paper" else self.sensor_cameras


_WRIST = ("base_camera", "hand_camera")

PAPER_TASKS = ("PushCube", "PickCube", "StackCube")
"""The three tasks of the paper's tables."""

TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            "PushCube-v1",
            "Push and move a cube to a goal region in front of it.",
            manipulated_objects=("cube",),
            receiver_objects=("goal_region",),
            other_wordings=TRAINING_WORDINGS["PushCube"],
        ),
        TaskSpec(
            "PickCube-v1",
            "Grasp a red cube and move it to a target goal position.",
            manipulated_objects=("cube",),
            receiver_objects=("goal_site",),
            other_wordings=TRAINING_WORDINGS["PickCube"],
        ),
        TaskSpec(
            "StackCube-v1",
            "Pick up a red cube and stack it on top of a green cube and let go of the cube without it falling.",
            sensor_cameras=_WRIST,
            manipulated_objects=("cubeA",),
            receiver_objects=("cubeB",),
            other_wordings=TRAINING_WORDINGS["StackCube"],
        ),
        # The other tasks for which ManiSkill has a Panda motion planner; their instructions are this package's own.
        TaskSpec(
            "PullCube-v1",
            "Pull a cube back onto the round target behind it.",
            manipulated_objects=("cube",),
            receiver_objects=("goal_region",),
        ),
        TaskSpec(
            "PullCubeTool-v1",
            "Grasp the L-shaped tool and use it to pull a cube that is out of reach closer.",
            manipulated_objects=("l_shape_tool",),
            receiver_objects=("cube",),
        ),
        TaskSpec(
            "LiftPegUpright-v1",
            "Lift a peg that is lying on the table and stand it upright.",
            manipulated_objects=("peg",),
        ),
        TaskSpec(
            "PlaceSphere-v1",
            "Pick up a sphere and place it in the shallow bin.",
            manipulated_objects=("sphere",),
            receiver_objects=("bin",),
        ),
        TaskSpec(
            "StackPyramid-v1",
            "Place a red cube next to a green cube and stack a blue cube on top of both.",
            sensor_cameras=_WRIST,
            manipulated_objects=("cubeA", "cubeC"),
            receiver_objects=("cubeB",),
        ),
        TaskSpec(
            "PegInsertionSide-v1",
            "Pick up a peg and insert its orange end into the hole in the side of the box.",
            sensor_cameras=_WRIST,
        ),
        TaskSpec(
            "PlugCharger-v1",
            "Pick up a charger from the table and plug it into the receptacle.",
            sensor_cameras=_WRIST,
            state_is_complete=False,
        ),
        TaskSpec(
            "DrawTriangle-v1",
            "Trace the outline of the triangle on the canvas with the stick.",
            action_size=7,
            joint_count=7,
            image_size=(960, 1280),
            state_is_complete=False,
        ),
        TaskSpec(
            "DrawSVG-v1",
            "Trace the outline of the figure on the canvas with the stick.",
            action_size=7,
            joint_count=7,
            image_size=(960, 1280),
            state_is_complete=False,
        ),
        # Another arm: five joints and a gripper that is commanded like them.
        TaskSpec(
            "PickCubeSO100-v1",
            "Pick up a small red cube and carry it to the green ball.",
            action_size=6,
            joint_count=6,
            manipulated_objects=("cube",),
            receiver_objects=("goal_site",),
        ),
    )
}


def check_track(track: str) -> None:
    """Raises UserError for what is not one of :data:`TRACKS`."""
    if track not in TRACKS:
        raise UserError(f"unknown track {track!r}; known tracks: {', '.join(TRACKS)}")


def check_cameras(who: str, cameras: Sequence[str], spec: TaskSpec, track: str) -> None:
    """Compares the cameras that ``who`` sees through with those that a task shows on a track."""
    shown = spec.cameras(track)
    if not all(camera in shown for camera in cameras):
        raise UserError(
            f"{who} sees through {', '.join(map(repr, cameras))}; task {spec.name} shows "
            f"{', '.join(shown) or 'no camera'} on the {track} track"
        )


def find_task(name: str) -> TaskSpec | None:
    """A task by its short name or environment id (``PushCube`` or ``PushCube-v1``); None if it is not known."""
    return next((spec for spec in TASKS.values() if name in (spec.name, spec.env_id)), None)


def get_task(name: str) -> TaskSpec:
    """A task as :func:`find_task` finds it."""
    if (spec := find_task(name)) is None:
        raise UserError(f"unknown task {name!r}; known tasks: {', '.join(TASKS)}")
    return spec


def resolve_task(reference: str) -> TaskSpec:
    """A task by its name, or your own :class:`TaskSpec` as ``module:NAME``, which also registers its environment."""
    if ":" not in reference:
        return get_task(reference)
    spec = load_object(reference)
    if not isinstance(spec, TaskSpec):
        raise UserError(f"{reference!r} is a {type(spec).__name__}; expected a par_agent.tasks.TaskSpec")
    if spec.name in TASKS and TASKS[spec.name] != spec:
        raise UserError(f"{reference!r}: the name {spec.name} belongs to a registered task; choose another env_id")
    return spec


def resolve_tasks(references: Sequence[str]) -> dict[str, TaskSpec]:
    """Tasks by reference, each as :func:`resolve_task` finds it."""
    specs = {reference: resolve_task(reference) for reference in references}
    if len({spec.name for spec in specs.values()}) < len(references):
        raise UserError(f"a task is given twice: {', '.join(references)}")
    return specs
