"""Work on a Ray cluster: nodes on this machine, killed workers, a lost node, nothing lost, doubled or different."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import signal
import sys
import threading
import unittest.mock
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from held import until
from par_agent.cli import main
from par_agent.errors import UserError
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.rollout import TIMING_FIELDS
from par_agent.evaluation.run_config import RunConfig
from par_agent.jobs import ray as ray_module
from par_agent.jobs.ray import ray_runner
from par_agent.jobs.runner import DoJob, LostJobError
from par_agent.utils.interrupts import Interrupted, deferred_interrupts
from par_agent.utils.versions import check_versions
from ray_cluster import RayCluster, running_cluster
from recordings import record

NUDGE = ("harness_task:NUDGE_CUBE",)


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[RayCluster]:
    """A Ray cluster on this machine: a head with one CPU."""
    pytest.importorskip("ray", reason="ray is not installed (extra: cluster)")
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def second_node(local_cluster: RayCluster) -> Iterator[int]:
    """Another node with one CPU, which the test may take away."""
    node = local_cluster.add_node()
    yield node
    local_cluster.remove_node(node)


@pytest.fixture(scope="module")
def driver() -> Iterator[Executor]:
    """A process that connects to clusters. In its own, pytest could not tell of a crash: Ray takes that over."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def in_tests_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where module:Class references of these tests are found, as from a command line there."""
    monkeypatch.chdir(Path(__file__).parent)


def run(out: Path, *, on_record: Any = lambda record: None, **arguments: Any) -> tuple[BenchmarkRun, list[Any]]:
    options: dict[str, Any] = {"tasks": NUDGE, "states": 6, "policy_seeds": 2, **arguments}
    died = options.pop("died")
    policy = PolicySource("harness_policies:DyingOncePolicy", {"died": str(died)})
    benchmark = BenchmarkRun(RunConfig(policy=policy, out=out, **options))
    records = benchmark.run(lambda found: None, on_record)
    return benchmark, [{k: v for k, v in record.items() if k not in TIMING_FIELDS} for record in records]


@pytest.mark.slow
def test_a_killed_worker_and_a_lost_node_change_nothing_in_the_records(
    local_cluster: RayCluster, second_node: int, in_tests_folder: None, tmp_path: Path
) -> None:
    (tmp_path / "no more").touch()
    _, local = run(tmp_path / "local", died=tmp_path / "no more")
    finished: list[Any] = []

    def take_a_node_away(record: Any) -> None:
        finished.append(record)
        if len(finished) == 3:
            local_cluster.remove_node(second_node)

    died = tmp_path / "died"
    benchmark, distributed = run(
        tmp_path / "cluster", died=died, cluster=local_cluster.address, on_record=take_a_node_away, video=1
    )
    assert died.exists()  # the policy killed its worker with SIGKILL
    assert benchmark.info.workers == 2
    assert distributed == local
    lines = (benchmark.folder / "rollouts.jsonl").read_text().splitlines()
    assert len(lines) == len(finished) == len(local) == 12
    assert benchmark.info.video_file("NudgeCube", 0, 0).stat().st_size > 1000


@pytest.mark.slow
def test_what_does_not_fit_on_a_node_is_an_error_before_anything_is_written(
    local_cluster: RayCluster, in_tests_folder: None, tmp_path: Path
) -> None:
    policy = PolicySource("harness_policies:SevenNumbersPolicy")
    config = RunConfig(tasks=NUDGE, policy=policy, out=tmp_path / "out", cluster=local_cluster.address)
    with pytest.raises(UserError, match="gives actions of 7 numbers; task NudgeCube takes 8"):
        BenchmarkRun(config).run(lambda found: None, lambda record: None)
    benchmark = BenchmarkRun(config)
    benchmark.info = dataclasses.replace(benchmark.info, fingerprint="of other files")
    with pytest.raises(UserError, match=r"another version of the policy \(files .* instead of of other files\)"):
        benchmark.run(lambda found: None, lambda record: None)
    assert not (tmp_path / "out").exists()


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["demos", "--task", "PushCube", "--num", "11"],  # two parts: one seed has no solution
        ["render", "--random-motion", "PushCube", "--num", "3", "--cameras", "base_camera", "--motion-steps", "4"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_nodes_make_the_same_files_as_this_machine(
    local_cluster: RayCluster, tmp_path: Path, arguments: list[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "local")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "nodes"), "--cluster", local_cluster.address]) == 0
    files = files_below(tmp_path / "local")
    assert len(files) >= 2 and files_below(tmp_path / "nodes") == files


@pytest.mark.slow
def test_nodes_render_recorded_episodes_that_only_this_machine_has(local_cluster: RayCluster, tmp_path: Path) -> None:
    record(tmp_path / "trajectory.h5", "PushCube-v1", (3, 5), {})
    arguments = [
        "render",
        "--trajectory",
        str(tmp_path / "trajectory.h5"),
        "--cameras",
        "base_camera",
        "--include-failures",
    ]
    assert main([*arguments, "--out", str(tmp_path / "local")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "nodes"), "--cluster", local_cluster.address]) == 0
    files = files_below(tmp_path / "local")
    assert len(files) == 4 and files_below(tmp_path / "nodes") == files


