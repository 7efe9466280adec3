"""vla-eval, the real package, end to end: servers in processes of their own, rolled out by both harnesses."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from par_agent.cli import main

vla_eval = pytest.importorskip("vla_eval", reason="needs vla-eval: pip install 'par-agent[vla-eval]'")

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "benchmarks" / "vla-eval"
NUDGE = "harness_task:NUDGE_CUBE"
"""A task of 12 steps."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def served(command: list[Any], address: str, **options: Any) -> Iterator[str]:
    """Runs a model server and gives its URL when it answers."""
    arguments = [f"--args.{name}={value}" for name, value in options.items()]
    process = subprocess.Popen([*command, "--address", address, *arguments], env=ENVIRONMENT)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://{address}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.25)
        yield f"ws://{address}"
    finally:
        process.terminate()
        process.wait()


def small_server(python: str | Path = sys.executable) -> list[Any]:
    return [python, "-I", Path(__file__).with_name("small_model_server.py")]


@dataclass
class Run:
    """A command that has ended."""

    status: int
    output: str
    errors: str


OurHarness = Callable[..., Run]


@pytest.fixture
def our_harness(without_workers: None, capsys: pytest.CaptureFixture[str]) -> OurHarness:
    """Rolls a policy out from one initial state, in this process."""

    def run(policy: str, out: Path, *options: str, task: str = NUDGE) -> Run:
        words = ["--policy", policy, "--tasks", task, "--states", "1", "--workers", "1", "--out", str(out)]
        status = main(["benchmark", *words, *options])
        return Run(status, *capsys.readouterr())

    return run


