"""The frozen initial states: no other ones are ever taken for them."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from made_runs import measured
from par_agent.errors import UnavailableError, UserError
from par_agent.evaluation import benchmark_run
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.protocol import (
    CHECKSUMS,
    STATES_FOLDER,
    check_states,
    is_complete,
    load_states,
    protocol_file,
    protocol_seeds,
    save_states,
    states_checksum,
)
from par_agent.evaluation.records import read_run
from par_agent.evaluation.report import write_results
from par_agent.evaluation.rollout_worker import RendererJob, Reply, RolloutJob, RolloutWorker, WorkerSetup
from par_agent.evaluation.run_config import RunConfig
from par_agent.evaluation.statistics import wilson_interval
from par_agent.simulation.environment import InitialState, TaskEnvironment
from par_agent.tasks import ALL_STATES, PROTOCOL_SEED, PROTOCOL_STATES, TASKS, get_task
from par_agent.utils.files import read_json, write_json

PUSH_CUBE = get_task("PushCube")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A copy of PushCube's states and of all checksums."""
    shutil.copy(STATES_FOLDER / CHECKSUMS, tmp_path)
    return Path(shutil.copy(protocol_file(PUSH_CUBE), tmp_path))


def flat(states: list[InitialState]) -> list[tuple[int, int, dict[str, bytes]]]:
    return [
        (s.index, s.env_seed, {f"{k}/{n}": t.numpy().tobytes() for k, g in s.env_state.items() for n, t in g.items()})
        for s in states
    ]


