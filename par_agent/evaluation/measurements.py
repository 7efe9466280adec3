"""What a run may measure beside success. A new measurement is a class with the members of :class:`Measurement`, listed
in :func:`known_measurements`; nothing else has to know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from par_agent.evaluation.rollout import RolloutObserver
    from par_agent.simulation.environment import TaskEnvironment


@dataclass(frozen=True)
class Section:
    """A part of a run's pages: a table, and a figure of it."""

    name: str
    """The table's id in report.html."""
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str
    """What the table's columns mean."""
    figure: str
    """Name of the figure's file, beside the pages."""
    draw: Callable[[Path], None]
    """Writes the figure."""


class Measurement(Protocol):
    """Frozen and picklable: it travels to the workers."""

    name: ClassVar[str]
    """Its field in records, in run.json and in results.json."""

    @property
    def settings(self) -> Any:
        """What run.json says of it: two runs share a folder only where it is equal."""

    def observer(self, env: TaskEnvironment, policy: Any) -> RolloutObserver:
        """What adds the field :attr:`name` to the records; raises UserError for a policy that cannot be measured."""

    @staticmethod
    def check_field(value: Any) -> None:
        """Raises UserError where a record's field is not as the observer writes it."""

    @staticmethod
    def summarise(values: list[Any]) -> Any:
        """A task's summary of its records' fields."""

    @staticmethod
    def cells(summary: Any) -> dict[str, str]:
        """A task's cells in results.csv, by column."""

    @staticmethod
    def section(summaries: Mapping[str, Any]) -> Section:
        """What the pages show of the summaries by task."""


def known_measurements() -> dict[str, type[Measurement]]:
    """All measurements by name."""
    from par_agent.evaluation.alignment import Alignment

    return {Alignment.name: Alignment}
