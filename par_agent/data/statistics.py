"""Normalisation statistics, accumulated in one pass."""

from __future__ import annotations

import numpy as np


class RunningStatistics:
    """Mean, standard deviation, minimum and maximum per feature over rows that arrive in pieces."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: np.ndarray | None = None
        self._square: np.ndarray | None = None
        self._low: np.ndarray | None = None
        self._high: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        """Adds rows (n, ...) of any float type."""
        if len(rows) == 0:
            return
        rows = rows.astype(np.float64)
        parts = rows.sum(0), (rows**2).sum(0), rows.min(0), rows.max(0)
        if self._sum is None:
            self._sum, self._square, self._low, self._high = parts
        else:
            self._sum = self._sum + parts[0]
            self._square = self._square + parts[1]
            self._low = np.minimum(self._low, parts[2])
            self._high = np.maximum(self._high, parts[3])
        self._count += len(rows)

    def result(self) -> dict[str, list]:
        """``mean``, ``std``, ``min``, ``max`` as nested lists, ready for JSON.

        Raises:
            ValueError: nothing was added.
        """
        if self._sum is None or self._square is None or self._low is None or self._high is None:
            raise ValueError("statistics of no rows")
        mean = self._sum / self._count
        std = np.sqrt(np.maximum(self._square / self._count - mean**2, 0.0))
        values = {"mean": mean, "std": std, "min": self._low, "max": self._high}
        return {name: np.round(value, 8).tolist() for name, value in values.items()}