def made(count: int = 2, **changes: torch.Tensor) -> list[InitialState]:
    """States of one cube at rest and one arm of two joints, with some tensors changed."""
    pose = torch.tensor([[0.0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
    tensors = {"cube": pose, "arm": torch.cat([pose, torch.zeros(1, 4)], dim=1), **changes}
    kinds = {"actors": {"cube": tensors["cube"]}, "articulations": {"arm": tensors["arm"]}}
    return [InitialState(i, 50 + i, kinds) for i in range(count)]


@pytest.mark.parametrize("count", [PROTOCOL_STATES, ALL_STATES])
@pytest.mark.parametrize("task", TASKS)
def test_every_tasks_states_are_those_of_the_checksum(task: str, count: int) -> None:
    path = protocol_file(TASKS[task], count)
    assert check_states(path, TASKS[task], protocol_seeds(count)) == states_checksum(path)


@pytest.mark.parametrize("task", TASKS)
def test_the_further_states_follow_the_protocols_which_they_leave_as_they_are(task: str) -> None:
    first, all_states = (load_states(protocol_file(TASKS[task], n), TASKS[task]) for n in (PROTOCOL_STATES, ALL_STATES))
    assert flat(all_states[:PROTOCOL_STATES]) == flat(first)
    assert len({state.env_seed for state in all_states}) == len(all_states) == ALL_STATES
    assert min(state.env_seed for state in all_states) == PROTOCOL_SEED


def test_no_mutation_of_the_states_is_accepted(stored: Path) -> None:
    whole, draw = stored.read_bytes(), random.Random(0)
    for number in range(200):
        content, place = bytearray(whole), draw.randrange(len(whole))
        if number % 4 == 0:
            content[place] ^= 1 << draw.randrange(8)
        elif number % 4 == 1:
            del content[place:]
        elif number % 4 == 2:
            content[place:place] = draw.randbytes(draw.randrange(1, 9))
        else:  # one number of one state, as if it had been written so
            at = len(whole) - 4 * draw.randrange(1, 700)
            content[at : at + 4] = np.float32(draw.choice([np.nan, np.inf, 0.3, -1e30])).tobytes()
        if content == whole:
            continue
        stored.write_bytes(content)
        with pytest.raises(UserError, match="it is damaged or was changed"):
            load_states(stored, PUSH_CUBE)


def test_no_mutation_of_the_checksums_lets_other_states_through(stored: Path) -> None:
    checksums = stored.with_name(CHECKSUMS)
    whole, draw, wanted = checksums.read_bytes(), random.Random(0), flat(load_states(stored, PUSH_CUBE))
    for _ in range(200):
        content, place = bytearray(whole), draw.randrange(len(whole))
        content[place : place + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        checksums.write_bytes(content)
        try:
            assert flat(load_states(stored, PUSH_CUBE)) == wanted
        except UserError:
            continue


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cube": torch.full((1, 13), torch.nan)}, "actors/cube has numbers that are not finite"),
        ({"cube": torch.zeros(1, 13)}, "actors/cube has quaternions that are not of length 1"),
        ({"cube": torch.ones(1, 14)}, r"actors/cube is float32 \(1, 14\)"),
        ({"cube": torch.ones(1, 13, dtype=torch.float64)}, "actors/cube is float64"),
        ({"arm": torch.ones(1, 16)}, r"articulations/arm is float32 \(1, 16\)"),
        ({"arm": torch.ones(1, 1, 17)}, r"articulations/arm is float32 \(1, 1, 17\)"),
    ],
)
def test_states_of_other_shapes_or_not_finite_are_never_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        save_states(tmp_path / "a.safetensors", PUSH_CUBE, made(**changes))
    assert not list(tmp_path.iterdir())


def test_states_that_are_signed_and_yet_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for tensors, metadata in (
        ({"actors/cube": torch.full((1, 13), torch.nan)}, {"first_seed": "5", "count": "1"}),
        ({"actors/cube": torch.ones(3, 13)}, {"first_seed": "5", "count": "2"}),
        ({"cube": torch.ones(1, 13)}, {"first_seed": "5", "count": "1"}),
        ({"actors/cube": torch.ones(1, 13)}, {"first_seed": "five", "count": "1"}),
        ({"actors/cube": torch.ones(1, 13)}, {"count": "1"}),
        ({"actors/cube": torch.ones(1, 13)}, {"first_seed": "5", "count": "0"}),
    ):
        save_file(tensors, path, metadata={"env_id": "PushCube-v1", **metadata})
        write_json(tmp_path / CHECKSUMS, {path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
        with pytest.raises(UserError, match=r"holds no initial states|is damaged"):
            load_states(path, PUSH_CUBE)


def test_states_of_other_seeds_are_refused(tmp_path: Path) -> None:
    save_states(tmp_path / "a.safetensors", PUSH_CUBE, made(2))
    assert check_states(tmp_path / "a.safetensors", PUSH_CUBE, range(50, 52))
    for seeds in (range(51, 53), range(50, 53)):
        with pytest.raises(UserError, match="holds states of the seeds 50 to 51; expected"):
            check_states(tmp_path / "a.safetensors", PUSH_CUBE, seeds)


def test_a_file_whose_checksum_was_never_written_is_incomplete(tmp_path: Path) -> None:
    save_states(tmp_path / "a.safetensors", PUSH_CUBE, made(2))
    assert is_complete(tmp_path / "a.safetensors")
    write_json(tmp_path / CHECKSUMS, {})
    assert not is_complete(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"checksums.json has no SHA-256 of a.safetensors"):
        load_states(tmp_path / "a.safetensors", PUSH_CUBE)


def test_states_of_other_objects_than_the_scenes_are_refused() -> None:
    env = TaskEnvironment(PUSH_CUBE, "paper")
    (state,) = load_states(protocol_file(PUSH_CUBE), PUSH_CUBE)[:1]
    del state.env_state["actors"]["cube"]
    with pytest.raises(UserError, match="do not fit PushCube-v1: actors/cube"):
        env.reset([state])
    env.close()


def config(out: Path, state_seed: int | None = None) -> RunConfig:
    source = PolicySource("harness_policies:PlainResetPolicy")
    return RunConfig(
        tasks=("harness_task:NUDGE_CUBE",), policy=source, out=out, states=1, policy_seeds=1, state_seed=state_seed
    )


def test_a_run_begins_with_no_changed_states_and_its_name_tells_them_apart(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("par_agent.evaluation.protocol.STATES_FOLDER", tmp_path)
    asked = RunConfig(
        tasks=("PushCube",), policy=PolicySource("harness_policies:PlainResetPolicy"), out=tmp_path / "out"
    )
    first = BenchmarkRun(asked)
    assert first.info.identity["initial_states"] == {"PushCube.safetensors": states_checksum(stored)}
    moved = load_states(stored, PUSH_CUBE)
    for state in moved:
        state.env_state["actors"]["cube"][0, 0] += 0.01
    save_states(stored, PUSH_CUBE, moved)
    assert BenchmarkRun(asked).folder != first.folder
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(UserError, match="it is damaged or was changed"):
        BenchmarkRun(asked)
    assert not (tmp_path / "out").exists()


def test_a_run_of_further_states_has_a_folder_of_its_own_and_says_which_rollouts_are_the_protocols(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_run, "open_runner", lambda *_: nullcontext(StandInRunner()))
    source = PolicySource("harness_policies:PlainResetPolicy")
    asked = RunConfig(tasks=("PushCube",), policy=source, out=tmp_path, policy_seeds=1, states=ALL_STATES)
    benchmark = BenchmarkRun(asked)
    assert benchmark.info.identity["initial_states"] == {
        "PushCube-125.safetensors": states_checksum(protocol_file(PUSH_CUBE, ALL_STATES))
    }
    assert benchmark.folder != BenchmarkRun(replace(asked, states=PROTOCOL_STATES)).folder
    assert benchmark.folder == BenchmarkRun(replace(asked, states=30)).folder
    records = benchmark.run(lambda found: None, lambda record: None)
    assert [record["env_seed"] for record in records] == list(range(PROTOCOL_SEED, PROTOCOL_SEED + ALL_STATES))
    assert [record["protocol"] for record in records] == [True] * PROTOCOL_STATES + [False] * 100
    assert read_run(benchmark.folder)[1] == records
    (result,) = write_results(benchmark.info, records)
    assert result.wilson == wilson_interval(1, ALL_STATES)
    page = (benchmark.folder / "results.md").read_text()
    assert "the protocol's 25 initial states and 100 further ones, 1 policy seed" in page


class StandInRunner:
    """Solves everything at once."""

    workers = 1

    def run(self, jobs: list[Any], *, yield_lost: bool = False) -> Iterator[tuple[Any, Any]]:
        for job in jobs:
            if isinstance(job, RendererJob):
                yield job, "none"
            else:
                yield from ((job, Reply(state, measured(solved_after=9))) for state in job.states)


def test_a_run_that_made_its_states_goes_on_with_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_run, "open_runner", lambda *_: nullcontext(StandInRunner()))

    def run() -> list[dict[str, Any]]:
        return BenchmarkRun(config(tmp_path, state_seed=50)).run(lambda found: None, lambda record: None)

    benchmark = BenchmarkRun(config(tmp_path, state_seed=50))
    (spec,), (task,) = benchmark.info.specs.values(), benchmark.info.specs
    states = benchmark.info.states_file(task)
    save_states(states, spec, made(1))
    assert len(run()) == 1
    assert read_json(benchmark.folder / "run.json")["made_states"] == {states.name: states_checksum(states)}
    assert len(run()) == 1
    pose = made()[0].env_state["actors"]["cube"] + torch.eye(1, 13)
    save_states(states, spec, made(1, cube=pose))
    with pytest.raises(UserError, match=r"was begun with other initial states \(NudgeCube-1.safetensors\)"):
        run()
    states.write_bytes(states.read_bytes()[:-1])
    with pytest.raises(UserError, match="it is damaged or was changed"):
        run()


def test_states_that_change_under_a_worker_end_the_run_and_are_no_failure(stored: Path) -> None:
    setup = WorkerSetup(RunConfig(tasks=("PushCube",), policy=PolicySource("harness_policies:PlainResetPolicy")))
    worker = RolloutWorker(setup, stored.parent)
    with pytest.raises(UnavailableError, match="it is damaged or was changed"):
        list(worker(RolloutJob("PushCube", stored, stored.read_bytes(), "0" * 64, (0,), 0)))
