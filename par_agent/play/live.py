"""One simulation that goes on step by step, with what the policy predicts and where it attends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import numpy as np

from par_agent.errors import UserError
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.rollout import derive_seed
from par_agent.evaluation.trace import read_frames
from par_agent.tasks import resolve_task
from par_agent.utils.figures import smooth
from par_agent.utils.json_fields import fits, short
from par_agent.visualization.attention import frame_weights
from par_agent.visualization.causes import GOALS
from par_agent.visualization.session import RolloutSession

REACH = 0.85
"""How far from the robot's base an object may be put, metres."""
RADIUS = 0.04
"""How far from an object's centre the ray of a pixel that shows it may pass, metres."""

FARTHEST = 1e6
"""Pixels from an image's corner at which nothing is shown any more."""


@dataclass(frozen=True)
class View:
    """What the page shows."""

    image: np.ndarray
    """(H, W, 3) uint8 of the task's render camera."""
    predicted: np.ndarray | None
    """(h, w, 3) uint8 frame that the policy expects after its chunk; None before its first plan and without frame
    path."""
    attention: np.ndarray | None
    """(h, w, 3) uint8: where its action tokens attend in the frame read last, mean over layers and heads; None before
    its first plan."""
    steps: int
    """Control steps executed."""
    solved: bool
    """Whether the task was solved after any step."""
    finished: bool
    """Whether it is solved, or out of steps."""
    position: np.ndarray | None
    """(3,) metres: the centre of the task's object; None where none is known."""
    instruction: str
    """What the policy was told."""

    @property
    def status(self) -> str:
        """Step, outcome and place of the object, in words."""
        outcome = ", success" if self.solved else ", out of steps" if self.finished else ""
        where = "" if self.position is None else "; object at {:.1f}, {:.1f}, {:.1f} cm".format(*100 * self.position)
        return f"step {self.steps}{outcome}{where}"


P = ParamSpec("P")


def _in_turn(method: Callable[Concatenate[Live, P], View]) -> Callable[Concatenate[Live, P], View]:
    """Runs a method in the one thread of simulator and policy."""

    @functools.wraps(method)
    def call(self: Live, *args: P.args, **kwargs: P.kwargs) -> View:
        return self._thread.submit(method, self, *args, **kwargs).result()

    return call


