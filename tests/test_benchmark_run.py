"""The benchmark's runner in the real simulator: records, resuming after a crash, reproducibility, bad input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest

from harness_policies import CHUNK
from held import Held, Moment
from par_agent.cli import main
from par_agent.errors import UserError
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.provenance import provenance
from par_agent.evaluation.records import read_run
from par_agent.evaluation.report import write_results
from par_agent.evaluation.rollout import ROLLOUT_CODE, TIMING_FIELDS
from par_agent.evaluation.run_config import RunConfig
from par_agent.evaluation.stages import STAGES
from par_agent.tasks import PROTOCOL_SEED
from par_agent.utils.json_fields import parse_options
from par_agent.utils.versions import PACKAGE_FOLDER, source_files
from recordings import run_in_this_process

REPOSITORY = Path(__file__).parents[1]
STATE_SEED = 777000
TASKS = ("PushCube", "PickCube")
NUDGE = ("harness_task:NUDGE_CUBE",)


class _ActionLog(gym.Wrapper):
    """Remembers the actions of an episode."""

    actions: list[np.ndarray]

    def reset(self, **arguments: Any) -> Any:
        self.actions = []
        return self.env.reset(**arguments)

    def step(self, action: Any) -> Any:
        self.actions.append(np.asarray(action, dtype=np.float32).copy())
        return self.env.step(action)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Motion-planned demonstrations of two initial states of each task."""
    from mani_skill.examples.motionplanning.panda.solutions import solvePickCube, solvePushCube

    from par_agent.simulation.environment import make_simulation
    from par_agent.tasks import get_task

    folder = tmp_path_factory.mktemp("demos")
    for task, solve in (("PushCube", solvePushCube), ("PickCube", solvePickCube)):
        env = _ActionLog(make_simulation(get_task(task)))
        for seed in (STATE_SEED, STATE_SEED + 1):
            env.reset(seed=seed)
            qpos = env.unwrapped.agent.robot.get_qpos()[0].numpy().copy()  # type: ignore[attr-defined]
            solve(env, seed=seed, debug=False, vis=False)
            np.savez(folder / f"{task}-{seed}.npz", qpos=qpos, actions=np.stack(env.actions))
        env.close()
    return folder


def options(demos: Path, out: Path) -> list[str]:
    """Eight rollouts; those of PickCube's second state raise an exception."""
    return [
        *("--tasks", *TASKS, "--policy", "harness_policies:ReplayPolicy", "--policy-seeds", "2", "--out", str(out)),
        *("--state-seed", str(STATE_SEED), "--num-states", "2"),
        *("--policy-kwargs", f"demos={demos}", "noise=0.001", f"fail_seed={STATE_SEED + 1}"),
    ]


def records_in(out: Path) -> list[dict[str, Any]]:
    """The records of the one run under a folder, sorted, without times and without versions (the same in one run)."""
    (path,) = out.glob("*/rollouts.jsonl")
    records = [
        {k: v for k, v in record.items() if k not in (*TIMING_FIELDS, "versions")}
        for record in read_run(path.parent)[1]
    ]
    return sorted(records, key=lambda record: json.dumps(record))


