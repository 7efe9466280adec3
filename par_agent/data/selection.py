"""Selects the episodes of a source that become training data: asked for, successful, undamaged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm

from par_agent.errors import UserError


def parse_numbers(text: str) -> tuple[int, ...]:
    """Episode numbers of a text, in its order, each once.

    >>> parse_numbers("0-3,120")
    (0, 1, 2, 3, 120)
    """
    numbers: list[int] = []
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"([0-9]{1,7})(?:-([0-9]{1,7}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UserError(f"episodes are {text!r}; expected numbers and ranges such as 0-99,120")
        numbers += range(first, last + 1)
    if len(set(numbers)) < len(numbers):
        raise UserError(f"episodes are {text!r}; one of them is named twice")
    return tuple(numbers)


def format_numbers(numbers: Iterable[int]) -> str:
    """Inverse of :func:`parse_numbers`, in as few ranges as the order allows.

    >>> format_numbers((0, 1, 2, 3, 120))
    '0-3,120'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] + 1 == number:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def select(
    source: str,
    available: Sequence[int],
    episodes: str | None,
    succeeded: Callable[[int], bool | None],
    check: Callable[[int], None],
    *,
    limit: int | None = None,
    include_failures: bool = False,
    skip_corrupt: bool = False,
) -> tuple[int, ...]:
    """Numbers of the episodes to take; says what was left out.

    Args:
        source: name of the source, for messages.
        available: numbers of its episodes, in their order.
        episodes: numbers of those that are wanted, as :func:`parse_numbers` reads them; None: all.
        succeeded: tells whether an episode ended in success; None: it is not known, and the episode is taken.
        check: raises a UserError for an episode that cannot be used.
        limit: how many to take, the first ones; fewer are an error. None: all.
        include_failures: takes also episodes that did not succeed.
        skip_corrupt: leaves out those that cannot be used, instead of ending with an error.
    """
    wanted = tuple(available) if episodes is None else parse_numbers(episodes)
    if absent := sorted(set(wanted) - set(available)):
        raise UserError(
            f"{source} has no episode {format_numbers(absent)}; it has {format_numbers(available) or 'none at all'}"
        )
    taken: list[int] = []
    failed, unusable = 0, 0
    with tqdm(wanted, desc="check episodes", unit="episode", leave=False) as progress:
        for number in progress:
            if limit is not None and len(taken) == limit:
                break
            try:
                if not include_failures and succeeded(number) is False:
                    failed += 1
                    continue
                check(number)
            except UserError as error:
                if not skip_corrupt:
                    raise UserError(f"{error}; or leave such episodes out: --skip-corrupt") from None
                progress.write(f"left out: {error}")
                unusable += 1
                continue
            taken.append(number)
    seen = len(taken) + failed + unusable
    notes = [f"left out {failed} of {seen} episodes that did not succeed; --include-failures keeps them"] * (failed > 0)
    notes += [f"left out {unusable} of {seen} episodes that cannot be used"] * (unusable > 0)
    if limit is not None and len(taken) < limit:
        reasons = "".join(f" ({note})" for note in notes)
        raise UserError(f"--num {limit} asks for more episodes than the {len(taken)} in {source}{reasons}")
    if not taken:
        raise UserError(f"no episode of {source} is left: {'; '.join(notes) or 'it holds none'}")
    for note in notes:
        print(note)
    return tuple(taken)
