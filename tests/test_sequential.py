"""The sequential test: it is a fair game under equal rates, stops early, and says what that saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import CompareConfig, comparison_table
from sequential_saving import SavingConfig, fixed_pairs, savings

from made_runs import identity, record, write_run
from par_agent.evaluation.sequential import compare_sequentially, log_evidence

SECOND_BETTER, BOTH = (False, True), (True, True)


def evidence(only_first: int, only_second: int) -> float:
    return math.exp(float(log_evidence(np.array([only_first]), np.array([only_second]))[0]))


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 0), (2, 9), (40, 40)])
def test_under_equal_rates_the_next_pair_neither_adds_nor_takes_evidence_on_average(
    only_first: int, only_second: int
) -> None:
    before = evidence(only_first, only_second)
    after = (evidence(only_first + 1, only_second) + evidence(only_first, only_second + 1)) / 2
    assert after == pytest.approx(before)
    assert before == pytest.approx(evidence(only_second, only_first))
    assert evidence(0, 0) == pytest.approx(1)


def test_the_test_stops_at_the_first_pair_that_tells_the_policies_apart() -> None:
    result = compare_sequentially([BOTH, *[SECOND_BETTER] * 30], alpha=0.05)
    assert result.stopped and result.only_first == 0 and result.only_second == result.pairs - 1
    assert evidence(0, result.only_second - 1) < 20 <= evidence(0, result.only_second)
    assert result.p_value == pytest.approx(1 / evidence(0, result.only_second))
    stricter = compare_sequentially([BOTH, *[SECOND_BETTER] * 30], alpha=0.001)
    assert stricter.pairs > result.pairs


def test_policies_that_solve_the_same_are_never_told_apart() -> None:
    result = compare_sequentially([BOTH, (False, False)] * 200)
    assert (result.pairs, result.only_first, result.only_second, result.stopped) == (400, 0, 0, False)
    assert result.p_value == pytest.approx(1)
    assert compare_sequentially([]).pairs == 0


def test_telling_84_from_95_percent_takes_at_least_40_percent_fewer_rollouts_and_errs_within_5_percent() -> None:
    found = savings(SavingConfig(power=(0.95,), runs=4000, pairs=400))[0.95]
    assert found.saved >= 0.4
    assert found.false_alarms <= 0.05


def test_the_fixed_design_is_that_of_mcnemars_test() -> None:
    gap, only_one = 0.95 - 0.84, 0.84 * 0.05 + 0.95 * 0.16
    normal = ((1.96 * math.sqrt(only_one) + 1.645 * math.sqrt(only_one - gap**2)) / gap) ** 2
    assert normal <= fixed_pairs((0.84, 0.95), 0.05, 0.95) <= normal + 12


def write(folder: Path, solved: range, states: int, seeds: int = 1, **changes: Any) -> Path:
    run = identity(**changes)
    keys = [(state, seed) for seed in range(seeds) for state in range(states)]
    write_run(folder, run, [record(run, "PickCube", *key, success=key[0] in solved) for key in keys])
    return folder


def cells(first: Path, second: Path) -> list[str]:
    table = comparison_table(CompareConfig(first, second, sequential=True))
    return [next(iter(column.cells)) for column in table.columns]


def test_the_comparison_says_when_it_could_have_stopped_and_what_that_saves(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", range(0), 25, seeds=2), write(tmp_path / "b", range(25), 25)
    stop = compare_sequentially([SECOND_BETTER] * 25).pairs
    assert cells(first, second)[:7] == [
        *("PickCube", str(stop), "0", str(stop), "B", str(2 * stop), str(2 * (25 - stop)))
    ]
    assert cells(second, first)[4] == "A"
    same = cells(second, write(tmp_path / "c", range(25), 20))
    assert same == ["PickCube", "20", "0", "0", "not known yet", "40", "0", "1"]


def test_runs_from_different_initial_states_are_compared_as_not_paired(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", range(0), 25), write(tmp_path / "b", range(25), 25, state_seed=500)
    table = comparison_table(CompareConfig(first, second, sequential=True))
    assert "NOT PAIRED" in str(table.title)
    assert cells(first, second)[4] == "B"
