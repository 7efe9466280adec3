"""The exceptions that are meant for the user's eyes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class UserError(ValueError):
    """Bad input. The message names what was given, what is allowed and what to do next.

    Every function that takes user input may raise it; a docstring names it only where the reason is not obvious.
    The command line prints it without a traceback and exits with status 2.
    """


class UnavailableError(UserError):
    """Something a rollout needs is gone, for example a model server: the run ends, and the rollout does not count.

    No record of the rollout is written; the same command repeats it when what was missing is back.
    """


@contextlib.contextmanager
def user_errors(prefix: str = "") -> Iterator[None]:
    """Makes a ValueError about what the user gave a :class:`UserError`; ``prefix`` comes before its message."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error


@contextlib.contextmanager
def reader_faults(damaged: Callable[[str], UserError], name: str = "", longest: int | None = None) -> Iterator[None]:
    """Makes whatever a library raises while it reads a damaged file a :class:`UserError`.

    Args:
        damaged: makes the error that names the file, from what was found.
        name: the part that is read.
        longest: characters kept of the library's message; None: all.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        words = " ".join(str(error).split())[:longest] or type(error).__name__
        raise damaged(f"{name}: {words}" if name else words) from None
