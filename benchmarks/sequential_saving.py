"""How many rollouts the sequential test saves: `python benchmarks/sequential_saving.py --rates 0.84 0.95`.

Simulates two policies whose rollouts succeed at these rates, independently, and stops each comparison as
`benchmarks/compare.py --sequential` does. Beside it is the fixed design: the least number of pairs with which McNemar's
exact test, the test of `benchmarks/compare.py`, tells the two apart with the same chance (its power).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from itertools import count
from typing import Annotated

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from par_agent.cli.options import run_script
from par_agent.evaluation.sequential import log_evidence
from par_agent.utils.checked import Checked, Count, Range, Seed

Chance = Annotated[float, Range(0, 1, above=True, below=True)]


@dataclass(frozen=True)
class SavingConfig(Checked):
    """Which comparison is simulated, and how often."""

    rates: tuple[Chance, Chance] = (0.84, 0.95)
    """Success rates of the two policies."""
    alpha: Chance = 0.05
    """Chance of telling two equal policies apart."""
    power: tuple[Chance, ...] = (0.8, 0.9, 0.95)
    """Chances of telling the two policies apart, one row for each."""
    runs: Count = 20_000
    """Simulated comparisons."""
    pairs: Count = 1000
    """Pairs after which a simulated comparison is given up."""
    seed: Seed = 0
    """Of the simulated outcomes."""


@dataclass(frozen=True)
class Saving:
    """The two designs at one power."""

    fixed: int
    """Pairs of the fixed design."""
    most: int
    """Pairs after which the sequential design gives up."""
    mean: float
    """Mean pairs of the sequential design."""
    false_alarms: float
    """Share of comparisons of two equal policies that the sequential design tells apart by then."""

    @property
    def saved(self) -> float:
        """Share of the fixed design's rollouts that the sequential design saves."""
        return 1 - self.mean / self.fixed


def stopping_times(rates: tuple[float, float], config: SavingConfig) -> np.ndarray:
    """Pairs (runs,) after which simulated comparisons stop; one more than all for those that do not."""
    draw, threshold, times = np.random.default_rng(config.seed), -math.log(config.alpha), []
    for _ in range(0, config.runs, 1000):
        won = draw.random((1000, config.pairs, 2)) < rates
        counts = np.cumsum(won & ~won[..., ::-1], axis=1)
        stopped = log_evidence(counts[..., 0], counts[..., 1]) >= threshold
        times.append(np.where(stopped.any(axis=1), stopped.argmax(axis=1), config.pairs) + 1)
    return np.concatenate(times)[: config.runs]


def fixed_pairs(rates: tuple[float, float], alpha: float, power: float) -> int:
    """The least pairs with which McNemar's exact two-sided test at `alpha` has this power; outcomes are independent."""
    only_first, only_second = rates[0] * (1 - rates[1]), rates[1] * (1 - rates[0])
    rejects: list[float] = []  # by the number of pairs that one policy solved
    for pairs in count(1):
        while len(rejects) <= pairs:
            total = len(rejects)
            most = int(binom.ppf(alpha / 2, total, 0.5))
            most -= binom.cdf(most, total, 0.5) > alpha / 2  # successes of the worse policy with which the test rejects
            share = only_second / (only_first + only_second)
            rejects.append(float(binom.cdf(most, total, share) + binom.sf(total - most - 1, total, share)))
        if np.dot(binom.pmf(np.arange(pairs + 1), pairs, only_first + only_second), rejects[: pairs + 1]) >= power:
            return pairs
    raise AssertionError


def savings(config: SavingConfig) -> dict[float, Saving]:
    """Both designs by power."""
    times = stopping_times(config.rates, config)
    equal = [stopping_times((rate, rate), config) for rate in config.rates]
    found = {}
    for power in config.power:
        most = int(np.quantile(times, power, method="inverted_cdf"))
        false_alarms = max(float((others <= most).mean()) for others in equal)
        fixed = fixed_pairs(config.rates, config.alpha, power)
        found[power] = Saving(fixed, most, float(np.minimum(times, most).mean()), false_alarms)
    return found


def main(config: SavingConfig) -> int:
    """Prints the table."""
    first, second = config.rates
    title = f"pairs of rollouts to tell {first:.0%} from {second:.0%} at {config.alpha:.0%}"
    table = Table(title=title)
    for column in ("power", "fixed", "sequential, at most", "mean", "saved", "false alarms"):
        table.add_column(column, justify="right")
    for power, found in savings(config).items():
        counts = (str(found.fixed), str(found.most), f"{found.mean:.1f}")
        table.add_row(f"{power:.0%}", *counts, f"{found.saved:.0%}", f"{found.false_alarms:.1%}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/sequential_saving.py", main, SavingConfig, __doc__))