def prepare(setup: Any, folder: Path) -> DoJob:
    """With a number, jobs are multiplied with it and leave two files; with a folder, they wait there."""
    if setup == 0:
        raise ArithmeticError("nothing to multiply with")

    def multiply(job: int) -> Iterator[int]:
        """Ends its process for a negative number."""
        if job < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if job == 99:
            raise KeyError(job)
        if job == 98:
            raise OSError(errno.ENOSPC, "No space left on device")
        for name in ("first", "second"):
            (folder / str(job)).mkdir(exist_ok=True)
            (folder / str(job) / name).write_text(str(setup * job))
        yield job
        yield setup * job

    def wait_for_permission(job: int) -> Iterator[int]:
        """Leaves a file when it starts, and ends when there is another."""
        (setup / f"started-{job}-{os.getpid()}").touch()
        until(lambda: (setup / "go").exists())
        yield job

    return wait_for_permission if isinstance(setup, Path) else multiply


def run_all(address: str, setup: Any, folder: Path, jobs: list[int], **options: Any) -> list[tuple[int, Any]]:
    with ray_runner(prepare, setup, folder, address) as runner:
        return list(runner.run(jobs, **options))


def check_jobs(address: str, folder: Path) -> None:
    """What is said of jobs that end well, are lost, or fail."""
    with ray_runner(prepare, 2, folder, address) as runner:
        assert runner.workers == 2
        messages = list(runner.run(range(9)))
        assert sorted(messages[::2]) == [(number, number) for number in range(9)]
        assert [message for _, message in messages[1::2]] == [2 * message for _, message in messages[::2]]
        assert files_below(folder) == {
            f"{n}/{name}": f"{2 * n}".encode() for n in range(9) for name in ("first", "second")
        }
        with unittest.mock.patch.object(ray_module, "MAX_RETRIES", 1):  # a worker takes seconds to start
            results = dict(runner.run([-1, 1], yield_lost=True))
        with (
            unittest.mock.patch.object(ray_module, "MAX_RETRIES", 0),
            pytest.raises(LostJobError, match=r"lost 1 times: WorkerCrashedError; see Ray's logs"),
        ):
            list(runner.run([-1]))
        with pytest.raises(UserError, match=r"node .* failed: KeyError: 99\nTraceback"):
            list(runner.run([99]))
        with pytest.raises(UserError, match=r"cannot write below .* of node .*: .*No space left"):
            list(runner.run([98]))
    assert results[1] == 2
    assert isinstance(results[-1], LostJobError)
    assert results[-1].how == "its worker was lost 2 times: WorkerCrashedError"
    with pytest.raises(UserError, match=r"node .* could not start: ArithmeticError: nothing to multiply with"):
        run_all(address, 0, folder, [1])


def test_every_job_is_done_once_and_one_that_is_always_lost_says_so(
    local_cluster: RayCluster, second_node: int, driver: Executor, tmp_path: Path
) -> None:
    driver.submit(check_jobs, local_cluster.address, tmp_path).result()


def run_with_other_versions(address: str, folder: Path) -> None:
    with unittest.mock.patch.object(ray_module, "installed_versions", lambda *_: {"torch": "0.1"}):
        run_all(address, 2, folder, [1])


def test_a_node_with_other_versions_is_named(local_cluster: RayCluster, driver: Executor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another version of this package \(torch 2.* instead of 0.1\)"):
        driver.submit(run_with_other_versions, local_cluster.address, tmp_path).result()


def test_the_job_of_a_lost_node_is_done_elsewhere_and_counted_once(
    local_cluster: RayCluster, second_node: int, driver: Executor, tmp_path: Path
) -> None:
    def running() -> int:
        return sum(psutil.pid_exists(int(path.name.split("-")[2])) for path in tmp_path.glob("started-*"))

    results = driver.submit(run_all, local_cluster.address, tmp_path, tmp_path, [1, 2, 3])
    until(lambda: running() == 2)
    local_cluster.remove_node(second_node)
    until(lambda: running() == 1)
    (tmp_path / "go").touch()
    assert sorted(results.result()) == [(1, 1), (2, 2), (3, 3)]
    assert len(list(tmp_path.glob("started-*"))) == 4  # one of them twice


def run_until_told_to_end(address: str, folder: Path) -> None:
    def tell() -> None:
        until(lambda: list(folder.glob("started-*")))
        os.kill(os.getpid(), signal.SIGTERM)

    teller = threading.Thread(target=tell)
    teller.start()
    with pytest.raises(Interrupted), deferred_interrupts():
        run_all(address, folder, folder, [1])
    teller.join()


def test_an_interruption_ends_the_wait_for_jobs(local_cluster: RayCluster, driver: Executor, tmp_path: Path) -> None:
    driver.submit(run_until_told_to_end, local_cluster.address, tmp_path).result()


def test_no_cluster_at_an_address_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed (extra: cluster)")
    with pytest.raises(UserError, match=r"no Ray cluster at '127.0.0.1:1' .*ray start --head"):
        run_all("127.0.0.1:1", 2, tmp_path, [1])


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'par-agent\[cluster\]'"):
        run_all("auto", 2, tmp_path, [1])


def test_versions_that_differ_are_named() -> None:
    check_versions("this package", {"torch": "2.13"}, {"torch": "2.13", "more": "1"})
    with pytest.raises(UserError, match=r"another version of the policy \(files b instead of a\)"):
        check_versions("the policy", {"files": "a"}, {"files": "b"})


def test_a_cluster_and_a_gpu_are_not_for_the_same_run(tmp_path: Path) -> None:
    for arguments, device in (({"backend": "gpu"}, "cpu"), ({}, "cuda")):
        with pytest.raises(UserError, match="leave --backend and --device out"):
            policy = PolicySource("harness_policies:PlainResetPolicy", device=device)
            RunConfig(tasks=("PushCube",), policy=policy, out=tmp_path, cluster="auto", **arguments)
