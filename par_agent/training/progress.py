"""How far a training run is: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY = 10
"""Steps between two lines of a log."""
BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


class StepProgress:
    """Counts steps and shows a short text with them; a context manager. It shows nothing unless ``enabled``."""

    def __init__(self, name: str, start: int, steps: int, enabled: bool = True) -> None:
        self._enabled, self._lines = enabled, enabled and not sys.stderr.isatty()
        self._start, self._done, self._steps, self._text = start, start, steps, ""
        self._began = time.monotonic()
        disable = not enabled or self._lines
        self._bar = tqdm(total=steps, initial=start, desc=name, smoothing=0.05, bar_format=BAR, disable=disable)

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, text: str | None = None) -> None:
        """One more step is done; ``text`` is shown from now on, None: as before."""
        self._done += 1
        if text is not None:
            self._text = text
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(1)
        if self._lines and (self._done % LINE_EVERY == 0 or self._done == self._steps):
            parts = (self._text, f"{self._left()} left")
            self.say(f"step {self._done}/{self._steps}: {', '.join(filter(None, parts))}")

    def say(self, text: Any) -> None:
        """Prints a line, above the bar if there is one."""
        if self._enabled:
            self._bar.write(str(text))
            sys.stdout.flush()

    def _left(self) -> str:
        seconds = (time.monotonic() - self._began) / (self._done - self._start) * (self._steps - self._done)
        return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"
