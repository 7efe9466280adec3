"""Commands stopped at ten moments each, in five ways, and started again: they end as if they had never been stopped.

A moment is the nth change of a file or folder below the command's own folder, or the nth call of a function where all
is appended to one file; the ten are spread over the run. Both main and worker processes are stopped.
"""

from __future__ import annotations

import json
import signal
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from held import Held, Moment, gone, until
from par_agent.cli import main
from par_agent.evaluation.rollout import TIMING_FIELDS
from recordings import require_renderer
from rendered import write_dataset
from tiny import option_words, tiny_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SIGNALS = {
    "kill": signal.SIGKILL,
    "terminate": signal.SIGTERM,
    "hang up": signal.SIGHUP,
    "ctrl-c twice": signal.SIGINT,
    "pause": signal.SIGSTOP,
}
MOMENTS = [(way, (number + 0.5) / 10 + half) for number, way in enumerate(SIGNALS) for half in (0, 0.5)]
"""How to stop, and the share of the run that is done by then."""


@dataclass(frozen=True)
class Command:
    """A command to be stopped."""

    begin: Callable[[Path], list[str]]
    """Makes what it reads in a folder of its own, and gives its words."""
    result: Callable[[Path], Any]
    """What has to be the same in the end."""
    calls: dict[bool, tuple[str, int]]
    """By whether the worker is stopped, not the main process: function whose calls are the moments, and how many there
    are; no function: the changes of files, which are counted first."""


def files(folder: Path) -> dict[str, bytes]:
    """All files that the command leaves."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict[str, bytes]:
    """What a training leaves of weights beside its training states; nothing unfinished is among it."""
    assert not [path for pattern in ("*.tmp", "*.partial") for path in folder.rglob(pattern)]
    found = files(folder / "run")
    return {
        name: found[name] for name in found if "/model.safetensors" in name and not name.startswith("training_states")
    }


def records(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """What a benchmark run recorded of each rollout, without times; one that was done twice ended alike."""
    (path,) = folder.glob("*/rollouts.jsonl")
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        record = {name: value for name, value in json.loads(line).items() if name not in TIMING_FIELDS}
        assert found.setdefault((record["state"], record["policy_seed"]), record) == record
    return found


def demos(folder: Path) -> list[str]:
    return ["par-agent", "demos", "--task", "PushCube", "--num", "11", "--workers", "1", "--out", str(folder)]


def render(folder: Path) -> list[str]:
    options = ["--num", "4", "--cameras", "base_camera", "--motion-steps", "4", "--stride", "4", "--workers", "1"]
    return ["par-agent", "render", "--random-motion", "PushCube", *options, "--out", str(folder)]


def train_vae(folder: Path) -> list[str]:
    write_dataset(folder / "data", episodes=4)
    sizes = ["--steps", "6", "--batch-size", "4", "--patch", "12", "--channels", "4", "--widths", "8", "8"]
    paths = ["--data", str(folder / "data"), "--out", str(folder / "run"), "--save-minutes", "0"]
    return ["par-agent", "train-vae", *paths, *sizes]


def finetune(folder: Path) -> list[str]:
    return ["par-agent", "finetune", *option_words(tiny_run(folder))]


def finetune_lora(folder: Path) -> list[str]:
    return ["par-agent", "finetune", *option_words(tiny_run(folder, train="lora", lora_rank=2))]


def benchmark(folder: Path) -> list[str]:
    policy = ["--policy", "harness_policies:PlainResetPolicy", "--tasks", "harness_task:NUDGE_CUBE", "--workers", "1"]
    states = ["--state-seed", "777000", "--num-states", "3", "--policy-seeds", "2"]
    return ["par-agent", "benchmark", *policy, *states, "--out", str(folder)]


CHANGES = {False: ("", 0), True: ("", 0)}
CALLS = {
    False: ("par_agent.evaluation.records:RunFolder.append", 6),
    True: ("par_agent.simulation.environment:TaskEnvironment.step", 72),
}
COMMANDS = {
    "demos": Command(demos, files, CHANGES),
    "render": Command(render, files, CHANGES),
    "train-vae": Command(train_vae, weights, {False: ("", 0)}),
    "finetune": Command(finetune, weights, {False: ("", 0)}),
    "finetune lora": Command(finetune_lora, weights, {False: ("", 0)}),
    "benchmark": Command(benchmark, records, CALLS),
}


@dataclass(frozen=True)
class Whole:
    """A run that was not stopped."""

    result: Any
    changes: dict[bool, int]
    """How often its main process and its worker changed a file or a folder."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    runs: dict[str, Whole] = {}

    def run(name: str) -> Whole:
        if name not in runs:
            command, folder = COMMANDS[name], tmp_path_factory.mktemp("whole")
            moment, below = Moment(below=str(folder / "own"), number=0), folder / "own"
            with Held(command.begin(below), moment, folder / "marks", cwd=ROOT / "tests") as process:
                assert process.status() == 0, process.output
                changes = {worker: process.changes(worker) for worker in command.calls}
            runs[name] = Whole(command.result(below), changes)
        return runs[name]

    return run