def run_here(words: list[str]) -> None:
    """Runs the benchmark to its end in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("par_agent.evaluation.benchmark_run.open_runner", run_in_this_process)
        patch.setattr("par_agent.evaluation.initial_states.local_runner", run_in_this_process)
        assert main(["benchmark", *words]) == 0


@pytest.fixture(scope="module")
def finished(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("finished")
    run_here(options(demos, out))
    return out


def test_every_rollout_is_recorded_once_and_replayed_demonstrations_succeed(finished: Path) -> None:
    records = records_in(finished)
    assert {(r["task"], r["state"], r["policy_seed"]) for r in records} == {
        (task, state, seed) for task in TASKS for state in (0, 1) for seed in (0, 1)
    }
    assert len(records) == 8
    for record in records:
        if record["state"] == 1:
            continue
        assert record["success_once"] and record["error"] is None, record
        assert record["success_at_end"] is None
        assert record["steps"] == record["steps_to_success"] <= 400
        assert record["renders"] == -(-record["steps"] // CHUNK)
        assert record["env_seed"] == STATE_SEED
        came = {stage: record[stage] for stage in STAGES if stage in record}
        assert came == dict.fromkeys(("reached", "placed") if record["task"] == "PushCube" else STAGES, True)


def test_an_exception_is_recorded_as_a_failure_and_the_run_goes_on(finished: Path) -> None:
    failed = [record for record in records_in(finished) if record["error"] is not None]
    assert {(record["task"], record["state"]) for record in failed} == {("PushCube", 1), ("PickCube", 1)}
    for record in failed:
        assert record["error"] == "ArithmeticError: made to fail"
        assert record["success_once"] is False
    (log,) = finished.glob("*/errors.log")
    assert "harness_policies.py" in log.read_text()


def test_policy_seeds_differ(finished: Path) -> None:
    records = [record for record in records_in(finished) if record["error"] is None]
    assert len({record["actions_sha256"] for record in records}) == len(records)


def test_the_table_says_what_was_run(finished: Path) -> None:
    (folder,) = finished.iterdir()
    for name in ("results.md", "results.csv", "results.json"):
        assert (
            f"NOT THE PROTOCOL: initial states from seeds {STATE_SEED} to {STATE_SEED + 1}"
            in (folder / name).read_text()
        )
    assert "| PushCube | 2/4 | 4 | 50.0 |" in (folder / "results.md").read_text()
    assert "| PAR-Full | paper | 100.0 | 73.0 |" in (folder / "results.md").read_text()
    provenance = json.loads((folder / "results.json").read_text())["provenance"]
    assert {"command", "git_commit", "checkpoint", "device", "renderer", "versions"} <= provenance.keys()


def test_the_commit_is_that_of_the_runs_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("par_agent.evaluation.run_info.git_commit", lambda: "first")
    begun = BenchmarkRun(config(tmp_path))
    monkeypatch.setattr("par_agent.evaluation.run_info.git_commit", lambda: "checked out meanwhile")
    assert provenance(begun.info)["git_commit"] == "first"


def held(words: list[str], marks: Path, records: int, workers: int) -> Held:
    """The benchmark, held when it has written some records more."""
    moment = Moment("par_agent.evaluation.records:RunFolder.append", number=records)
    command = ["par-agent", "benchmark", *words, "--workers", str(workers)]
    return Held(command, moment, marks, cwd=REPOSITORY / "tests")


def test_a_run_stopped_by_ctrl_c_and_by_kill_ends_with_the_same_records_whatever_the_number_of_workers(
    tmp_path: Path,
) -> None:
    """Without images, which take a worker long to get ready for."""
    blind = ["--tasks", *NUDGE, "--policy", "harness_policies:BlindPolicy", "--num-states", "3", "--policy-seeds", "2"]
    out = tmp_path / "out"
    words = [*blind, "--out", str(out)]
    with held(words, tmp_path / "interrupted", records=2, workers=2) as interrupted:
        interrupted.until_held()
        interrupted.tell(signal.SIGINT)
        interrupted.let_go()
        assert interrupted.status() == 130, interrupted.output
        assert "the same command resumes where this one stopped" in interrupted.output
    (path,) = out.glob("*/rollouts.jsonl")
    before = path.read_bytes()
    assert before.count(b"\n") == 2
    with held(words, tmp_path / "killed", records=1, workers=1) as killed:
        killed.kill()
    assert path.read_bytes().startswith(before) and path.read_bytes().count(b"\n") == 3
    before = path.read_bytes()
    path.write_bytes(before + b'{"task": "NudgeC')  # what a line cut off by a crash looks like
    # Videos asked for later repeat rollouts that are on disk and leave their records as they are.
    run_here([*words, "--video", "1"])
    assert path.read_bytes().startswith(before)
    run_here([*blind, "--out", str(tmp_path / "at once")])
    assert records_in(out) == records_in(tmp_path / "at once")
    (video,) = out.glob("*/videos/NudgeCube_state00_seed0.mp4")
    assert len(records_in(out)) == 6 and {record["steps"] for record in records_in(out)} == {12}
    assert imageio.imread(video).shape == (12 + 1, 512, 512, 3)


def config(out: Path, policy: str = "harness_policies:SevenNumbersPolicy", **arguments: Any) -> RunConfig:
    options = {"tasks": ("PushCube",), "states": 1, "policy_seeds": 1, **arguments}
    source = PolicySource(policy, options.pop("policy_options", {}), options.pop("device", "cpu"))
    return RunConfig(policy=source, out=out, **options)


def run(config: RunConfig) -> tuple[BenchmarkRun, list[dict[str, Any]]]:
    benchmark = BenchmarkRun(config)
    return benchmark, benchmark.run(lambda found: None, lambda record: None)


def test_a_worker_process_that_dies_is_replaced_and_its_rollout_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("par_agent.evaluation.initial_states.local_runner", run_in_this_process)
    once = {"died": str(tmp_path / "died")}
    _, (record,) = run(config(tmp_path, "harness_policies:DyingOncePolicy", tasks=NUDGE, policy_options=once))
    assert (record["error"], record["steps"]) == (None, 12)


def test_a_run_that_fails_before_its_first_rollout_leaves_nothing(
    without_workers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise UserError("the initial states cannot be made")

    monkeypatch.setattr("par_agent.evaluation.benchmark_run.make_missing_states", fail)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="cannot be made"):
        run(config(out, "harness_policies:PlainResetPolicy", tasks=NUDGE))
    assert not out.exists()


@pytest.mark.slow
def test_a_rollout_whose_worker_dies_every_time_is_recorded_as_an_error(tmp_path: Path) -> None:
    benchmark, (record,) = run(config(tmp_path, "harness_policies:DyingPolicy", tasks=NUDGE))
    assert record["error"] == "the worker process died (exit code -9)"
    assert write_results(benchmark.info, [record])[0].errors == 1
    retried = config(tmp_path, "harness_policies:DyingPolicy", tasks=NUDGE, retry_errors=True)
    assert len(run(retried)[1]) == 1


@pytest.mark.usefixtures("without_workers")
def test_a_task_and_a_policy_of_ones_own_run_to_the_end(tmp_path: Path) -> None:
    own: dict[str, Any] = {"policy": "harness_policies:PlainResetPolicy", "tasks": NUDGE, "run_to_end": True}
    benchmark, first = run(config(tmp_path / "one", **own, states=2, track="native"))
    assert [(r["task"], r["steps"], r["success_at_end"], r["renders"]) for r in first] == [
        ("NudgeCube", 12, False, 12)
    ] * 2
    assert benchmark.info.states_file(NUDGE[0]).is_relative_to(benchmark.folder)  # made on first use
    assert write_results(benchmark.info, first)[0].success_at_end == 0


@pytest.mark.slow
def test_a_policy_that_draws_from_the_global_generator_is_reproducible_too(tmp_path: Path) -> None:
    own: dict[str, Any] = {"policy": "harness_policies:PlainResetPolicy", "tasks": NUDGE, "states": 3}
    _, one = run(config(tmp_path / "one", **own))
    _, two = run(config(tmp_path / "two", **own, workers=2))
    assert [record["actions_sha256"] for record in one] == [record["actions_sha256"] for record in two]


def test_a_policy_with_another_action_size_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives actions of 7 numbers; task PushCube takes 8"):
        run(config(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ("PushCub",)}, "unknown task 'PushCub'; known tasks: PushCube, PickCube"),
        ({"tasks": ("harness_policies:CHUNK",)}, "expected a par_agent.tasks.TaskSpec"),
        ({"tasks": ("harness_task:CLASHING",)}, "the name PushCube belongs to a registered task"),
        ({"tasks": ("PushCube", "PushCube-v1")}, "given twice"),
        ({"track": "video"}, "track is 'video'; expected 'paper' or 'native'"),
        ({"variation": "fog"}, "unknown variation 'fog'; known variations: none, camera_pose"),
        ({"states": 126}, "the protocol has 25, and 125 with its further ones"),
        ({"states": 0}, "states is 0"),
        ({"run_to_end": True, "after_success": 3}, "leave --after-success out"),
        ({"workers": 0}, "workers is 0"),
        ({"state_seed": PROTOCOL_SEED}, "reserved for the protocol"),
        ({"state_seed": PROTOCOL_SEED - 3, "states": 4}, "reserved for the protocol"),
        ({"state_seed": -1}, "state_seed is -1; it must be at least 0"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"policy": "no-such-checkpoint"}, "and not a name on the Hub"),
        ({"policy": "no_such_module:Policy"}, "cannot import 'no_such_module'"),
        ({"policy": "harness_policies:NoSuchPolicy"}, "has no 'NoSuchPolicy'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        BenchmarkRun(config(tmp_path / "out", **arguments))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_looks_through_a_camera_which_the_track_does_not_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sees through 'render_camera'; task PushCube shows base_camera on the native"):
        run(config(tmp_path / "out", "par-mini", track="native"))
    assert not (tmp_path / "out").exists()


def test_every_file_that_a_rollout_imports_counts_as_a_version() -> None:
    program = """
