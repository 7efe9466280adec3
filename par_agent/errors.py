"""The exceptions that are meant for the user's eyes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input. The message names what was given, what is allowed and what to do next.

    The command line prints it without a traceback and exits with status 2.
    """


class UnavailableError(UserError):
    """What a rollout needs is gone, say a model server or the initial states: that ends the run, and is no failure.

    No record is written of the rollout; the same command goes on with it when what was gone is back.
    """


@contextlib.contextmanager
def user_errors(prefix: str = "") -> Iterator[None]:
    """Makes a ValueError about what the user gave a :class:`UserError`; ``prefix`` comes before its message."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error