class Live:
    """One rollout that goes on by calls from any thread; simulator and policy have a thread of their own.

    Leaving it as a context manager frees the simulation.
    """

    def __init__(self, source: PolicySource, task: str, state: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="simulation")
        self._loaded: tuple[PolicySource, str] | None = None
        self._open: RolloutSession | None = None
        try:
            self.load(source, task, state)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._open is not None:
            self._thread.submit(self._open.env.close).result()
            self._open = None
        self._thread.shutdown()

    @_in_turn
    def load(self, source: PolicySource, task: str, state: int) -> View:
        """Begins anew with a policy, a task and one of its initial states; raises UserError where they do not fit."""
        state = whole("state", state)
        if self._loaded != (source, task):
            following = RolloutSession(resolve_task(task), source)
            if self._open is not None:
                self._open.env.close()
            self._open, self._loaded = following, (source, task)
        initial = self._session.state(state)
        self._session.env.reset([initial])
        self._session.policy.reset(seed=derive_seed(0, initial.env_seed))
        self._predicted: np.ndarray | None = None
        self._attention: np.ndarray | None = None
        self._steps, self._solved = 0, False
        if self._session.spec.name in GOALS:
            self._lying = self._object.pose.sp  # objects lie on the table at the start
        return self._view()

    @_in_turn
    def step(self, count: int = 1) -> View:
        """Executes control steps, until the task is solved at most."""
        policy, env = self._session.policy, self._session.env
        for _ in range(count):
            if self._finished:
                break
            observation = env.observe(with_frame=policy.needs_frame)
            if policy.needs_frame:
                self._plan(observation)
            self._solved |= env.step(policy.act(observation).cpu()).success[0]
            self._steps += 1
        return self._view()

    @_in_turn
    def view(self) -> View:
        """What the page shows now."""
        return self._view()

    @_in_turn
    def put_object(self, x: float, y: float) -> View:
        """Puts the task's object to where a pixel of the simulator's image shows the table."""
        moved, seen = self._object, pixel((x, y))
        return self._move(moved, _meet(*self._ray(*seen), self._lying.p[2]))

    @_in_turn
    def drag_object(self, start: tuple[float, float], end: tuple[float, float]) -> View:
        """Drags the task's object over the table: its point that the pixel `start` (x, y) shows goes to `end`."""
        start, end, moved = pixel(start), pixel(end), self._object
        origin, direction = self._ray(*start)
        centre = moved.pose.sp.p
        if np.linalg.norm(np.cross(centre - origin, direction)) > RADIUS:
            raise UserError("the drag did not begin on the object: press on it, or click where it should be")
        seized = _meet(origin, direction, centre[2]) - centre
        return self._move(moved, _meet(*self._ray(*end), self._lying.p[2]) - seized)

    @property
    def _session(self) -> RolloutSession:
        assert self._open is not None, "nothing is loaded"
        return self._open

    @property
    def _object(self) -> Any:
        """The task's object, as ManiSkill's actor."""
        task = self._session.spec.name
        if task not in GOALS:
            raise UserError(f"{task} has no object that can be moved here; {', '.join(GOALS)} have")
        return self._session.env.simulation.scene.actors[GOALS[task].moved]

    @property
    def _finished(self) -> bool:
        return self._solved or self._steps >= self._session.spec.max_steps

    def _view(self) -> View:
        image = self._session.env.render()[0]
        position = self._object.pose.sp.p if self._session.spec.name in GOALS else None
        return View(
            image,
            self._predicted,
            self._attention,
            self._steps,
            self._solved,
            self._finished,
            position,
            self._session.spec.instruction,
        )

    def _move(self, moved: Any, place: np.ndarray) -> View:
        """Lays an actor at rest, its centre at `place` ((3,) metres; NaN: there is none), turned as at the start."""
        import sapien

        base = self._session.env.simulation.agent.robot.pose.sp.p
        if not np.linalg.norm(place[:2] - base[:2]) <= REACH:  # also what is not a number
            raise UserError("there is no place on the table within the robot's reach")
        moved.set_pose(sapien.Pose(place, self._lying.q))
        moved.set_linear_velocity(np.zeros(3))
        moved.set_angular_velocity(np.zeros(3))
        return self._view()

    def _ray(self, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Where the render camera is, (3,) in metres, and the direction (3,) of length 1 in which it sees a pixel."""
        session = self._session
        camera = session.env.simulation.scene.human_render_cameras[session.spec.camera].get_params()
        extrinsic, intrinsic = camera["extrinsic_cv"][0].numpy(), camera["intrinsic_cv"][0].numpy()
        rotation, translation = extrinsic[:3, :3], extrinsic[:3, 3]  # world to camera, in OpenCV's convention
        ray = rotation.T @ np.linalg.solve(intrinsic, np.array([x, y, 1.0]))
        return -rotation.T @ translation, ray / np.linalg.norm(ray)

    def _plan(self, observation: dict[str, Any]) -> None:
        """Predicts and attends as the next ``act`` will."""
        policy = self._session.policy
        weights = frame_weights(policy.attention(observation), None, None)
        self._attention = _overlay(read_frames(policy, observation)[0], weights[max(weights)])
        if policy.checkpoint.model.config.imagination:
            frames = policy.plan(observation, frames=True).frames
            assert frames is not None
            self._predicted = frames[0].cpu().numpy()


def whole(name: str, value: Any) -> int:
    """A whole number of a request, which may come as a float; raises UserError for anything else."""
    if not fits(value, float) or abs(value) > 2**53 or value != int(value):
        raise UserError(f"{name} is {short(value)}; it must be a whole number")
    return int(value)


def pixel(value: Any) -> tuple[float, float]:
    """A place [x, y] in an image, pixels, of a request; raises UserError for anything else."""
    if not fits(value, tuple[float, float]) or max(map(abs, value)) > FARTHEST:
        raise UserError(f"{short(value)} is no place in the image; it must be [x, y] in pixels")
    return float(value[0]), float(value[1])


def _meet(origin: np.ndarray, direction: np.ndarray, height: float) -> np.ndarray:
    """The point (3,) in metres at which a ray meets the plane z = height; NaN where it never does."""
    distance = (height - origin[2]) / direction[2]
    return origin + (distance if distance > 0 else np.nan) * direction


def _overlay(frame: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) uint8 with weights over it, the largest opaque."""
    import cv2

    share = (smooth(weights, frame.shape) / max(float(weights.max()), 1e-9)).clip(0, 1)[..., None]
    colours = cv2.applyColorMap((255 * share).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.round(frame * (1 - 0.75 * share) + colours * 0.75 * share).astype(np.uint8)