import sys
import par_agent.policy.par_policy, par_agent.simulation.environment
import par_agent.evaluation.protocol, par_agent.evaluation.rollout
print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("par_agent")))
"""
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    imported = {Path(file).relative_to(PACKAGE_FOLDER) for file in printed.split()}
    counted = {path.relative_to(PACKAGE_FOLDER) for path in source_files(ROLLOUT_CODE)}
    rest = {path.as_posix() for path in imported - counted if path.parent != Path("utils")}
    assert rest == {"__init__.py", "errors.py", "evaluation/__init__.py"}


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        BenchmarkRun(config(tmp_path / "file" / "out"))
    with pytest.raises(UserError, match="cannot write to"):
        BenchmarkRun(config(Path("/proc/out")))
    BenchmarkRun(config(tmp_path)).folder.write_text("in the way")
    with pytest.raises(UserError, match="cannot write to"):
        BenchmarkRun(config(tmp_path))


def test_another_policy_option_or_track_starts_another_folder(tmp_path: Path) -> None:
    runs = [
        BenchmarkRun(config(tmp_path, **arguments))
        for arguments in (
            {},
            {"track": "native"},
            {"variation": "ambient=0.5"},
            {"policy_options": {"chunk": 4}},
            {"state_seed": 5},
            {"run_to_end": True},
            {"after_success": 3},
            {"policy": "harness_policies:DyingPolicy"},
            {"tasks": ("PickCube",)},
        )
    ]
    assert len({run.folder for run in runs}) == len(runs)
    more = BenchmarkRun(config(tmp_path, states=25, policy_seeds=5, workers=7, video=2))
    assert more.folder == runs[0].folder


def test_policy_options_are_read_as_json_or_text() -> None:
    assert parse_options(["context=4", "n_action_steps=null", "name=a=b", "fast=true", "ratio=0.5"]) == {
        "context": 4,
        "n_action_steps": None,
        "name": "a=b",
        "fast": True,
        "ratio": 0.5,
    }
    for bad in (["context"], ["=4"], ["a=1", "a=2"]):
        with pytest.raises(UserError, match="policy option"):
            parse_options(bad)


def test_options_that_a_class_does_not_take_are_refused() -> None:
    from par_agent.tasks import get_task

    with pytest.raises(UserError, match=r"does not take these options .*died"):
        PolicySource("harness_policies:DyingPolicy", {"speed": 2}).build(get_task("PushCube"))


def test_the_command_prints_errors_without_a_traceback(tmp_path: Path) -> None:
    arguments = [sys.executable, "benchmarks/run.py", "--tasks", "PushCub", "--out", str(tmp_path)]
    finished = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.startswith("benchmarks/run.py: error: unknown task 'PushCub'")
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_the_speed_comparison_prints_a_ratio_for_every_contestant() -> None:
    small = ("--tasks", "PushCube", "--rounds", "1", "--plain-steps", "3", "--states", "1", "--workers", "2")
    arguments = [sys.executable, str(REPOSITORY / "benchmarks" / "harness_speed.py"), *small]
    finished = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(re.findall(r"\d\.\dx", finished.stdout)) == 2 * 4  # by the clock and in processor time
