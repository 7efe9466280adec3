"""What all job runners share."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from par_agent.errors import UserError
from par_agent.utils.files import cannot_write

DoJob = Callable[[Any], Iterable[Any]]
"""Does one job: yields messages, and writes files below its worker's folder alone."""

Prepare = Callable[[Any, Path], DoJob]
"""Called once in every worker, with what all jobs have in common and the worker's folder."""


DOCTOR = " (`par-agent doctor` there says what is missing)"
"""What to do about a worker that cannot start."""


class LostJobError(UserError):
    """A job's worker died at every attempt; ``how`` says in which way, ``advice`` what the user can do."""

    def __init__(self, how: str, advice: str) -> None:
        super().__init__(f"{how}{advice}")
        self.how = how


class JobRunner(Protocol):
    """Workers that do jobs, one at a time each; made by :func:`par_agent.jobs.open_runner`."""

    @property
    def workers(self) -> int:
        """Jobs done at once."""

    def run(self, jobs: Iterable[Any], *, yield_lost: bool = False) -> Iterator[tuple[Any, Any]]:
        """Does jobs, and yields each message together with its job as it comes.

        The files that a job makes are in place before its last message is yielded. A job whose worker dies is done
        again as a whole, by another worker: some of its messages may be yielded twice.

        Args:
            jobs: picklable. The next one is taken when a worker is free; None means that no job is ready; another is
                asked for when a job has ended.
            yield_lost: yield a :class:`LostJobError` as the job's last message where it would be raised.

        Raises:
            UserError: a job or a worker's start failed, or a job was lost; jobs in hand are left undone.
            Interrupted: this process was told to end; likewise.
        """


def use_one_thread() -> None:
    """Has this process compute and render with one thread."""
    os.environ.update(OMP_NUM_THREADS="1", LP_NUM_THREADS="1")  # the second: the software renderer's
    import torch

    torch.set_num_threads(1)


def job_error(error: Exception, who: str, folder: Path | str) -> UserError:
    """The error to show for an exception that ended a job, which writes below a folder."""
    if isinstance(error, OSError):
        return UserError(cannot_write(folder, error))
    return described_error(error, f"{who} failed")


def described_error(error: Exception, what: str, advice: str = "") -> UserError:
    """A worker's exception as the error to show, with its traceback unless it is meant for the user."""
    if isinstance(error, UserError):
        return error
    trace = "".join(traceback.format_exception(error))
    return UserError(f"{what}: {type(error).__name__}: {error}{advice}\n{trace}")
