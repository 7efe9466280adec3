"""`integrations/vla-eval`: what a pull request there would add agrees with this package's own environment."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from par_agent.evaluation.initial_states import protocol_states
from par_agent.simulation.environment import TaskEnvironment
from par_agent.tasks import PAPER_TASKS, PROTOCOL_SEED, PROTOCOL_STATES, TASKS, get_task

pytest.importorskip("vla_eval", reason="needs vla-eval: pip install 'par-agent[vla-eval]'")

ENTRY = Path(__file__).parents[1] / "integrations" / "vla-eval"
SERVER = ENTRY / "src" / "vla_eval" / "model_servers" / "par.py"


def load(path: Path) -> ModuleType:
    """A module from its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entry() -> ModuleType:
    return load(ENTRY / "src" / "vla_eval" / "benchmarks" / "maniskill3" / "benchmark.py")


@pytest.fixture
def benchmark(entry: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark as vla-eval would start it on the CPU, but for the Vulkan driver, which is this machine's."""
    monkeypatch.setattr(entry.ManiSkill3Benchmark, "_render_mode", "cpu")
    made = entry.ManiSkill3Benchmark(tasks=["PushCube-v1"], max_episode_steps=3, frame_every=3)
    yield made
    made.cleanup()


def test_an_episode_is_that_of_the_protocol(benchmark: Any) -> None:
    spec, index = get_task("PushCube"), 2
    ours = TaskEnvironment(spec, "paper")
    (state,) = (state for state in protocol_states(spec, 3) if state.index == index)
    ours.reset([state])
    task = {**benchmark.get_tasks()[0], "episode_idx": index}
    asyncio.run(benchmark.start_episode(task))
    wanted, found = ours.observe(), asyncio.run(benchmark.get_observation())
    np.testing.assert_array_equal(found["images"]["render_camera"], wanted["sensor_data"]["render_camera"]["rgb"][0])
    np.testing.assert_array_equal(found["state"], wanted["agent"]["qpos"][0])
    assert found["task_description"] == spec.instruction
    for step in range(1, 4):
        action = found["state"][:8] + np.float32(0.05)
        ours.step(torch.from_numpy(action[None]))
        asyncio.run(benchmark.apply_action({"actions": action}))
        found = asyncio.run(benchmark.get_observation())
        moved = ours.observe(with_frame=False)["agent"]["qpos"][0]
        np.testing.assert_allclose(found["state"], moved, rtol=0, atol=1e-6)  # ours goes through a stored state
        assert set(found["images"]) == ({"render_camera"} if step == 3 else set())
        assert asyncio.run(benchmark.is_done()) == (step == 3)
    assert asyncio.run(benchmark.get_result()) == {"success": False}
    ours.close()


def test_defaults_are_those_of_the_protocol(entry: ModuleType) -> None:
    benchmark = entry.ManiSkill3Benchmark()
    assert benchmark.first_seed == PROTOCOL_SEED and benchmark.num_seeds == PROTOCOL_STATES
    assert benchmark.max_episode_steps == TASKS["PushCube"].max_steps
    assert {TASKS[name].env_id: TASKS[name].instruction for name in PAPER_TASKS} == entry.INSTRUCTIONS


def test_configurations_name_options_that_exist(entry: ModuleType) -> None:
    from par_agent.vla_eval.server import PARModelServer

    assert load(SERVER).PARModelServer is PARModelServer
    for path in (ENTRY / "configs" / "benchmarks" / "maniskill3").glob("*.yaml"):
        for part in yaml.safe_load(path.read_text())["benchmarks"]:
            assert part["benchmark"] == "vla_eval.benchmarks.maniskill3.benchmark:ManiSkill3Benchmark"
            entry.ManiSkill3Benchmark(**part["params"])
