"""The benchmark on a Ray cluster: two nodes on this machine, a killed worker, a lost node, nothing lost or doubled."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from par_agent.cluster import Cluster, LostTaskError
from par_agent.errors import UserError
from par_agent.evaluation.cluster_pool import check_versions
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.rollout import TIMING_FIELDS
from par_agent.evaluation.runner import BenchmarkRun, RunConfig

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra: cluster)")
NUDGE = ("harness_task:NUDGE_CUBE",)


@pytest.fixture
def local_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes with one CPU each."""
    from ray.cluster_utils import Cluster as LocalCluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    monkeypatch.chdir(Path(__file__).parent)
    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = LocalCluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.second = cluster.add_node(**node)
    yield cluster
    cluster.shutdown()


def run(out: Path, *, on_record: Any = lambda record: None, **arguments: Any) -> tuple[BenchmarkRun, list[Any]]:
    options: dict[str, Any] = {"tasks": NUDGE, "states": 6, "policy_seeds": 2, **arguments}
    died = options.pop("died")
    policy = PolicySource("harness_policies:DyingOncePolicy", {"died": str(died)})
    benchmark = BenchmarkRun(RunConfig(policy=policy, out=out, **options))
    records = benchmark.run(lambda found: None, on_record)
    return benchmark, [{k: v for k, v in record.items() if k not in TIMING_FIELDS} for record in records]


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_and_a_lost_node_change_nothing_in_the_records(local_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "no more").touch()
    _, local = run(tmp_path / "local", died=tmp_path / "no more")
    finished: list[Any] = []

    def take_a_node_away(record: Any) -> None:
        finished.append(record)
        if len(finished) == 3:
            local_cluster.remove_node(local_cluster.second)

    died = tmp_path / "died"
    benchmark, distributed = run(
        tmp_path / "cluster", died=died, cluster=local_cluster.address, on_record=take_a_node_away, videos=1
    )
    assert died.exists()  # the policy killed its worker with SIGKILL
    assert benchmark.workers == 2
    assert distributed == local
    lines = (benchmark.folder / "rollouts.jsonl").read_text().splitlines()
    assert len(lines) == len(finished) == len(local) == 12
    assert benchmark.video_file("NudgeCube", 0, 0).stat().st_size > 1000


@needs_ray
@pytest.mark.slow
def test_what_does_not_fit_on_a_node_is_an_error_before_anything_is_written(local_cluster: Any, tmp_path: Path) -> None:
    policy = PolicySource("harness_policies:SevenNumbersPolicy")
    config = RunConfig(tasks=NUDGE, policy=policy, out=tmp_path / "out", cluster=local_cluster.address)
    with pytest.raises(UserError, match="gives actions of 7 numbers; task NudgeCube takes 8"):
        BenchmarkRun(config).run(lambda found: None, lambda record: None)
    benchmark = BenchmarkRun(config)
    benchmark.versions["torch"] = "0.1"
    with pytest.raises(UserError, match=r"another version of this package \(torch 2.* instead of 0.1\)"):
        benchmark.run(lambda found: None, lambda record: None)
    assert not (tmp_path / "out").exists()


def end_the_process() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def double(number: int) -> int:
    return 2 * number


@needs_ray
@pytest.mark.slow
def test_tasks_give_each_result_once_and_one_that_is_always_lost_says_so(local_cluster: Any) -> None:
    with Cluster(local_cluster.address) as cluster:
        assert cluster.cpus == 2
        assert dict(cluster.run(double, [(number,) for number in range(9)])) == {n: 2 * n for n in range(9)}
        ((position, result),) = cluster.run(end_the_process, [()])
    assert position == 0 and isinstance(result, LostTaskError)
    assert str(result) == "its worker was lost 4 times: WorkerCrashedError"


@needs_ray
@pytest.mark.slow
def test_no_cluster_at_an_address_is_an_error() -> None:
    with pytest.raises(UserError, match=r"no Ray cluster at '127.0.0.1:1' .*ray start --head"), Cluster("127.0.0.1:1"):
        pass


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'par-agent\[cluster\]'"), Cluster("auto"):
        pass


def test_versions_that_differ_are_named() -> None:
    check_versions("this package", {"torch": "2.13"}, {"torch": "2.13", "more": "1"})
    with pytest.raises(UserError, match=r"another version of the policy \(files b instead of a\)"):
        check_versions("the policy", {"files": "a"}, {"files": "b"})


def test_a_cluster_and_a_gpu_are_not_for_the_same_run(tmp_path: Path) -> None:
    for arguments, device in (({"backend": "gpu"}, "cpu"), ({}, "cuda")):
        with pytest.raises(UserError, match="leave --backend and --device out"):
            policy = PolicySource("harness_policies:PlainResetPolicy", device=device)
            RunConfig(tasks=("PushCube",), policy=policy, out=tmp_path, cluster="auto", **arguments)
