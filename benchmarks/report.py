"""Makes the tables and pictures of all reported runs, in `benchmarks/reported` and in the documents; simulates nothing.

python benchmarks/report.py             # writes what differs
python benchmarks/report.py --check     # writes nothing; exits 1 if a file is not what it would write
python benchmarks/report.py add benchmarks/results/RUN --group rows   # adds a finished run to the reported ones
python benchmarks/report.py export rows/act --out FOLDER              # makes the folder of a reported run again
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from figures import draw_curves, draw_table, read_description, write_picture
from pages import filled, results_csv, results_page
from reported_runs import (
    DEVELOPMENT,
    REPORTED,
    add_run,
    export_records,
    export_run,
    no_run,
    read_development,
    read_finished,
    read_reported,
    reported_records,
)
from tables import (
    RESULTS_PAGE,
    Runs,
    alignment_section,
    alignment_table,
    by_policy,
    curves,
    demonstrations_table,
    methods_page,
    methods_table,
    of_group,
)

from par_agent.cli.entry import run_command
from par_agent.cli.options import parse
from par_agent.errors import UserError
from par_agent.utils.checked import Checked
from par_agent.utils.files import atomic_path, read_content, writing

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "benchmarks" / "baselines" / "README.md",
    *sorted((ROOT / "par_agent").glob("checkpoints/*/README.md")),
)


@dataclass(frozen=True)
class MakeConfig(Checked):
    """Which runs are shown, and where."""

    reported: Path = REPORTED
    """Folder of the reported runs; pages and pictures are written to it, too. `report.py add` makes one."""
    documents: tuple[Path, ...] | None = None
    """Files with tables between pairs of marks, such as `<!-- rows -->` and `<!-- /rows -->`. Default: the project's
    READMEs and model cards, if the reported runs are the project's; else none."""
    reference: str = "mini"
    """Policy that the others are compared with."""
    check: bool = False
    """Only checks whether the files show the records."""


@dataclass(frozen=True)
class AddConfig(Checked):
    """Adds a finished run to the reported ones."""

    run: tyro.conf.Positional[Path]
    """Folder of a finished run, as `par-agent benchmark` names it."""
    group: str
    """Group of the run: bundled (checkpoints of this package), robustness (one change), context (by context length),
    alignment (imagined against executed), rows (all methods), unseen (all methods, other initial states),
    demonstrations (by their number), recovery-noise, or a name of your own. development stores rollouts only."""
    name: str | None = None
    """Name of the run in the group. Default: the policy's name."""
    replace: bool = False
    """Replaces a run of the same name."""
    reported: Path = REPORTED
    """Folder of the reported runs."""


@dataclass(frozen=True)
class ExportConfig(Checked):
    """Writes the folder of a reported run."""

    name: tyro.conf.Positional[str]
    """Group and name of a reported run, such as rows/act."""
    out: Path
    """Folder for run.json, rollouts.jsonl and results.json; for a development run only rollouts.jsonl."""
    reported: Path = REPORTED
    """Folder of the reported runs."""


@dataclass(frozen=True)
class Output:
    """A file that is made from the reported runs."""

    path: Path
    content: str
    """Of a text, the whole; of a picture, the table that it draws."""
    draw: Callable[[Path], None] | None = None
    """Draws the picture; None: a text."""

    def is_current(self) -> bool:
        """Whether the file is there and shows this."""
        if not self.path.exists():
            return False
        if self.draw is not None:
            return read_description(self.path) == self.content
        return read_content(self.path) == self.content.encode(errors="surrogateescape")

    def write(self) -> None:
        """Writes the file."""
        if self.draw is not None:
            write_picture(self.draw, self.path, self.content)
            return
        with atomic_path(self.path) as temporary:
            temporary.write_bytes(self.content.encode(errors="surrogateescape"))


def outputs(config: MakeConfig) -> list[Output]:
    """All files that are made from the reported runs."""
    runs, reported = read_reported(config.reported), config.reported
    made = [
        Output(reported / RESULTS_PAGE, results_page(runs, read_development(reported))),
        Output(reported / "results.csv", results_csv(runs)),
        *_methods(runs, reported, config.reference),
    ]
    if section := alignment_section(runs):
        table = "\n".join(alignment_table(runs))
        made.append(Output(reported / "alignment.png", table, section.draw))
    documents = config.documents
    if documents is None:
        documents = DOCUMENTS if reported.resolve() == REPORTED.resolve() else ()
    for document in documents:
        text = read_content(document).decode(errors="surrogateescape")
        made.append(Output(document, filled(text, runs, document.resolve().parent, reported)))
    return made


def _methods(runs: Runs, reported: Path, reference: str) -> list[Output]:
    """The page of all methods and its pictures; none without runs of the group `rows`."""
    rows, unseen = by_policy(of_group(runs, "rows")), by_policy(of_group(runs, "unseen"))
    if not rows:
        return []
    points = curves(of_group(runs, "demonstrations"))
    made = [
        Output(reported / "table.md", methods_page(rows, unseen, reference, points)),
        Output(reported / "table.png", "\n".join(methods_table(rows)), lambda path: draw_table(rows, reference, path)),
    ]
    if points:
        table = "\n".join(demonstrations_table(points))
        made.append(Output(reported / "demonstrations.png", table, lambda path: draw_curves(points, path)))
    return made


def make(config: MakeConfig) -> int:
    """Writes what differs, or tells of it."""
    differing = [output for output in outputs(config) if not output.is_current()]
    for output in differing:
        if config.check:
            print(f"{output.path} does not show the reported runs; run python benchmarks/report.py")
            continue
        with writing(output.path.parent):
            output.write()
        print(f"wrote {output.path}")
    return int(config.check and bool(differing))


def add(config: AddConfig) -> int:
    """Adds a run."""
    for part in (config.group, config.name or ""):
        if "/" in part:
            raise UserError(f"{part!r} has a slash; group and name are given apart: --group rows --name act")
    run = read_finished(config.run, config.group)
    name = f"{config.group}/{config.name or run.policy}"
    add_run(config.reported, dataclasses.replace(run, name=name), config.replace)
    print(f"added {name}: {len(run.records)} rollouts; python benchmarks/report.py shows it in the tables")
    return 0


def export(config: ExportConfig) -> int:
    """Writes a run's folder."""
    if (config.out / "run.json").exists() or (config.out / "rollouts.jsonl").exists():
        raise UserError(f"{config.out} holds a run already; choose another folder")
    if config.name.startswith(f"{DEVELOPMENT}/"):
        export_records(reported_records(config.reported, config.name), config.out)
    else:
        runs = read_reported(config.reported)
        if config.name not in runs:
            raise no_run(config.reported, config.name)
        export_run(runs[config.name], config.out)
    print(f"wrote {config.out}")
    return 0


COMMANDS: dict[type, Callable[[Any], int]] = {MakeConfig: make, AddConfig: add, ExportConfig: export}


def main(config: MakeConfig | AddConfig | ExportConfig) -> int:
    """Does what the options are of; the exit status."""
    return COMMANDS[type(config)](config)


def run(words: Sequence[str]) -> int:
    """Reads the options of the command line and does what they ask for."""
    program, named = "benchmarks/report.py", {"add": AddConfig, "export": ExportConfig}
    if words and words[0] in named:
        cls = named[words[0]]
        return main(parse(cls, words[1:], f"{program} {words[0]}", cls.__doc__ or ""))
    return main(parse(MakeConfig, words, program, __doc__ or ""))


if __name__ == "__main__":
    sys.exit(run_command("benchmarks/report.py", lambda: run(sys.argv[1:])))
