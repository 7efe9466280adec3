"""How every command ends: errors, interruptions and exit codes, for `par-agent` and the scripts in `benchmarks/`."""

from __future__ import annotations

import select
import signal
import sys
from collections.abc import Callable

from par_agent.errors import UserError
from par_agent.utils.interrupts import Interrupted, caught_interrupts, discard_stream

EXIT_BAD_INPUT = 2
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE
STDOUT, STDERR = 1, 2
RESUMES = "the same command resumes where this one stopped"


def run_command(program: str, command: Callable[[], int | None], resumes: bool = False) -> int:
    """Runs a command and returns its exit status; a result of None counts as 0.

    Error messages begin with ``program``. ``resumes``: whether the same command goes on where it was stopped.

    The status is 2 after bad input and 128 + n when signal n ended it (Ctrl-C: 130, SIGHUP: 129, SIGTERM: 143). When
    the reader of its output is gone (`par-agent info | true`), it is 141, as by SIGPIPE, without a message.
    """
    try:
        try:
            return _run(program, command, resumes)
        finally:
            _flush()
    except BrokenPipeError as error:
        if _reader_is_gone():
            return EXIT_BROKEN_PIPE
        print(f"{program}: error: what this command talks to has ended: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich has seen to it
            return EXIT_BROKEN_PIPE
        raise


def _run(program: str, command: Callable[[], int | None], resumes: bool) -> int:
    try:
        with caught_interrupts():
            return command() or 0
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as interruption:
        told = interruption if isinstance(interruption, Interrupted) else Interrupted(signal.SIGINT)
        kept = told.kept or (RESUMES if resumes else None)
        print(f"\n{program}: interrupted{f'; {kept}' if kept else ''}.", file=sys.stderr)
        return 128 + told.number


def _flush() -> None:
    """Flushes the output here, where a failure can be reported; at Python's end it cannot."""
    if sys.stdout is None:  # closed by the shell
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        discard_stream(STDOUT)
        raise


def _reader_is_gone() -> bool:
    """Whether the reader of this process's output or errors is gone; what is left of that stream is discarded."""
    streams = select.poll()
    for stream in (STDOUT, STDERR):
        streams.register(stream, 0)  # errors are always reported
    gone = [stream for stream, event in streams.poll(0) if event & select.POLLERR]
    for stream in gone:
        discard_stream(stream)
    return bool(gone)
