"""Ranges of the options of all commands, by name: one name means the same everywhere, and has one range."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from par_agent.errors import UserError


@dataclass(frozen=True)
class Range:
    """Numbers from a lowest to a highest one."""

    lowest: float
    highest: float
    above: bool = False
    """Whether the lowest is itself out of range."""
    below: bool = False
    """Whether the highest is itself out of range."""

    def __contains__(self, value: float) -> bool:
        low = value > self.lowest if self.above else value >= self.lowest
        return low and (value < self.highest if self.below else value <= self.highest)

    def allowed(self, value: float) -> str:
        """What is allowed in place of a value out of range, in words."""
        low = f"above {_short(self.lowest)}" if self.above else f"at least {_short(self.lowest)}"
        high = f"below {_short(self.highest)}" if self.below else f"at most {_short(self.highest)}"
        if self.highest <= 1:
            return f"from {_short(self.lowest)} to {_short(self.highest)}" if not self.below else f"{low} and {high}"
        return low if value < self.highest else high


Ranges = dict[str, Range | tuple[Range | None, ...]]
"""Of options by name; of one that is several, of each of them. None: no number."""
MANY = 10**9
"""More steps, episodes or seconds than anybody has."""
_COUNT, NUMBER, _SHARE = Range(1, MANY), Range(0, MANY), Range(0, 1)
_POSITIVE = Range(0, MANY, above=True)
_PIXELS = Range(1, 16_384)
_OFFSET = Range(0, 16_383)

RANGES: Ranges = {
    **dict.fromkeys(("demos", "every", "limit", "max_steps", "num", "repeats", "rounds"), _COUNT),
    **dict.fromkeys(("plain_steps", "rollout_states", "states", "steps", "validate_every", "keep"), _COUNT),
    **dict.fromkeys(("save_minutes", "picture_minutes", "phase", "rollout_every", "video", "videos"), NUMBER),
    **dict.fromkeys(("warmup", "motion_steps", "look", "state"), NUMBER),
    **dict.fromkeys(("ema", "frame_fraction", "past_action_dropout", "single_step", "temperature"), _SHARE),
    **dict.fromkeys(("first_seed", "seed", "state_seed"), Range(0, 2**32 - 1)),
    **dict.fromkeys(("batch", "batch_size", "accumulation"), Range(1, 65_536)),
    **dict.fromkeys(("context", "window", "step", "foresight", "chunk_length", "stride"), Range(1, 10_000)),
    **dict.fromkeys(("denoising_steps", "diffusion_steps", "mask_steps"), Range(1, 10_000)),
    **dict.fromkeys(("head", "layer", "imagine", "threads", "workers", "variants"), Range(1, 1024)),
    **dict.fromkeys(("proprioception_noise", "recovery_noise", "guidance", "flow"), Range(0, 1000)),
    **dict.fromkeys(("lora_rank", "lora_alpha"), Range(1, 65_536)),
    **dict.fromkeys(("kl_weight", "weight_decay"), Range(0, 1000)),
    **dict.fromkeys(("attention", "failure"), (None, NUMBER)),
    "alignment": Range(0, 1024),
    "clip": _POSITIVE,
    "color_jitter": Range(0, 1, below=True),
    "crop": (_OFFSET, _OFFSET, _PIXELS, _PIXELS),
    "fps": Range(0, 1000, above=True),
    "frames": Range(1, 10_001),
    "learning_rate": Range(0, 100, above=True),
    "max_memory": _POSITIVE,
    "patch": _PIXELS,
    "policy_seeds": Range(1, 10_000),
    "port": Range(0, 65_535),
    "shift": Range(0, 1024),
    "size": _PIXELS,
    "weights": _POSITIVE,
}
"""Of every option that is a number."""

_ADDRESS = re.compile(r"auto|(ray://)?([^\s/:]+|\[[\da-fA-F:]+\]):\d{1,5}")
MAY_BE_EMPTY = ("negative_prompt",)
"""Options whose text may be empty."""


class Checked:
    """Base of dataclasses of options: each option is in its range of :data:`RANGES`, and no text or list is empty.

    Raises:
        UserError: one is not; the message names it.
    """

    out_is_file: ClassVar[bool] = False
    """Whether the option ``out`` names a file, and no folder."""
    other_ranges: ClassVar[Ranges] = {}
    """Those of options that mean something else in this class."""

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, option.name)
            ranges = self.other_ranges.get(option.name, RANGES.get(option.name))
            if not isinstance(value, tuple):
                _check(option.name, value, value, None if isinstance(ranges, tuple) else ranges)
                continue
            if not value and option.default not in ((), None):  # an empty list is a choice beside None
                raise UserError(f"{option.name} is empty; leave it out, or give it a value")
            each = ranges if isinstance(ranges, tuple) else (ranges,) * len(value)
            for part, allowed in zip(value, each, strict=True):
                _check(option.name, value, part, allowed)


def _check(name: str, value: Any, part: Any, allowed: Range | None) -> None:
    """Checks one of the values of an option."""
    each = "each" if isinstance(value, tuple) else "it"
    if isinstance(part, str | Path):
        if "\0" in str(part):
            raise UserError(f"{name} is {str(part)!r}; {each} must be without the character of number 0")
        if not str(part).strip() and name not in MAY_BE_EMPTY:
            raise UserError(f"{name} is empty; leave it out, or give it a value")
        if name == "cluster" and not _ADDRESS.fullmatch(str(part)):
            raise UserError(f"cluster is {part!r}; it must be HOST:PORT of a Ray cluster's head, or auto")
    elif isinstance(part, int | float) and not isinstance(part, bool):
        if not math.isfinite(part):
            raise UserError(f"{name} is {value}; {each} must be a finite number")
        if allowed is not None and part not in allowed:
            raise UserError(f"{name} is {value}; {each} must be {allowed.allowed(part)}")


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
