"""A test of two policies that may be looked at after every rollout, and stopped as soon as it tells them apart.

Two policies have the same success rate exactly if, among pairs of rollouts that only one of them solves, either is as
likely to be that one. So the test bets on that: its evidence is the capital of a gambler who began with 1 and bets on
coins that are fair under equal rates. Then it ever reaches 1 / alpha with a chance of at most alpha (Ville's
inequality), however often one looks: Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and safe
anytime-valid inference", Statistical Science 38 (4), 2023. The bets are a mixture, as in Robbins, "Statistical methods
related to the law of the iterated logarithm", Annals of Mathematical Statistics 41 (5), 1970.

A pair is two rollouts from the same initial state, or, where the policies began in different ones, any two: their
outcomes only have to be drawn alike from pair to pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHARE, WEIGHT = 0.75, 0.9
"""The main bet is that one policy, either of them, solves this share of what only one solves. The rest of the capital
is spread evenly over all shares, so that any difference is found in the end."""


@dataclass(frozen=True)
class SequentialResult:
    """What the test came to."""

    pairs: int
    """Pairs looked at, in order: all, or those until the test stopped."""
    only_first: int
    """Of those, pairs that only the first policy solved."""
    only_second: int
    """Of those, pairs that only the second policy solved."""
    stopped: bool
    """Whether the policies' success rates differ; the better one solved more of those pairs."""
    p_value: float
    """Valid at any time: the least of all so far."""


def log_evidence(only_first: np.ndarray, only_second: np.ndarray) -> np.ndarray:
    """Logarithm of the evidence against equal rates, elementwise, for counts of pairs that only one policy solved."""
    total = only_first + only_second
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total.max(initial=0) + 2)))])  # of 0, 1, ...
    evenly = factorials[only_first] + factorials[only_second] - factorials[total + 1]
    bets = [evenly + np.log(1 - WEIGHT)]
    for wins, losses in ((only_first, only_second), (only_second, only_first)):
        bets.append(wins * np.log(SHARE) + losses * np.log(1 - SHARE) + np.log(WEIGHT / 2))
    capital: np.ndarray = np.logaddexp.reduce(bets) + total * np.log(2)
    return capital


def compare_sequentially(outcomes: Sequence[tuple[bool, bool]], alpha: float = 0.05) -> SequentialResult:
    """Tests at level `alpha` whether two policies' success rates differ, from the outcomes of pairs in their order."""
    won = np.asarray(outcomes, dtype=bool).reshape(-1, 2)
    only_first, only_second = np.cumsum(won & ~won[:, ::-1], axis=0).T
    evidence = log_evidence(only_first, only_second)
    found = np.flatnonzero(evidence >= -np.log(alpha))
    pairs = int(found[0]) + 1 if len(found) else len(won)
    counts = (int(only_first[pairs - 1]), int(only_second[pairs - 1])) if pairs else (0, 0)
    p_value = float(np.exp(-max(0.0, evidence[:pairs].max(initial=0.0))))
    return SequentialResult(pairs, *counts, bool(len(found)), p_value)
