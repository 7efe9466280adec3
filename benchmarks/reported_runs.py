"""The reported runs: every rollout is a row of a Parquet file, and what was run stands in a JSON file beside it.

benchmarks/reported/
    rollouts.parquet      rollouts of all reported runs; the column `run` names the run: its group and name, as rows/act
    development.parquet   rollouts of runs made during development, of which nothing else is kept
    runs.json             by name of run: its run.json, and from the provenance in its results.json what that lacks

`benchmarks/report.py add` adds a finished run, and `benchmarks/report.py export` makes its folder again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, get_args

from par_agent.errors import UserError
from par_agent.evaluation.records import FIELDS, Record, RunPlan, read_run
from par_agent.evaluation.results import TaskResult, summarise
from par_agent.evaluation.stages import STAGES
from par_agent.tasks import PAPER_TASKS
from par_agent.utils.files import atomic_path, naming, read_content, read_object, write_json, writing
from par_agent.utils.json_fields import check

if TYPE_CHECKING:
    import pyarrow

REPORTED = Path(__file__).parent / "reported"
ROLLOUTS_FILE, DEVELOPMENT_FILE, RUNS_FILE = "rollouts.parquet", "development.parquet", "runs.json"
DEVELOPMENT = "development"
"""Group of the runs in development.parquet."""
RUN_COLUMN = "run"

_names = list(FIELDS)
RECORD_FIELDS = (*_names[: _names.index("error")], *STAGES, "alignment", *_names[_names.index("error") :])
"""Fields of a record, in their order."""
JSON_FIELDS = ("alignment", "versions")
"""Fields that hold objects; their columns hold JSON text."""


class _Training(TypedDict, total=False):
    """How a policy was trained, as far as is known."""

    steps: int | None
    demonstrations: dict[str, int]
    options: dict[str, Any]


class _Origin(TypedDict, total=False):
    training: _Training | None


class _Provenance(_Origin):
    command: str


class _Result(TypedDict):
    """A task's line in results.json."""

    task: str
    rollouts: int
    successes: int


class _Results(TypedDict):
    """What is read of results.json."""

    provenance: _Provenance
    results: list[_Result]


class _Entry(TypedDict):
    """A run in runs.json."""

    run: dict[str, Any]
    provenance: _Provenance


@dataclass(frozen=True)
class Run:
    """One finished run."""

    name: str
    """Its group and its name there."""
    records: list[Record]
    run: dict[str, Any]
    """What its run.json tells."""
    about: dict[str, Any]
    """The provenance in its results.json."""

    @property
    def group(self) -> str:
        """What it was made for: rows, for example, of the table of methods."""
        return self.name.rpartition("/")[0]

    @property
    def policy(self) -> str:
        """The policy's name."""
        return str(self.run["policy"])

    @property
    def track(self) -> str:
        """What the policy sees."""
        return str(self.run["track"])

    @property
    def variation(self) -> str:
        """One thing that training did not show, or none."""
        return str(self.run["variation"])

    @property
    def state_seed(self) -> int | None:
        """First environment seed of its initial states; None: the protocol's."""
        seed: int | None = self.run["state_seed"]
        return seed

    @property
    def states(self) -> int:
        """Initial states per task."""
        return 1 + max(int(record["state"]) for record in self.records)

    @property
    def training(self) -> dict[str, Any]:
        """How the policy was trained, as far as its checkpoint says."""
        return self.about.get("training") or {}

    @property
    def demos(self) -> int | None:
        """The option --demos of the training; None: all demonstrations, or unknown."""
        return self.training.get("options", {}).get("demos")

    @property
    def init(self) -> str | None:
        """The checkpoint that the training began with; None: from scratch, or unknown."""
        return self.training.get("options", {}).get("init")

    @cached_property
    def results(self) -> dict[str, TaskResult]:
        """By task."""
        return results_by_task(self.records)


