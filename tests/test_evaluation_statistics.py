"""Intervals and tests of the benchmark against their definitions and what they are meant to show."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from made_runs import identity, record, write_run
from par_agent.evaluation.results import summarise
from par_agent.evaluation.statistics import (
    Interval,
    cluster_bootstrap,
    compare_paired,
    distinct_rollouts,
    sign_flip_test,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "total"), [(0, 25), (1, 25), (73, 125), (124, 125), (125, 125)])
def test_wilson_bounds_are_the_rates_that_a_score_test_just_does_not_reject(successes: int, total: int) -> None:
    interval = wilson_interval(successes / total, total)
    assert (interval.low == 0) == (successes == 0) and (interval.high == 1) == (successes == total)
    for bound in {interval.low, interval.high} - {0.0, 1.0}:
        assert abs(successes / total - bound) / math.sqrt(bound * (1 - bound) / total) == pytest.approx(1.959964)


def test_without_rollouts_the_wilson_interval_says_nothing() -> None:
    assert wilson_interval(0.5, 0) == Interval(0.0, 1.0)


def test_seeds_that_fail_together_widen_the_interval_over_states() -> None:
    together = {state: [float(state < 13)] * 5 for state in range(25)}
    independent = {rollout: [float(rollout < 65)] for rollout in range(125)}
    wide, narrow = cluster_bootstrap(together), cluster_bootstrap(independent)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    wilson = wilson_interval(65 / 125, 125)
    assert (narrow.low, narrow.high) == pytest.approx((wilson.low, wilson.high), abs=0.02)


def test_cluster_bootstrap_is_the_same_every_time_and_inside_the_range() -> None:
    clusters = {0: [1.0, 0.0], 1: [1.0, 1.0, 1.0], 2: [0.0]}
    assert cluster_bootstrap(clusters) == cluster_bootstrap(clusters)
    assert 0 <= cluster_bootstrap(clusters).low <= cluster_bootstrap(clusters).high <= 1


def test_cluster_bootstrap_refuses_no_data() -> None:
    with pytest.raises(ValueError, match="at least one cluster"):
        cluster_bootstrap({})


def rollout(task: str, state: int, success: bool, seed: int = 0, actions: str | None = None) -> dict[str, Any]:
    """What the statistics read of a record."""
    empty = ("error", "success_at_end", "steps_to_success", "reward", "plan_ms", "renders", "seconds")
    known = {"task": task, "state": state, "policy_seed": seed, "success_once": success, "actions_sha256": actions}
    return {**known, **dict.fromkeys(empty)}


def test_repeats_of_a_rollout_under_other_seeds_count_once() -> None:
    first = [rollout("PushCube", state, state < 10, seed, f"a{state}") for state in range(25) for seed in range(5)]
    second = [rollout("PushCube", state, state < 18, seed, f"b{state}") for state in range(25) for seed in range(5)]
    assert len(distinct_rollouts(first)) == 25
    (result,) = summarise(first, ["PushCube"], 125)
    assert (result.successes, result.rollouts, result.distinct) == (50, 125, 25)
    assert result.wilson == wilson_interval(10 / 25, 25)
    comparison = compare_paired(first, second)
    assert (comparison.pairs, comparison.only_second) == (25, 8)
    drawn = [rollout("PushCube", state, True, seed, f"{state}, {seed}") for state in range(25) for seed in range(5)]
    assert len(distinct_rollouts(drawn)) == compare_paired(first, drawn).pairs == 125
    failed = [rollout("PushCube", 0, False, seed) for seed in range(5)]
    assert len(distinct_rollouts(failed)) == compare_paired(failed, failed).pairs == 5


def test_a_policy_that_only_sometimes_repeats_itself_keeps_its_rate() -> None:
    solved = [rollout("PushCube", state, True, seed, f"a{state}") for state in range(24) for seed in range(5)]
    mostly = [*solved, *(rollout("PushCube", 24, False, seed, f"failed {seed}") for seed in range(5))]
    (result,) = summarise(mostly, ["PushCube"], 125)
    assert (result.rate, result.distinct) == (0.96, 29)
    assert result.wilson == wilson_interval(0.96, 29) and result.wilson.low < 0.96 < result.wilson.high
    always = [rollout("PushCube", state, True, seed, f"b{state}") for state in range(25) for seed in range(5)]
    comparison = compare_paired(mostly, always)
    assert comparison.risk_difference == pytest.approx(0.04)
    assert (comparison.pairs, comparison.only_second, comparison.only_first) == (29, 5, 0)


def test_paired_comparison_counts_only_rollouts_that_both_runs_have() -> None:
    first = [rollout("PushCube", state, state < 10) for state in range(25)]
    second = [rollout("PushCube", state, state < 18) for state in range(25)] + [rollout("PickCube", 0, True)]
    comparison = compare_paired(first, second)
    assert (comparison.pairs, comparison.only_first, comparison.only_second) == (25, 0, 8)
    assert comparison.risk_difference == pytest.approx(8 / 25)
    assert comparison.p_value == pytest.approx(2 * 0.5**8)
    assert 0 < comparison.interval.low < 8 / 25 < comparison.interval.high


def test_more_seeds_of_the_same_states_are_not_more_evidence() -> None:
    first = [rollout("PushCube", state, state < 10, seed) for state in range(25) for seed in range(5)]
    second = [rollout("PushCube", state, state < 18, seed) for state in range(25) for seed in range(5)]
    assert compare_paired(first, second).p_value == pytest.approx(2 * 0.5**8)


def test_the_sign_flip_test_is_that_of_all_sign_patterns() -> None:
    for differences in ([3, -1, 2, 0, 5, 1], [1, 1, -1, 1], [-4, 2], [2, -2], [0, 0]):
        patterns = itertools.product((-1, 1), repeat=len(differences))
        sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
        expected = sum(value >= abs(sum(differences)) for value in sums) / len(sums)
        assert sign_flip_test(differences) == pytest.approx(expected)


def test_equal_runs_do_not_differ() -> None:
    run = [rollout("PushCube", state, state % 2 == 0) for state in range(6)]
    comparison = compare_paired(run, run)
    assert (comparison.risk_difference, comparison.p_value) == (0.0, 1.0)


def test_runs_without_a_common_rollout_are_refused() -> None:
    with pytest.raises(ValueError, match="no rollout in common"):
        compare_paired([rollout("PushCube", 0, True)], [rollout("PickCube", 0, True)])


def write_compared(folder: Path, state_seed: int | None, successes: dict[tuple[int, int], bool]) -> None:
    run = identity(state_seed=state_seed)
    records = [record(run, "PushCube", state, seed, success) for (state, seed), success in successes.items()]
    write_run(folder, run, records)


def compare(*folders: Path) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).parents[1] / "benchmarks" / "compare.py"
    return subprocess.run([sys.executable, str(script), *map(str, folders)], capture_output=True, text=True)


def test_two_runs_are_compared_on_the_rollouts_that_both_have(tmp_path: Path) -> None:
    keys = [(state, seed) for state in range(4) for seed in range(2)]
    write_compared(tmp_path / "a", 500, dict.fromkeys(keys, False))
    write_compared(tmp_path / "b", 500, {key: key[0] > 0 for key in [*keys, (4, 0)]})
    write_compared(tmp_path / "c", None, dict.fromkeys(keys, False))
    result = compare(tmp_path / "a", tmp_path / "b")
    assert result.returncode == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if "PushCube" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][:5] == ["PushCube", "8", "0", "6", "+75.0"]
    assert "NOT THE PROTOCOL" in result.stdout
    refused = compare(tmp_path / "a", tmp_path / "c")
    assert refused.returncode == 2 and "start from different initial states" in refused.stderr
