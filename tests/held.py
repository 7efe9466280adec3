"""Commands that hold still at a chosen moment until they are stopped or let go: signals meet them there, not by chance.

As a program, `python tests/held.py par-agent ...` runs a subcommand in a process that holds at the moment that
:class:`Held` has put into the environment; so do the worker processes that it starts.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PLAN = "HELD_PLAN"
"""Environment variable that tells a command where to hold."""
TIMEOUT = 600
"""Seconds that anything may take; only a test that fails waits for so long."""
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
"""Audit events of what changes a folder, beside files that are opened to be written."""


@dataclass(frozen=True)
class Moment:
    """Where a process holds still: after a call of a function, or before an operation on the files of a folder."""

    function: str = ""
    """`module:name` or `module:Class.name`; the module that looks it up, not that which defines it."""
    below: str = ""
    """In place of a function: the folder whose changes by the main thread are counted."""
    number: int = 1
    """Which call or change, from 1."""
    worker: bool = False
    """Changes: those of worker processes count, not those of the command's main process."""


class Held:
    """A command that is stopped at a moment; a context manager, which ends it.

    Args:
        words: `par-agent` and its arguments.
        moment: where it holds; None: nowhere.
        marks: a folder to make for notes.
        launcher: what starts several processes of it, as arguments of Python.
        cwd: the folder in which it runs.
    """

    def __init__(
        self,
        words: list[str],
        moment: Moment | None,
        marks: Path,
        launcher: Sequence[str] = (),
        cwd: Path | None = None,
    ) -> None:
        marks.mkdir(parents=True)
        self._marks = marks
        plan = json.dumps({"marks": str(marks), "moment": moment and dataclasses.asdict(moment)})
        command = [sys.executable, *launcher, str(Path(__file__).resolve()), *words]
        environment = {**os.environ, PLAN: plan}
        with open(marks / "output", "wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, cwd=cwd, preexec_fn=default_signals
            )

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        """What it has printed."""
        return (self._marks / "output").read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def until_held(self, count: int = 1) -> list[psutil.Process]:
        """Waits until some of its processes hold; returns them."""
        until(lambda: len(self._found("held-*")) >= count or not self.running)
        assert self.running, f"it ended before: {self.output}"
        return [psutil.Process(int(path.name.removeprefix("held-"))) for path in self._found("held-*")]

    def tell(self, number: int) -> None:
        """Sends a signal to the main process, and waits until that has noticed it or ended."""
        self.process.send_signal(number)
        self.until_told()

    def until_told(self) -> None:
        """Waits until a process that holds has noticed a signal, or the command has ended."""
        until(lambda: self._found("told") or not self.running)

    def interrupt(self) -> None:
        """Sends Ctrl-C while it holds; it ends with its workers and says how it goes on."""
        self.until_held()
        workers = self.workers()
        self.tell(signal.SIGINT)
        assert self.status() == 130, self.output
        assert "the same command resumes" in self.output and "Traceback" not in self.output
        gone(workers)

    def kill(self) -> None:
        """Kills it while it holds; its workers end too."""
        self.until_held()
        workers = self.workers()
        self.process.kill()
        gone(workers)

    def let_go(self) -> None:
        """Lets what holds go on."""
        (self._marks / "let go").touch()

    def status(self) -> int:
        """Waits until the command has ended; returns its exit status."""
        return self.process.wait(TIMEOUT)

    def changes(self, worker: bool) -> int:
        """How often the main process, or the workers, changed something below the moment's folder."""
        return (self._marks / f"changes-{worker}").stat().st_size

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started and that are there still."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def _found(self, pattern: str) -> list[Path]:
        return sorted(self._marks.glob(pattern))


def default_signals() -> None:
    """Accepts what a shell's background job, or one under `nohup`, is told to ignore."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def gone_process() -> int:
    """Id of a process that was there and is gone."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def until(condition: Callable[[], Any]) -> float:
    """Waits until something is so; returns how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < TIMEOUT
        time.sleep(0.01)
    return time.monotonic() - began


def gone(processes: list[psutil.Process]) -> float:
    """Waits until processes are gone; returns how many seconds that took."""
    return until(lambda: not any(map(_alive, processes)))


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _hold(marks: Path) -> None:
    """Waits in the command's process until the test lets it go."""
    from par_agent.utils.interrupts import caught_interrupts

    (marks / f"held-{os.getpid()}").touch()
    while not (marks / "let go").exists():
        with caught_interrupts() as interrupts:
            if interrupts.received is not None:
                (marks / "told").touch()
        time.sleep(0.01)


def _hold_after_call(moment: Moment, marks: Path) -> None:
    module_name, _, path = moment.function.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module_name))
    function, calls = getattr(owner, name), itertools.count(1)

    def held(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if next(calls) == moment.number:
            _hold(marks)
        return result

    setattr(owner, name, held)


def _hold_before_change(moment: Moment, marks: Path) -> None:
    worker = __name__ == "__mp_main__"
    log = os.open(marks / f"changes-{worker}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    changes = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not (event == "open" or event in CHANGES) or threading.current_thread() is not threading.main_thread():
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        path, relative = str(arguments[0]), event in ("os.remove", "os.rmdir") and arguments[-1] >= 0
        if relative or path.startswith(moment.below):
            os.write(log, b".")
            if next(changes) == moment.number and worker == moment.worker:
                _hold(marks)

    sys.addaudithook(hook)


if __name__ in ("__main__", "__mp_main__"):  # the second: a worker process, which is to hold as well
    plan = json.loads(os.environ[PLAN])
    if plan["moment"]:
        planned = Moment(**plan["moment"])
        (_hold_after_call if planned.function else _hold_before_change)(planned, Path(plan["marks"]))

if __name__ == "__main__":
    from par_agent.cli import main

    sys.argv = sys.argv[1:]
    sys.exit(main())
