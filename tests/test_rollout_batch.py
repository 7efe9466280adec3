"""Several rollouts stepped together, as the GPU backend does it: a stand-in for the simulator, the real loop."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from harness_policies import CountingPolicy
from made_runs import measured
from par_agent.errors import UserError
from par_agent.evaluation import benchmark_run
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.protocol import load_states, protocol_file, states_checksum
from par_agent.evaluation.rollout import roll_out
from par_agent.evaluation.rollout_worker import RendererJob, Reply, RolloutJob, RolloutWorker, WorkerSetup
from par_agent.evaluation.run_config import RunConfig
from par_agent.evaluation.stages import STAGES, StageObserver
from par_agent.jobs.runner import JobRunner
from par_agent.simulation import environment
from par_agent.simulation.environment import InitialState, StepResult, TaskEnvironment
from par_agent.tasks import TASKS, TaskSpec, get_task

SPEC = TaskSpec("PushCube-v1", "Push.", max_steps=10)
NEVER = 99


class StandInEnvironment:
    """Row `i` is solved after `solved_after[i]` control steps."""

    spec = SPEC
    instructions = None

    def __init__(self, solved_after: list[int]) -> None:
        self.solved_after = solved_after
        self.cube = SimpleNamespace(pose=SimpleNamespace(p=torch.zeros(len(solved_after), 3)))
        self.simulation = SimpleNamespace(
            scene=SimpleNamespace(actors={"cube": self.cube}),
            agent=SimpleNamespace(tcp_pos=torch.ones(len(solved_after), 3)),
        )
        self.info: dict[str, torch.Tensor] = {}

    def reset(self, states: list[InitialState]) -> None:
        self.steps = 0
        self.seeds = [state.env_seed for state in states]

    def observe(self, *, with_frame: bool = True) -> dict[str, Any]:
        return {"agent": {"qpos": torch.zeros(len(self.seeds), 9)}}

    def step(self, action: torch.Tensor, *, planned: bool = False) -> StepResult:
        self.steps += 1
        solved = tuple(self.steps == after for after in self.solved_after)  # and not any more one step later
        self.info = {"success": torch.tensor(solved)}
        return StepResult(solved, tuple(float(row) for row in range(len(self.seeds))))

    def render(self) -> np.ndarray:
        return np.full((len(self.seeds), 32, 48, 3), 20 * self.steps, np.uint8)

    def check(self, policy: Any) -> None:
        """Any policy will do."""

    def close(self) -> None:
        """Nothing to free."""


STATES = [InitialState(index, 100 + index, {}) for index in range(3)]


def roll(env: Any, policy: Any, **arguments: Any) -> list[tuple[int, dict[str, Any]]]:
    return list(roll_out(env, policy, STATES, 0, **arguments))


def test_every_row_ends_when_it_is_solved_and_its_record_is_its_own() -> None:
    rollouts = roll(StandInEnvironment([6, 3, NEVER]), CountingPolicy())
    assert [position for position, _ in rollouts] == [1, 0, 2]  # in the order in which they end
    records = dict(rollouts)
    assert [records[row]["steps"] for row in range(3)] == [6, 3, 10]
    assert [records[row]["steps_to_success"] for row in range(3)] == [6, 3, None]
    assert [records[row]["success_once"] for row in range(3)] == [True, True, False]
    assert [records[row]["reward"] for row in range(3)] == [0.0, 3.0, 20.0]
    assert [records[row]["renders"] for row in range(3)] == [2, 1, 3]
    actions = [(1 + torch.full((8,), 0.01 * step)).numpy() for step in (1, 2, 3)]
    expected = hashlib.sha256(b"".join(action.tobytes() for action in actions)).hexdigest()
    assert records[1]["actions_sha256"] == expected[:16]


def test_run_to_the_end_all_rows_take_all_steps_and_success_at_the_end_is_told_apart() -> None:
    records = dict(roll(StandInEnvironment([6, 10, NEVER]), CountingPolicy(), after_success=math.inf))
    assert [records[row]["steps"] for row in range(3)] == [10, 10, 10]
    assert [records[row]["success_once"] for row in range(3)] == [True, True, False]
    assert [records[row]["success_at_end"] for row in range(3)] == [False, True, False]


def test_some_steps_after_its_first_success_a_rollout_ends_at_the_latest_at_the_step_limit() -> None:
    records = dict(roll(StandInEnvironment([5, 8, NEVER]), CountingPolicy(), after_success=4))
    assert [records[row]["steps"] for row in range(3)] == [9, 10, 10]
    assert [records[row]["steps_to_success"] for row in range(3)] == [5, 8, None]
    assert [records[row]["success_at_end"] for row in range(3)] == [False, False, False]


def test_a_stage_counts_from_where_it_first_holds_and_until_its_rollout_ends() -> None:
    env = StandInEnvironment([NEVER, NEVER])
    env.spec = get_task("PickCube")
    observer, cube, gripper = StageObserver(env), env.cube.pose.p, env.simulation.agent.tcp_pos
    observer.after_reset()
    assert observer.record_fields(0) == {}

    def step(held: list[bool], placed: list[bool]) -> None:
        env.info = {"is_grasped": torch.tensor(held), "is_obj_placed": torch.tensor(placed)}
        observer.after_step(torch.zeros(2, 8), StepResult((False, False), None))

    cube[1, 2] = 0.3  # thrown, not lifted
    step([False, False], [False, True])
    assert observer.record_fields(0) == dict.fromkeys(STAGES, False)
    assert observer.record_fields(1) == dict.fromkeys(STAGES, False) | {"placed": True}
    gripper[0] = torch.tensor([0.0, 0.03, 0.03])
    step([True, False], [False, False])
    assert observer.record_fields(0) == {"reached": True, "grasped": True, "lifted": False, "placed": False}
    gripper[0], cube[0, 2] = 1.0, 0.02
    step([True, False], [False, False])
    assert observer.record_fields(0) == dict.fromkeys(STAGES, True) | {"placed": False}
    observer.after_reset()
    step([False, False], [False, False])
    assert observer.record_fields(1) == dict.fromkeys(STAGES, False)


def test_a_policy_that_does_not_act_for_all_rows_is_an_error() -> None:
    with pytest.raises(UserError, match=r"actions of shape \(1, 8\); expected \(3, 8\)"):
        roll(StandInEnvironment([1, 1, 1]), CountingPolicy(rows=1))


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_actions_that_are_no_real_numbers_are_an_error(dtype: torch.dtype) -> None:
    policy = CountingPolicy()
    act = policy.act
    policy.act = lambda obs: act(obs).to(dtype)
    with pytest.raises(UserError, match=f"the policy returned actions of type {dtype}; expected float32"):
        roll(StandInEnvironment([1, 1, 1]), policy)


@pytest.fixture
def replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[int, Reply]]:
    """Has a worker, with the stand-in for the simulator, roll states 4, 5 and 6 out; the replies by state."""
    monkeypatch.setattr(environment, "TaskEnvironment", lambda *_, **options: StandInEnvironment([6, 3, NEVER]))

    def do(videos: tuple[tuple[int, Path], ...] = (), **options: Any) -> dict[int, Reply]:
        policy = PolicySource("harness_policies:CountingPolicy", options)
        worker = RolloutWorker(
            WorkerSetup(RunConfig(tasks=("PushCube",), policy=policy, backend="gpu", states=3)), tmp_path
        )
        file = protocol_file(get_task("PushCube"))
        checksum = states_checksum(file)
        job = RolloutJob("PushCube", file, file.read_bytes(), checksum, (4, 5, 6), 0, videos=videos)
        return {reply.state: reply for reply in worker(job)}

    return do


def test_an_exception_ends_the_rollouts_that_go_on_and_no_other(replies: Callable[..., dict[int, Reply]]) -> None:
    found = replies(fail_at=5)
    failure = "ArithmeticError: made to fail"
    assert [found[state].error for state in (4, 5, 6)] == [failure, None, failure]
    assert found[5].fields is not None and found[5].fields["success_once"]


def test_each_rollout_has_its_own_video_and_a_failed_one_leaves_no_file(
    replies: Callable[..., dict[int, Reply]], tmp_path: Path
) -> None:
    videos = tuple((state, Path("videos", f"{state}.mp4")) for state in (5, 6))
    assert replies(videos, fail_at=9)[5].warning is None
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["5.mp4"]
    assert imageio.imread(tmp_path / "videos" / "5.mp4").shape == (4, 32, 48, 3)  # the start and three steps


def test_a_video_that_cannot_be_written_is_a_warning(replies: Callable[..., dict[int, Reply]], tmp_path: Path) -> None:
    (tmp_path / "videos").write_text("in the way")
    found = replies(((5, Path("videos", "5.mp4")),))
    assert found[5].warning is not None and "5.mp4 was not saved" in found[5].warning
    assert found[5].fields is not None and found[5].fields["success_once"]


def config(tmp_path: Path, **arguments: Any) -> RunConfig:
    options = {"tasks": ("PushCube", "PickCube"), "states": 25, "policy_seeds": 2, "backend": "gpu", **arguments}
    return RunConfig(policy=PolicySource("harness_policies:PlainResetPolicy"), out=tmp_path, **options)


class StandInRunner:
    """Replies to every job at once; ends like a killed command after so many rollouts."""

    workers = 1
    jobs: ClassVar[list[RolloutJob]] = []
    rollouts_left = 10_000

    @contextmanager
    def __call__(self, prepare: Any, setup: WorkerSetup, folder: Path, workers: int, *_: Any) -> Iterator[JobRunner]:
        assert (setup.config.backend, setup.config.num_envs, workers) == ("gpu", 25, 1)
        yield self

    def run(self, jobs: list[Any], *, yield_lost: bool = False) -> Iterator[tuple[Any, Any]]:
        for job in jobs:
            if isinstance(job, RendererJob):
                yield job, "none"
                continue
            self.jobs.append(job)
            for state in job.states:
                StandInRunner.rollouts_left -= 1
                if StandInRunner.rollouts_left < 0:
                    raise KeyboardInterrupt
                yield job, Reply(state, measured(solved_after=len(self.jobs)))


def test_the_gpu_backend_rolls_all_states_of_a_seed_out_at_once_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark_run, "open_runner", StandInRunner())
    run = BenchmarkRun(config(tmp_path, video=0))
    assert run.folder != BenchmarkRun(config(tmp_path, backend="cpu")).folder
    StandInRunner.jobs.clear()
    StandInRunner.rollouts_left = 60
    with pytest.raises(KeyboardInterrupt):
        run.run(lambda found: None, lambda record: None)
    StandInRunner.rollouts_left = 10_000
    started_with: list[int] = []
    records = run.run(lambda found: started_with.append(len(found)), lambda record: None)
    order = [("PushCube", 0), ("PickCube", 0), ("PushCube", 1), ("PickCube", 1)]
    assert [(job.task, job.policy_seed) for job in StandInRunner.jobs] == [*order[:3], *order[2:]]
    assert {job.states for job in StandInRunner.jobs} == {tuple(range(25))}
    assert started_with == [60] and len(records) == 100
    # What was on disk of the batch that was cut off stayed as it was; the rest came from its repetition.
    cut_off = [record for record in records if (record["task"], record["policy_seed"]) == ("PushCube", 1)]
    assert [record["steps"] for record in cut_off] == [3] * 10 + [4] * 15


def test_the_gpu_backend_needs_a_gpu_and_a_task_that_starts_from_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--backend gpu needs an NVIDIA GPU"):
        BenchmarkRun(config(tmp_path))
    with pytest.raises(UserError, match="task PlugCharger keeps what it draws"):
        BenchmarkRun(config(tmp_path, tasks=("PlugCharger",)))
    with pytest.raises(UserError, match="backend is 'tpu'; expected 'cpu' or 'gpu'"):
        BenchmarkRun(config(tmp_path, backend="tpu"))
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("track", ["paper", "native"])
@pytest.mark.parametrize("task", [name for name, spec in TASKS.items() if spec.state_is_complete])
def test_on_a_gpu_every_environment_starts_from_its_stored_state(task: str, track: str) -> None:
    spec = get_task(task)
    states = load_states(protocol_file(spec), spec)[:5]
    env = TaskEnvironment(spec, track, backend="gpu", num_envs=5)
    env.reset(states)
    found = env.simulation.get_state_dict()
    for kind, group in states[0].env_state.items():
        for name in group:
            stored = torch.cat([state.env_state[kind][name] for state in states])
            torch.testing.assert_close(found[kind][name].cpu(), stored, rtol=0, atol=1e-4, msg=f"{kind}/{name}")
    observation = env.observe()
    assert observation["agent"]["qpos"].shape == (5, spec.joint_count)
    if track == "paper":
        images = observation["sensor_data"][spec.camera]["rgb"]
        assert images.shape == (5, *spec.image_size, 3) and len({image.float().mean().item() for image in images}) > 1
    actions = torch.cat([observation["agent"]["qpos"][:, : spec.action_size - 1].cpu(), torch.ones(5, 1)], dim=1)
    assert len(env.step(actions).success) == 5
    env.close()


@pytest.mark.gpu
def test_on_a_gpu_a_run_is_recorded_like_any_other(tmp_path: Path) -> None:
    arguments = {"states": 3, "policy_seeds": 1, "video": 1, "tasks": ("harness_task:NUDGE_CUBE",)}
    policy = PolicySource("harness_speed:SwayPolicy")
    run = BenchmarkRun(RunConfig(policy=policy, out=tmp_path, backend="gpu", **arguments))
    records = run.run(lambda found: None, lambda record: None)
    assert [(record["state"], record["steps"], record["error"]) for record in records] == [
        (state, 12, None) for state in range(3)
    ]
    assert run.info.video_file("NudgeCube", 0, 0).exists()
