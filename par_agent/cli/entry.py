"""How every command ends: errors, interruptions and exit codes, for `par-agent` and the scripts in `benchmarks/`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from par_agent.errors import UserError
from par_agent.interrupts import Interrupted, caught_interrupts

EXIT_BAD_INPUT = 2
RESUMES = "the same command resumes where this one stopped"


def run_command(program: str, command: Callable[[], int | None], resumes: bool = False) -> int:
    """Runs a command and returns its exit status.

    Args:
        program: what error messages begin with.
        command: returns the status; None counts as 0.
        resumes: whether the same command goes on where it was stopped.

    Returns:
        2 after bad input, 128 + n when signal n ended it (Ctrl-C: 130, SIGHUP: 129, SIGTERM: 143).
    """
    try:
        with caught_interrupts():
            return command() or 0
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as interruption:
        number, kept = int(signal.SIGINT), None
        if isinstance(interruption, Interrupted):
            number, kept = interruption.number, interruption.kept
        kept = kept or (RESUMES if resumes else None)
        print(f"\n{program}: interrupted{f'; {kept}' if kept else ''}.", file=sys.stderr)
        return 128 + number
