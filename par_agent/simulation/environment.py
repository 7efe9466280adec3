"""A simulated task that renders only when it is asked to, and starts exactly where it is told to.

The ``cpu`` backend simulates one environment; the ``gpu`` backend is ManiSkill's vectorised simulation of many. Letter:
B environments.

Two facts shape this file. A rendered image costs as much as some fifty control steps, so stepping and observing are
separate calls. And PhysX keeps contact data between episodes, so that a replayed episode can end differently in a scene
that has been used before; the scene is therefore rebuilt on every reset, which costs 0.2 s and makes a rollout depend
on nothing but its initial state and its actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from par_agent.errors import UserError
from par_agent.simulation.episode_variation import EpisodeVariation, parts_for
from par_agent.simulation.observation_wrapper import RenderCameraObservation, check_simulation, paper_observation
from par_agent.tasks import TRACKS, UNKNOWN_CONTROLLER, TaskSpec, Track, check_track, find_task

if TYPE_CHECKING:
    import numpy as np
    import torch

    from par_agent.policy.par_policy import PARPolicy


BACKENDS: dict[str, dict[str, Any]] = {
    "cpu": {"sim_backend": "physx_cpu", "render_backend": "cpu"},
    "gpu": {"sim_backend": "physx_cuda", "render_backend": "gpu"},
}
"""ManiSkill's options of each backend."""


@dataclass(frozen=True)
class InitialState:
    """Where a rollout starts."""

    index: int
    """Position in its file: 0..24 for the protocol."""
    env_seed: int
    """Environment seed that made the state."""
    env_state: dict[str, dict[str, torch.Tensor]] = field(repr=False)
    """ManiSkill's own state dictionary: ``{"actors": {name: (1, 13)}, "articulations": {name: (1, n)}}``."""


@dataclass(frozen=True)
class StepResult:
    """Result of one control step, per environment."""

    success: tuple[bool, ...]
    """(B) whether the task is solved after the step."""
    reward: tuple[float, ...] | None
    """(B) ManiSkill's normalised dense reward, or its sparse one; None where the task has neither."""


def check_backend(backend: str, specs: Sequence[TaskSpec]) -> None:
    """Checks that tasks can be simulated by a backend, here and now."""
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}; known backends: {', '.join(BACKENDS)}")
    if backend == "cpu":
        return
    for spec in specs:
        if not spec.state_is_complete:
            raise UserError(
                f"task {spec.name} keeps what it draws at a reset outside of the simulator's state, and the GPU draws "
                "other numbers: use --backend cpu"
            )
    import torch

    if not torch.cuda.is_available():
        raise UserError("--backend gpu needs an NVIDIA GPU, and torch finds none; use --backend cpu")


def open_environment(env_id: str, **options: Any) -> Any:
    """ManiSkill's environment as ``gym.make`` gives it, without the warnings about this machine."""
    import gymnasium as gym
    import mani_skill.envs  # noqa: F401  (registers ManiSkill's environments)
    from mani_skill.utils.logging_utils import logger

    logger.setLevel("ERROR")  # it warns of missing CUDA and of not being a git checkout
    return gym.make(env_id, **options)


def make_simulation(
    spec: TaskSpec,
    *,
    obs_mode: str = "none",
    backend: str = "cpu",
    num_envs: int = 1,
    shader: str = "minimal",
    **options: Any,
) -> Any:
    """Makes the ManiSkill environment of a task.

    ``options`` go to ``gym.make`` in place of those that follow from the rest. The ``cpu`` backend takes one
    environment; ``shader`` is ManiSkill's shader pack, of all cameras.
    """
    import gymnasium as gym

    made: dict[str, Any] = {
        "num_envs": num_envs,
        "obs_mode": obs_mode,
        "control_mode": spec.control_mode,
        "render_mode": "rgb_array",
        "human_render_camera_configs": {"shader_pack": shader},
        "sensor_configs": {"shader_pack": shader},
        "max_episode_steps": spec.max_steps,
        **BACKENDS[backend],
    }
    try:
        return open_environment(spec.env_id, **(made | options))
    except (gym.error.UnregisteredEnv, gym.error.NameNotFound) as error:
        raise UserError(f"task {spec.name}: environment {spec.env_id!r} is not registered ({error})") from None
    except ImportError as error:
        raise UserError(
            f"task {spec.name} needs a package that is not installed: {error}; `par-agent doctor` says how to get it"
        ) from None
    except (KeyError, AttributeError, AssertionError) as error:
        raise UserError(f"task {spec.name}: {spec.env_id} cannot be made as the task says: {error!r}") from error


