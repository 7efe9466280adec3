"""Normalisation statistics, accumulated in one pass."""

from __future__ import annotations

import numpy as np


class RunningStatistics:
    """Mean, standard deviation, minimum and maximum per feature over rows that arrive in pieces."""

    def __init__(self) -> None:
        self.count = 0
        """Rows so far."""
        self._sum = self._square = np.zeros(())
        self._low, self._high = np.full((), np.inf), np.full((), -np.inf)

    def add(self, rows: np.ndarray) -> None:
        """Adds rows (n, ...) of any float type."""
        if len(rows) == 0:
            return
        rows = rows.astype(np.float64)
        self.count += len(rows)
        self._sum = self._sum + rows.sum(0)
        self._square = self._square + (rows**2).sum(0)
        self._low = np.minimum(self._low, rows.min(0))
        self._high = np.maximum(self._high, rows.max(0))

    def result(self) -> dict[str, list]:
        """``mean``, ``std``, ``min``, ``max`` of what was added, as nested lists, ready for JSON."""
        if self.count == 0:
            raise ValueError("statistics of no rows")
        mean = self._sum / self.count
        std = np.sqrt(np.maximum(self._square / self.count - mean**2, 0.0))
        values = {"mean": mean, "std": std, "min": self._low, "max": self._high}
        return {name: np.round(value, 8).tolist() for name, value in values.items()}