def results_by_task(records: list[Record]) -> dict[str, TaskResult]:
    """The results of a finished run by task, the paper's tasks first."""
    rollouts = Counter(record["task"] for record in records)
    tasks = list(dict.fromkeys((*PAPER_TASKS, *rollouts)))
    return {result.task: result for result in summarise(records, tasks, max(rollouts.values(), default=0))}


# --- Parquet ----------------------------------------------------------------------------------------------------------


def write_rollouts(path: Path, rollouts: Mapping[str, list[Record]]) -> None:
    """Writes the rollouts of runs by name, or nothing where a record has what the columns cannot hold."""
    pyarrow, parquet = _pyarrow()
    rows = [{RUN_COLUMN: name, **_row(record)} for name in sorted(rollouts) for record in rollouts[name]]
    try:
        table = pyarrow.Table.from_pylist(rows, schema=_schema())
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise UserError(f"{path} cannot hold a rollout: {error}") from None
    kept = _by_run(table)
    for name, records in rollouts.items():
        if list(map(_sorted_line, records)) != list(map(_sorted_line, kept.get(name, []))):
            raise UserError(f"{path} cannot hold all fields of the rollouts of {name}; its columns are {RECORD_FIELDS}")
    with writing(path.parent), atomic_path(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd", compression_level=19, write_page_checksum=True)


def read_rollouts(path: Path) -> dict[str, list[Record]]:
    """Reads what :func:`write_rollouts` wrote."""
    pyarrow, parquet = _pyarrow()
    content = pyarrow.BufferReader(read_content(path))
    try:
        table = parquet.read_table(content, page_checksum_verification=True)
        table.validate(full=True)
        schema = _schema()  # files of earlier versions lack the stages
        if table.schema not in (schema, pyarrow.schema([column for column in schema if column.name not in STAGES])):
            raise UserError(f"{path} has other columns than rollouts have: {', '.join(table.column_names)}")
        return _by_run(table)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _pyarrow() -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("reported runs need pyarrow; install it with: pip install 'par-agent[lerobot]'") from None
    return pyarrow, parquet


def _schema() -> pyarrow.Schema:
    pyarrow, _ = _pyarrow()
    types = {str: pyarrow.string(), bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    columns = [(RUN_COLUMN, pyarrow.string())]
    for name in RECORD_FIELDS:
        kind = str if name in JSON_FIELDS else FIELDS.get(name, bool)
        columns.append((name, types[next(iter(get_args(kind)), kind)]))
    return pyarrow.schema(columns)


def _row(record: Record) -> dict[str, Any]:
    return {**record, **{name: json.dumps(record[name]) for name in JSON_FIELDS if name in record}}


def _by_run(table: pyarrow.Table) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for row in table.to_pylist():
        found.setdefault(row.pop(RUN_COLUMN), []).append(_record(row))
    return found


def _record(row: dict[str, Any]) -> Record:
    """A record from its row: an empty cell is None where the field may be None, and else a field that is not there."""
    record = {name: value for name, value in row.items() if value is not None or get_args(FIELDS.get(name))}
    return {**record, **{name: json.loads(record[name]) for name in JSON_FIELDS if name in record}}


def _sorted_line(record: Record) -> str:
    return json.dumps(record, sort_keys=True)


# --- runs -------------------------------------------------------------------------------------------------------------


def read_reported(folder: Path) -> dict[str, Run]:
    """All reported runs by name."""
    rollouts = read_rollouts(folder / ROLLOUTS_FILE)
    entries = read_object(folder / RUNS_FILE)
    runs = {}
    with naming(folder / RUNS_FILE):
        for name, entry in entries.items():
            check(name, entry, _Entry)
            if name not in rollouts:
                raise UserError(f"{name} has no rollouts in {ROLLOUTS_FILE} beside it; restore both")
            with naming(Path(name)):
                plan = RunPlan(entry["run"])
                for record in rollouts[name]:
                    plan.check(record)
            runs[name] = Run(name, rollouts[name], entry["run"], {**_shared(entry["run"]), **entry["provenance"]})
    return runs


def read_development(folder: Path) -> dict[str, list[Record]]:
    """The rollouts of runs made during development, by name; none where the file is missing."""
    path = folder / DEVELOPMENT_FILE
    return read_rollouts(path) if path.exists() else {}


def reported_records(folder: Path, name: str) -> list[Record]:
    """The rollouts of one run, reported or of development."""
    found = read_development(folder) if name.startswith(f"{DEVELOPMENT}/") else read_rollouts(folder / ROLLOUTS_FILE)
    if name not in found:
        raise no_run(folder, name)
    return found[name]


def no_run(folder: Path, name: str) -> UserError:
    """The error that a folder of reported runs has none of a name."""
    return UserError(f"{folder} has no run {name!r}; results.md there lists all, by group and name: rows/act")


def read_finished(folder: Path, name: str) -> Run:
    """A finished run from the folder that `par-agent benchmark` left."""
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no finished run: it has no results.json; give the folder of a finished run")
    run, records = read_run(folder)
    content = read_object(path, _Results)
    about: dict[str, Any] = {**content["provenance"]}
    for field in ("checkpoint", "track", "variation"):
        if about.get(field) != run[field]:
            raise UserError(
                f"{path} and run.json in the same folder describe different runs: {path.name} has {field} = "
                f"{about.get(field)!r}"
            )
    for told in content["results"]:
        found = [record["success_once"] for record in records if record["task"] == told["task"]]
        if (len(found), sum(found)) != (told["rollouts"], told["successes"]):
            raise UserError(
                f"{path} says {told['successes']} of {told['rollouts']} rollouts of {told['task']} succeeded; "
                f"rollouts.jsonl says {sum(found)} of {len(found)}: restore both, or run the same command again"
            )
    return Run(name, records, run, about)


def add_run(folder: Path, run: Run, replace: bool = False) -> None:
    """Adds a finished run to the reported ones; of a run of development, its rollouts."""
    if run.group == DEVELOPMENT:
        rollouts, path = read_development(folder), folder / DEVELOPMENT_FILE
    else:
        runs = read_reported(folder) if (folder / RUNS_FILE).exists() else {}
        rollouts, path = {name: found.records for name, found in runs.items()}, folder / ROLLOUTS_FILE
    if run.name in rollouts and not replace:
        raise UserError(f"{path} has a run {run.name} already; choose another --name, or give --replace")
    write_rollouts(path, {**rollouts, run.name: run.records})
    if run.group != DEVELOPMENT:  # last: a run counts when it is there
        write_runs(folder / RUNS_FILE, [*(found for found in runs.values() if found.name != run.name), run])


def write_runs(path: Path, runs: Iterable[Run]) -> None:
    """Writes what was run, by name."""
    entries = {}
    for run in sorted(runs, key=lambda run: run.name):
        shared = _shared(run.run)
        missing = object()
        own = {name: value for name, value in run.about.items() if shared.get(name, missing) != value}
        entries[run.name] = {"run": run.run, "provenance": own}
    with writing(path.parent):
        write_json(path, entries)


def _shared(run: dict[str, Any]) -> dict[str, Any]:
    """What a run's provenance repeats of its run.json."""
    names = ("policy", "policy_options", "checkpoint", "track", "variation", "tasks", "backend", "versions")
    return {name: run[name] for name in names if name in run}


def export_run(run: Run, out: Path) -> None:
    """Writes the folder of a run: run.json, rollouts.jsonl and results.json."""
    export_records(run.records, out)
    write_json(out / "run.json", run.run)
    results = [asdict(result) for result in run.results.values()]
    write_json(out / "results.json", {"results": results, "provenance": run.about})


def export_records(records: Iterable[Record], out: Path) -> None:
    """Writes rollouts.jsonl."""
    with writing(out), atomic_path(out / "rollouts.jsonl") as temporary:
        temporary.write_text("".join(f"{json.dumps(record)}\n" for record in records))