def make_env(
    task: str | TaskSpec,
    policy: PARPolicy | Track = "paper",
    *,
    num_envs: int = 1,
    backend: str = "cpu",
    shader: str = "minimal",
    evaluation: bool = False,
    **options: Any,
) -> Any:
    """Makes a ManiSkill environment that fits a policy: its cameras and image size, its controller.

        policy = PARPolicy.from_pretrained("par-mini", task="PushCube")
        env = make_env("PushCube", policy)
        observation, _ = env.reset(seed=0)
        action = policy.act(observation)

    Where the policy sees through the task's render camera, the environment is wrapped in ``RenderCameraObservation``;
    else it observes itself, with ``obs_mode="rgb"``. A policy that was given no instruction takes the task's.

    Args:
        task: a name or id of :data:`par_agent.tasks.TASKS`, any other environment id, or a task of your own.
        policy: what is to act in it; or a track, one of :data:`par_agent.tasks.TRACKS`, for any policy that sees the
            task as that track shows it. Then every step is rendered.
        num_envs: environments simulated at once; the ``cpu`` backend takes one.
        backend: one of :data:`BACKENDS`.
        shader: ManiSkill's shader pack, of all cameras; ``minimal`` is what the bundled policies were trained with.
        evaluation: follows ManiSkill's conventions for evaluation: every reset builds the scene anew
            (``reconfiguration_freq=1``), success does not end an episode, and a ``ManiSkillVectorEnv`` around it all
            starts the next one and tells ``success_once``, ``success_at_end`` and ``return`` in
            ``info["final_info"]["episode"]``. Then call ``policy.reset(env_idx=truncated)``.
        **options: for ``gym.make``, for example ``max_episode_steps`` (the task's limit unless told) or ``robot_uids``.

    Raises:
        UserError: no such environment, no renderer or GPU, or the policy does not fit it.
    """
    spec = task if isinstance(task, TaskSpec) else find_task(task) or TaskSpec(task, "")
    if num_envs < 1 or (backend == "cpu" and num_envs > 1):
        raise UserError(f"num_envs is {num_envs}; it must be 1, or more with backend='gpu'")
    rendered = policy == "paper"
    if not isinstance(policy, str) or policy not in TRACKS:
        transforms = getattr(policy, "transforms", None)
        if transforms is None:
            raise UserError(
                "make_env needs a policy that knows its camera, such as PARPolicy, or a track "
                f"({' or '.join(TRACKS)}); got {policy!r}"
            )
        if transforms.control_mode != UNKNOWN_CONTROLLER:
            spec = replace(spec, control_mode=transforms.control_mode)
        rendered, size = transforms.cameras == (spec.camera,), transforms.image_size
        if size is not None:
            configs = {"shader_pack": shader, "height": size[0], "width": size[1]}
            options = {"human_render_camera_configs" if rendered else "sensor_configs": configs, **options}
    check_backend(backend, [spec])
    if evaluation:
        options = {"reconfiguration_freq": 1, **options}
    obs_mode = "none" if rendered else "rgb"
    env = make_simulation(spec, obs_mode=obs_mode, backend=backend, num_envs=num_envs, shader=shader, **options)
    try:
        return _fitted(env, spec, policy, rendered=rendered, evaluation=evaluation)
    except BaseException:
        env.close()
        raise