@pytest.fixture(scope="module")
def seconds(request: pytest.FixtureRequest) -> Iterator[dict[str, list[float]]]:
    """Seconds until all workers were gone, by what was stopped; printed in the end."""
    found: dict[str, list[float]] = defaultdict(list)
    yield found
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    for name, values in found.items() if reporter else ():
        median = f"{statistics.median(values):.2f} s in the median, {max(values):.2f} s at most"
        reporter.write_line(f"\n{name}: {len(values)} moments, all ended alike; workers gone after {median}")


@pytest.fixture(scope="module", autouse=True)
def _renderer() -> None:
    require_renderer()


def stop(held: Held, process: psutil.Process, way: str, worker: bool) -> int:
    """Stops one of a command's processes, which holds still; returns the command's exit status."""
    if way == "pause":
        process.suspend()
        until(lambda: process.status() == psutil.STATUS_STOPPED)
        process.resume()
    elif worker or way == "kill":
        process.send_signal(SIGNALS[way])
    else:
        held.tell(SIGNALS[way])
    if way == "ctrl-c twice":
        process.send_signal(SIGNALS[way]) if held.running else None
    if worker or way != "ctrl-c twice":
        held.let_go()
    return held.status()


def expected_status(way: str, worker: bool) -> set[int]:
    """The exit statuses that are right."""
    if worker:
        return {0}  # if it is killed, another one takes its place
    if way == "pause":
        return {0}
    if way == "kill":
        return {-signal.SIGKILL}
    done = set() if way == "ctrl-c twice" else {0}  # told when nothing was left to do but that piece
    return {128 + SIGNALS[way], *done}


@pytest.mark.parametrize(("way", "share"), MOMENTS)
@pytest.mark.parametrize(
    ("name", "worker"), [(name, worker) for name, command in COMMANDS.items() for worker in command.calls]
)
def test_what_is_stopped_at_any_moment_and_started_again_ends_as_if_it_had_not_been_stopped(
    name: str,
    worker: bool,
    way: str,
    share: float,
    whole: Callable[[str], Whole],
    seconds: dict[str, list[float]],
    tmp_path: Path,
) -> None:
    command, folder = COMMANDS[name], tmp_path / "own"
    function, calls = command.calls[worker]
    number = 1 + int(share * (calls or whole(name).changes[worker]))
    words = command.begin(folder)
    with Held(words, Moment(function, str(folder), number, worker), tmp_path / "marks", cwd=ROOT / "tests") as held:
        [process] = held.until_held()
        others = held.workers()
        status = stop(held, process, way, worker)
        assert status in expected_status(way, worker), held.output
        seconds[f"{name}, {'worker' if worker else 'main process'}"].append(gone(others))
    if words[0] == "par-agent":
        assert main(words[1:]) == 0
    else:
        with Held(words, None, tmp_path / "again", cwd=ROOT / "tests") as again:
            assert again.status() == 0, again.output
    assert command.result(folder) == whole(name).result
