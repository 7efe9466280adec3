"""Intervals and tests for success rates.

Rollouts that share an initial state are not independent: five policy seeds on a hard state fail together. The Wilson
interval treats all distinct rollouts as independent, as other papers' tables do. The cluster bootstrap and the paired
test draw whole initial states; trust them where they differ from Wilson's. A policy without random numbers does the
same under every policy seed: such repeats count in rates, but add no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from par_agent.evaluation.records import Record, record_key

BOOTSTRAP_DRAWS = 10_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float

    @property
    def percent(self) -> str:
        """The interval of a rate, in percent."""
        return f"{100 * self.low:.1f}–{100 * self.high:.1f}"


def distinct_rollouts(records: Iterable[Record]) -> list[Record]:
    """Without those that repeat another's actions (by hash) from the same initial state; errors repeat nothing."""
    found: dict[Hashable, Record] = {}
    for record in records:
        found.setdefault(_distinct_key(record), record)
    return list(found.values())


def _distinct_key(*records: Record) -> Hashable:
    """What a rollout, or a pair of one initial state and policy seed, shares with its repeats and nothing else."""
    first, actions = records[0], tuple(record["actions_sha256"] for record in records)
    return record_key(first) if None in actions else (first["task"], first["state"], *actions)


def wilson_interval(rate: float, trials: int) -> Interval:
    """Wilson's score interval for a proportion, 95%.

    Args:
        rate: share of successes among all rollouts, 0..1; need not be a whole number of ``trials``.
        trials: independent trials that the rate is worth; with none, the interval is [0, 1].
    """
    if trials == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    doubt = z * z / trials
    center, reach = rate + doubt / 2, math.sqrt(doubt * (rate * (1 - rate) + doubt / 4))
    low, high = (center - reach) / (1 + doubt), (center + reach) / (1 + doubt)
    return Interval(0.0 if rate == 0 else low, 1.0 if rate == 1 else high)


def cluster_bootstrap(values: Mapping[Hashable, Sequence[float]], seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean, drawing whole clusters with replacement, 95%.

    Args:
        values: outcomes by cluster (for success rates: 0 or 1 by initial state); clusters may differ in size.
        seed: of the draws; the same seed gives the same interval.

    Where all clusters have the same mean, the interval is a point: read Wilson's then.
    """
    if not values or any(len(cluster) == 0 for cluster in values.values()):
        raise ValueError("the cluster bootstrap needs at least one cluster and no empty ones")
    sums = np.array([math.fsum(cluster) for cluster in values.values()])
    sizes = np.array([len(cluster) for cluster in values.values()])
    drawn = np.random.default_rng(seed).integers(len(sums), size=(BOOTSTRAP_DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class PairedComparison:
    """Two methods on the same rollouts: same task, initial state and policy seed."""

    pairs: int
    """Rollouts that both methods have, without pairs that repeat another's actions."""
    only_first: int
    """Of those, pairs in which only the first method succeeded."""
    only_second: int
    """Of those, pairs in which only the second method succeeded."""
    risk_difference: float
    """Success rate of the second method minus that of the first over all rollouts that both have, -1..1."""
    interval: Interval
    """95% interval of the risk difference, cluster bootstrap over initial states."""
    p_value: float
    """Exact two-sided sign-flip test by initial state; McNemar's exact test where each has one rollout."""


def compare_paired(first: Iterable[Record], second: Iterable[Record]) -> PairedComparison:
    """Compares two methods' successes in the rollouts that both have; raises ValueError where there are none."""
    partners = {record_key(record): record for record in second}
    shared = [(record, partners[record_key(record)]) for record in first if record_key(record) in partners]
    if not shared:
        raise ValueError("the two runs have no rollout in common: compare runs of the same tasks and initial states")
    differences: dict[Hashable, list[float]] = {}
    distinct: dict[Hashable, tuple[bool, bool]] = {}
    for record, partner in shared:
        one, other = bool(record["success_once"]), bool(partner["success_once"])
        differences.setdefault((record["task"], record["state"]), []).append(float(other) - float(one))
        distinct.setdefault(_distinct_key(record, partner), (one, other))
    only_first = sum(one and not other for one, other in distinct.values())
    only_second = sum(other and not one for one, other in distinct.values())
    return PairedComparison(
        pairs=len(distinct),
        only_first=only_first,
        only_second=only_second,
        risk_difference=sum(map(sum, differences.values())) / len(shared),
        interval=cluster_bootstrap(differences),
        p_value=sign_flip_test([round(sum(values)) for values in differences.values()]),
    )


def sign_flip_test(differences: Sequence[int]) -> float:
    """Exact two-sided p-value of a sum of differences, each of which could as well have had the other sign."""
    sizes = [abs(difference) for difference in differences if difference]
    chances = np.ones(1)  # of every sum from -sum(sizes) on, in steps of 1
    for size in sizes:
        chances = (np.pad(chances, (0, 2 * size)) + np.pad(chances, (2 * size, 0))) / 2
    sums = np.arange(len(chances)) - sum(sizes)
    return min(1.0, float(chances[np.abs(sums) >= abs(sum(differences))].sum()))