def _fitted(env: Any, spec: TaskSpec, policy: PARPolicy | Track, *, rendered: bool, evaluation: bool) -> Any:
    """An environment in the wrappers that :func:`make_env` promises, checked against the policy."""
    agent = None if isinstance(policy, str) else policy
    if rendered:
        env = RenderCameraObservation(env, agent, camera=spec.camera)
    else:
        check_simulation(agent, env)
    if spec.instruction and agent is not None and hasattr(agent, "offer_instruction"):
        agent.offer_instruction(spec.instruction)
    if evaluation:
        from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

        return ManiSkillVectorEnv(env, ignore_terminations=True, record_metrics=True)
    return env


class TaskEnvironment:
    """The simulation of one task, observed as one track says.

    Args:
        spec: the task; its action size, controller, joints and cameras are checked against the environment's.
        track: one of :data:`par_agent.tasks.TRACKS`.
        backend: one of :data:`BACKENDS`.
        num_envs: environments simulated at once (B); the ``cpu`` backend takes one.
        variation: ``NAME`` or ``NAME=STRENGTH`` of :data:`par_agent.simulation.variations.VARIATIONS`.
    """

    def __init__(
        self, spec: TaskSpec, track: str, *, backend: str = "cpu", num_envs: int = 1, variation: str = "none"
    ) -> None:
        check_backend(backend, [spec])
        parts = parts_for(spec, variation, backend)
        check_track(track)
        self.spec = spec
        self.track = track
        self.num_envs = num_envs
        obs_mode = "none" if track == "paper" else "rgb"
        shader = next((part.shader for part in parts if part.shader != "minimal"), "minimal")
        self._env = make_simulation(spec, obs_mode=obs_mode, backend=backend, num_envs=num_envs, shader=shader)
        self.simulation = self._env.unwrapped
        """ManiSkill's own environment, to read robots and objects from."""
        self._get_native_observation = self.simulation.get_obs
        # Both reset() and step() end with get_obs(), which would render the sensor cameras: observe() calls it instead.
        self.simulation.get_obs = lambda info=None, unflattened=False: {}
        self.info: dict[str, Any] = {}
        """What ManiSkill's evaluation says of the current state: tensors (B) by name."""
        self._steps = 0
        """Control steps executed since the reset."""
        self._pending: deque[torch.Tensor | None] = deque()
        """Delayed actions, oldest first; None: hold still."""
        _check_environment(self.simulation, spec, track)
        self._variation = EpisodeVariation(parts, self.simulation, spec, num_envs)

    @property
    def instructions(self) -> tuple[str, ...] | None:
        """(B) instructions of the present episodes, where the variation words them anew; None: the task's own."""
        return self._variation.instructions

    def check(self, policy: Any) -> None:
        """Raises UserError for a policy that was trained on another simulation, or cannot be told what the task is."""
        check_simulation(policy, self.simulation)
        self._variation.check(policy)

    def reset(self, states: Sequence[InitialState]) -> None:
        """Rebuilds the scene and puts every environment into an initial state.

        The environment's own reset with the same seeds comes first: it makes what the simulator's state does
        not hold, such as PegInsertionSide's peg of random length. States (B) are one per environment.
        """
        import torch

        seeds = [state.env_seed for state in states]
        together = {
            kind: {name: torch.cat([state.env_state[kind][name] for state in states]) for name in group}
            for kind, group in states[0].env_state.items()
        }
        self._variation.begin(seeds)
        self._env.reset(seed=seeds, options={"reconfigure": True})
        _check_objects(self.spec, together, self.simulation.get_state_dict())
        self._variation.place(together)
        _, self.info = self._env.reset(seed=seeds, options={"reset_to_env_states": {"env_states": together}})
        self._variation.show()  # now: PegInsertionSide builds its scene at every reset
        self._pending = deque([None] * self._variation.delay)
        self._steps = 0

    def observe(self, *, with_frame: bool = True) -> dict[str, Any]:
        """Observes the current state.

        Returns:
            ``paper``: ``{"agent": {"qpos": (B, joints) float32, radians}, "sensor_data": {camera: {"rgb":
            (B, H, W, 3) uint8}}}``, tensors on the simulation's device. ``native``: what ManiSkill returns for
            ``obs_mode="rgb"``. Without a frame, no image is rendered and ``sensor_data`` is absent.
        """
        if self.track == "paper":
            observation = paper_observation(self.simulation, self.spec.camera, with_frame=with_frame)
        elif with_frame:
            observation = self._get_native_observation(self.info)
        else:
            observation = self.simulation._get_obs_state_dict(self.info)
        return self._variation.observed(observation, self._steps)

    def step(self, action: torch.Tensor, *, planned: bool = False) -> StepResult:
        """Executes actions (B, action_size) float32, in the units of the task's controller, for one control step.

        ``planned``: the policy looked at the present frame and planned. The variation ``chunk_latency`` lets time pass
        then, before the action, in which the robot goes on to its last targets.
        """
        if not self._steps:
            self._variation.look_again(self.simulation)
        for waited in range(self._variation.latency if planned else 0):
            if not self._steps and not waited:
                _hold_still(self.simulation)
            self._env.step(None)
        self._steps += 1
        self._pending.append(action)
        due = self._pending.popleft()
        if due is None:
            _hold_still(self.simulation)
        _, reward, _, _, self.info = self._env.step(due)
        success = tuple(bool(value) for value in self.info["success"].tolist())
        if self.simulation.reward_mode == "none":
            return StepResult(success, None)
        return StepResult(success, tuple(float(value) for value in reward.tolist()))

    def render(self) -> np.ndarray:
        """The images of the task's render camera: (B, H, W, 3) uint8."""
        images: np.ndarray = self.simulation.render_rgb_array(self.spec.camera).cpu().numpy()
        return images

    def close(self) -> None:
        """Frees the simulation."""
        self._variation.restore()
        self._env.close()