def records(out: Path) -> list[dict[str, Any]]:
    (file,) = out.glob("*/rollouts.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def their_harness(url: str, out: Path, config: str, task: str = NUDGE) -> list[dict[str, Any]]:
    """Episodes of one initial state with two policy seeds."""
    from vla_eval.cli.main import main

    words = ["vla-eval", "run", "--config", str(CONFIGS / config), "--server-url", url, "--output-dir", str(out)]
    words += ["--param", f"tasks=['{task}']", "--param", "states=1", "--benchmark-field", "episodes_per_task=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        main()
    (file,) = out.glob("*_aggregate.json")
    episodes: list[dict[str, Any]] = json.loads(file.read_text())["tasks"][0]["episodes"]
    return episodes


def test_par_acts_alike_alone_and_served_to_either_harness(our_harness: OurHarness, tmp_path: Path) -> None:
    seeds = ("--policy-seeds", "2")
    config = ["--config", str(CONFIGS / "par-mini.yaml")]
    with served([sys.executable, "-m", "par_agent.vla_eval.server", *config], free_address()) as url:
        runs = [our_harness(policy, tmp_path / policy[:3], *seeds) for policy in ("par-mini", f"vla-eval:{url}")]
        assert [run.status for run in runs] == [0, 0], [run.errors for run in runs]
        episodes = their_harness(url, tmp_path / "theirs", "paper.yaml")
    alone, ours = (records(tmp_path / name) for name in ("par", "vla"))
    assert [(record["error"], record["steps"], record["renders"]) for record in ours] == [(None, 12, 2)] * 2
    actions = [record["actions_sha256"] for record in alone]
    assert [record["actions_sha256"] for record in ours] == actions
    found = [(e["metrics"]["policy_seed"], e["steps"], e["metrics"]["actions_sha256"]) for e in episodes]
    assert sorted(found) == [(seed, 12, sha) for seed, sha in enumerate(actions)]
    assert [e["metrics"]["success"] for e in episodes] == [record["success_once"] for record in alone] == [False] * 2


def test_a_server_that_dies_stops_the_run_which_goes_on_when_it_is_back(
    our_harness: OurHarness, tmp_path: Path
) -> None:
    address, options = free_address(), {"frame_every": 12, "chunk_size": 12, "length": 12}
    policy, four = f"vla-eval:ws://{address}", ("--policy-seeds", "4", "--policy-kwargs", "name=x")
    with served(small_server(), address, dies=3, **options):
        run = our_harness(policy, tmp_path, *four)
    assert run.status == 2 and "it goes on where it stopped" in run.errors and "Traceback" not in run.errors
    assert [(record["policy_seed"], record["error"]) for record in records(tmp_path)] == [(0, None), (1, None)]
    assert not list(tmp_path.glob("*/results.json"))
    with served(small_server(), address, **options):
        run = our_harness(policy, tmp_path, *four)
    assert run.status == 0 and "2 of 4 rollouts are on disk already" in run.output
    assert [(record["policy_seed"], record["error"]) for record in records(tmp_path)] == [(n, None) for n in range(4)]


def test_a_run_of_which_every_rollout_ends_with_an_exception_fails(our_harness: OurHarness, tmp_path: Path) -> None:
    with served(small_server(), free_address(), size=7) as url:
        run = our_harness(f"vla-eval:{url}", tmp_path, "--policy-seeds", "1")
    assert run.status == 1 and "every rollout of NudgeCube ended with an exception" in run.errors
    assert [record["success_once"] for record in records(tmp_path)] == [False]


def test_the_configurations_hold_what_their_classes_take() -> None:
    from vla_eval.model_servers.lerobot import LeRobotModelServer

    from par_agent.vla_eval.benchmark import ManiSkill3Benchmark

    for name in ("paper", "native"):
        (benchmark,) = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["benchmarks"]
        made = ManiSkill3Benchmark(**benchmark["params"])
        assert {task["suite"] for task in made.get_tasks()} == {name}
        assert benchmark["episodes_per_task"] == made.get_metadata()["max_episodes_per_task"] == 125
    lerobot = yaml.safe_load((CONFIGS / "lerobot.yaml").read_text())["args"]
    assert lerobot.keys() <= inspect.signature(LeRobotModelServer).parameters.keys()  # it swallows others


@pytest.mark.slow
def test_the_documented_commands_have_the_options_that_they_are_given() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text().split("## Policies with packages of their own")[1]
    commands = [line.strip() for line in text.split("\n## ")[0].splitlines() if line.startswith("    ")]
    servers = {
        "-m par_agent.vla_eval.server": ["-m", "par_agent.vla_eval.server"],
        "-m vla_eval.model_servers.lerobot": ["-m", "vla_eval.model_servers.lerobot"],
        "PATH/TO/benchmarks/vla-eval/rdt_server.py": [str(ROOT / "benchmarks" / "vla-eval" / "rdt_server.py")],
        "vla-eval run": ["-c", "from vla_eval.cli.main import main; main()", "run"],
    }
    for name, arguments in servers.items():
        (command,) = (command.split("#")[0] for command in commands if name in command)
        options = [word.split("=")[0] for word in command.split() if word.startswith("--")]
        help_text = subprocess.run([sys.executable, *arguments, "--help"], capture_output=True, text=True, check=True)
        assert len(options) >= 1 and all(option in help_text.stdout for option in options), (name, options)


@pytest.fixture(scope="module")
def other_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh virtual environment that holds vla-eval and nothing of this package."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-I", "-m", "pip", "install", "-q", f"vla-eval=={vla_eval.__version__}"], check=True)
    assert subprocess.run([python, "-I", "-c", "import par_agent"], check=False, capture_output=True).returncode == 1
    return python


@pytest.mark.slow
@pytest.mark.network
def test_both_harnesses_roll_a_server_of_another_environment_out_alike(
    our_harness: OurHarness, other_environment: Path, tmp_path: Path
) -> None:
    options = {"chunk_size": 40, "length": 40, "frame_every": 40, "needs": "base_camera"}
    with served(small_server(other_environment), free_address(), **options) as url:
        native = ("--track", "native", "--policy-seeds", "2")
        run = our_harness(f"vla-eval:{url}", tmp_path / "ours", *native, task="PushCube")
        assert run.status == 0, run.errors
        episodes = their_harness(url, tmp_path / "theirs", "native.yaml", task="PushCube")
    found = records(tmp_path / "ours")
    assert [(record["error"], record["steps"], record["renders"]) for record in found] == [(None, 400, 10)] * 2
    expected = {(r["env_seed"], r["policy_seed"], r["steps"]): r["actions_sha256"] for r in found}
    assert len(set(expected.values())) == 2
    metrics = {(e["metrics"]["env_seed"], e["metrics"]["policy_seed"], e["steps"]): e["metrics"] for e in episodes}
    assert {key: found["actions_sha256"] for key, found in metrics.items()} == expected
    assert not any(found["success"] for found in metrics.values())
