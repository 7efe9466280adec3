"""Ctrl-C, SIGTERM and SIGHUP: never lost, obeyed between pieces of work, at once the second time."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from held import TIMEOUT, default_signals
from par_agent.cli.entry import run_command
from par_agent.errors import UserError
from par_agent.utils.interrupts import SIGNALS, Interrupted, caught_interrupts, deferred_interrupts


@pytest.fixture(autouse=True)
def _default_signals() -> Iterator[None]:
    """As in a terminal, however the tests were started; checks that all is as before in the end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    default = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == default
    for number, handler in before.items():
        signal.signal(number, handler)


class RaisesInItsDestructor:
    """Python drops what comes up in there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def wait_for_ever() -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_next_check(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    done = []
    with pytest.raises(Interrupted) as interruption, deferred_interrupts() as interrupts:
        for piece in range(4):
            interrupts.check()
            if piece == 1:
                signal.raise_signal(number)
            done.append(piece)
    assert done == [0, 1] and interruption.value.number == number
    assert "the piece of work in hand is finished; Ctrl-C again ends at once" in capfd.readouterr().err


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_deferred_blocks_a_signal_raises_at_once(number: int) -> None:
    with caught_interrupts():
        with deferred_interrupts():
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_comes_inside_a_destructor_is_not_lost(number: int) -> None:
    with pytest.raises(Interrupted), deferred_interrupts() as interrupts:
        RaisesInItsDestructor(number)
        interrupts.check()
    with pytest.raises(Interrupted), caught_interrupts():
        RaisesInItsDestructor(number)
        wait_for_ever()
    with pytest.raises(Interrupted), caught_interrupts():
        RaisesInItsDestructor(number)
        with deferred_interrupts():
            pytest.fail("a deferred block began after a signal")
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_inner_blocks_share_what_the_outermost_one_caught() -> None:
    with caught_interrupts() as outer, deferred_interrupts() as first:
        with deferred_interrupts() as second:
            assert outer is first is second
        signal.raise_signal(signal.SIGTERM)  # still deferred
        assert outer.received == signal.SIGTERM


def test_what_waits_for_connections_is_woken() -> None:
    ours, theirs = os.pipe()
    with deferred_interrupts() as interrupts:
        sender = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        sender.start()
        assert wait([ours, interrupts.fileno()], TIMEOUT) == [interrupts.fileno()]
        sender.join()
        with pytest.raises(Interrupted):
            interrupts.check()
    os.close(ours)
    os.close(theirs)


def test_a_signal_that_means_something_else_wakes_once() -> None:
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    with deferred_interrupts() as interrupts:
        signal.raise_signal(signal.SIGUSR1)
        assert wait([interrupts.fileno()], TIMEOUT)
        interrupts.check()
        assert not wait([interrupts.fileno()], 0)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_ignored_signals_and_those_with_a_handler_are_left_alone() -> None:
    handled = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
    with deferred_interrupts() as interrupts:
        for number in (signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
        interrupts.check()
    assert handled == [signal.SIGTERM]
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def test_other_threads_are_never_interrupted() -> None:
    found = []

    def work() -> None:
        with deferred_interrupts() as interrupts:
            interrupts.check()
            found.append(interrupts)

    with caught_interrupts() as outer:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found != [outer] and len(found) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_exit_status_tells_the_signal(number: int, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("tool", lambda: signal.raise_signal(number)) == status
    assert capsys.readouterr().err == "\ntool: interrupted.\n"
    assert run_command("tool", lambda: signal.raise_signal(number), resumes=True) == status
    assert capsys.readouterr().err == "\ntool: interrupted; the same command resumes where this one stopped.\n"


def test_errors_of_the_user_and_results_have_a_status() -> None:
    def refuse() -> None:
        raise UserError("no")

    assert [run_command("tool", command) for command in (refuse, lambda: None, lambda: 7)] == [2, 0, 7]


STUCK = """
import sys
from par_agent.cli.entry import run_command
from par_agent.utils.interrupts import deferred_interrupts

def stuck():
    with deferred_interrupts():
        print("stuck", flush=True)
        while True:
            pass

sys.exit(run_command("tool", stuck))
"""


def test_a_second_ctrl_c_ends_at_once() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "stuck\n"
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            process.send_signal(number)
            if number == signal.SIGTERM:
                assert process.stderr.readline() == "\n" or process.poll() is None
        assert process.wait(TIMEOUT) == 130
        assert process.stderr.read().endswith("ended at once; what was finished before is kept\n")


LOST_TERMINAL = """
import signal, sys, time
from pathlib import Path
from par_agent.cli.entry import run_command
from par_agent.utils.interrupts import deferred_interrupts

def work():
    with deferred_interrupts() as interrupts:
        print("working", flush=True)
        while interrupts.received is None:
            time.sleep(0.01)
        print("saving", flush=True)
        print("saving", file=sys.stderr, flush=True)
        Path(sys.argv[1]).touch()
        interrupts.check()

sys.exit(run_command("tool", work))
"""


def test_a_command_whose_terminal_is_closed_saves_and_ends(tmp_path: Path) -> None:
    screen, terminal = os.openpty()

    def in_the_terminal() -> None:
        default_signals()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-c", LOST_TERMINAL, str(tmp_path / "saved")]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    with subprocess.Popen(command, **streams, start_new_session=True, preexec_fn=in_the_terminal) as process:  # type: ignore[call-overload]
        os.close(terminal)
        assert os.read(screen, 100).startswith(b"working")
        os.close(screen)
        assert process.wait(TIMEOUT) == 128 + signal.SIGHUP
    assert (tmp_path / "saved").exists()