def _check_objects(spec: TaskSpec, states: Any, scene: Any) -> None:
    """Compares the objects of initial states with a scene's; ManiSkill would not move objects that a state lacks."""
    found, expected = (
        {f"{kind}/{name}": tuple(tensor.shape) for kind, group in state.items() for name, tensor in group.items()}
        for state in (states, scene)
    )
    if differing := sorted(name for name in {**found, **expected} if found.get(name) != expected.get(name)):
        raise UserError(
            f"the initial states do not fit {spec.env_id}: {', '.join(differing)} differ in size or are absent"
        )


def _hold_still(base_env: Any) -> None:
    """Makes the joints hold their present positions; after a reset their controllers aim elsewhere."""
    robot = base_env.agent.robot
    robot.set_joint_drive_targets(robot.get_qpos(), robot.active_joints)
    if base_env.gpu_sim_enabled:  # a step without action does not hand targets over
        base_env.scene.px.gpu_apply_articulation_target_position()


def _check_environment(base_env: Any, spec: TaskSpec, track: str) -> None:
    """Compares every dimension and convention that the task declares with the environment's own."""

    def expect(what: str, declared: Any, found: Any) -> None:
        if declared != found:
            raise UserError(
                f"task {spec.name} declares {what} {declared}, but {spec.env_id} has {found}: correct the TaskSpec"
            )

    expect("action size", (spec.action_size,), tuple(base_env.single_action_space.shape))
    expect("control mode", spec.control_mode, base_env.control_mode)
    expect("joint count", spec.joint_count, base_env.agent.robot.get_qpos().shape[-1])
    if track == "native":
        expect("sensor cameras", sorted(spec.sensor_cameras), sorted(base_env.scene.sensors))
        return
    cameras = base_env.scene.human_render_cameras
    if spec.camera not in cameras:
        known = ", ".join(cameras) or "none"
        raise UserError(f"task {spec.name}: {spec.env_id} has no render camera {spec.camera!r}; it has: {known}")
    config = cameras[spec.camera].config
    expect(f"image size of {spec.camera}", tuple(spec.image_size), (config.height, config.width))
