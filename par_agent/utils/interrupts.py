"""Ctrl-C, SIGTERM and SIGHUP set a flag; long work looks at it between two pieces.

An exception of a signal handler may arrive inside a destructor, where Python drops it, or in the middle of a clean-up.
Long work therefore asks::

    with deferred_interrupts() as interrupts:
        for piece in pieces:
            interrupts.check()
            do(piece)

Outside such blocks the handler raises at once, and again if Python dropped the exception. A second Ctrl-C ends the
process at once, as SIGKILL would: what was finished before is kept. Signals that the process ignores (under ``nohup``,
in the background of a shell) or that the program handles in a way of its own are left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What tells a command to end."""
AGAIN = 0.05
"""Seconds after which an exception that Python has dropped is raised again."""


class Interrupted(KeyboardInterrupt):
    """The process was told to end by a signal; ``kept`` says what is kept of the work, None: what the command says."""

    def __init__(self, number: int, kept: str | None = None) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.kept = number, kept


class Interrupts:
    """The signals that this process got; comes from :func:`deferred_interrupts` or :func:`caught_interrupts`.

    Code that waits for connections should wait for :meth:`fileno` too, and then call :meth:`check`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal that came."""
        self._deferred = False
        self._readable, self._writable = os.pipe()
        for end in (self._readable, self._writable):
            os.set_blocking(end, False)
        self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def fileno(self) -> int:
        """A file descriptor that can be read from once a signal has come."""
        return self._readable

    def check(self) -> None:
        """Raises :class:`Interrupted` if a signal has come."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._readable, 4096)  # signals that mean something else would wake a waiting loop for ever
        if self.received is not None:
            raise Interrupted(self.received)

    def close(self) -> None:
        """Frees the file descriptors."""
        os.close(self._readable)
        os.close(self._writable)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handles signals while the block runs; for the main thread only."""
        free = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: signal.getsignal(number) for number in SIGNALS if signal.getsignal(number) in free}
        alarm = signal.getsignal(signal.SIGALRM)
        woken_before = signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        try:
            for number in before:
                signal.signal(number, self.handle)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            sys.unraisablehook = self._hook
            signal.set_wakeup_fd(woken_before)
            if signal.getsignal(signal.SIGALRM) == self._raise_again and alarm is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, alarm)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only :meth:`check` raises while the block runs."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def handle(self, number: int, frame: Any) -> None:
        """The signal handler, which raises :class:`Interrupted` outside of a deferred block."""
        if number == signal.SIGHUP:
            for stream in self._terminals:
                if not os.isatty(stream):  # closed: writing there is an error
                    discard_stream(stream)
        first = self.received is None
        if not first and number == signal.SIGINT:
            _tell("\nended at once; what was finished before is kept\n")
            os._exit(128 + number)  # worker processes end with this one
        self.received = self.received or number
        if not self._deferred:
            raise Interrupted(self.received)
        if first:
            _tell("\ntold to end: the piece of work in hand is finished; Ctrl-C again ends at once\n")

    def _dropped(self, unraisable: Any) -> None:
        """Raises an interruption again, a little later, that Python dropped; one raised here would be dropped too."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._hook(unraisable)
            return
        signal.signal(signal.SIGALRM, self._raise_again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)

    def _raise_again(self, number: int, frame: Any) -> None:
        if self.received is not None and not self._deferred:
            raise Interrupted(self.received)


def discard_stream(stream: int) -> None:
    """Discards all that is written to a file descriptor from now on, what its buffer holds included."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream)


def _tell(text: str) -> None:
    """Writes to stderr past its buffer, which may be in use when the signal comes, and shows a bar's hidden cursor."""
    with contextlib.suppress(OSError):
        os.write(2, (("\x1b[?25h" if os.isatty(2) else "") + text).encode())


@contextlib.contextmanager
def caught_interrupts() -> Iterator[Interrupts]:
    """Signals are caught while the block runs. Inner blocks get what the outermost one made.

    Outside of the main thread, where Python delivers no signals, none ever comes.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and (outer := _installed()) is not None:
        yield outer
        return
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(contextlib.closing(Interrupts()))
        if main:
            stack.enter_context(interrupts.installed())
        yield interrupts


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Interrupts]:
    """Signals are caught while the block runs, and only :meth:`Interrupts.check` raises."""
    with caught_interrupts() as interrupts, interrupts.deferred():
        interrupts.check()  # a signal may have come before, and Python have dropped what the handler raised
        yield interrupts


def _installed() -> Interrupts | None:
    """The object that handles this process's signals, found by the table of handlers."""
    owners = (getattr(signal.getsignal(number), "__self__", None) for number in SIGNALS)
    return next((owner for owner in owners if isinstance(owner, Interrupts)), None)
