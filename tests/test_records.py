"""The folder of a run: one writer, whole lines, nothing lost, and no record that is none of the run."""

from __future__ import annotations

import json
import random
import resource
from pathlib import Path
from typing import Any

import pytest
from reported_runs import read_finished, read_rollouts, write_rollouts

from made_runs import failed, identity, record, write_finished, write_records, write_run
from par_agent.errors import UserError
from par_agent.evaluation.records import FIELDS, RunFolder, read_run, record_key
from par_agent.evaluation.results import result_table, summarise
from par_agent.tasks import PAPER_TASKS, PROTOCOL_SEED
from par_agent.utils.files import read_json, write_json

RUN = identity()
FIRST = record(RUN, "PushCube", 0, 0, True)
SOLVED = [record(RUN, task, state, seed, state < 2) for task in PAPER_TASKS for state in range(3) for seed in range(2)]


def opened(folder: Path, run: dict[str, Any] = RUN, states: int = 4) -> RunFolder:
    return RunFolder(folder, run, states=states, policy_seeds=2)


def test_a_folder_of_another_run_or_in_use_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as folder:
        folder.append(FIRST)
        with pytest.raises(UserError, match="another process writes to"), opened(tmp_path / "run"):
            pass
    other = identity("other")
    with pytest.raises(UserError, match="another policy, task or version"), opened(tmp_path / "run", other):
        pass


def test_a_run_remembers_the_most_states_and_seeds_that_it_was_asked_for(tmp_path: Path) -> None:
    for states in (4, 9, 5):
        with opened(tmp_path, states=states):
            pass
    assert read_json(tmp_path / "run.json") == {**RUN, "extent": {"states": 9, "policy_seeds": 2}}


def test_records_of_which_some_were_lost_after_the_run_are_refused(tmp_path: Path) -> None:
    write_finished(tmp_path / "run", 1, 2, 1, RUN)
    assert len(read_finished(tmp_path / "run", "a").records) == 6
    lines = (tmp_path / "run" / "rollouts.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "rollouts.jsonl").write_bytes(b"".join(lines[:-1]))
    with pytest.raises(UserError, match=r"says 1 of 2 rollouts of StackCube succeeded; rollouts.jsonl says 1 of 1"):
        read_finished(tmp_path / "run", "a")


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [FIRST])
    (tmp_path / "rollouts.jsonl").write_text('{"task": \n{"task": "PushCube"}\n')
    with pytest.raises(UserError, match=r"rollouts.jsonl, line 1 is no record of this run: the line is not valid JSON"):
        read_run(tmp_path)


def test_a_full_disk_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path / "run") as folder:
        folder.append(FIRST)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (folder.records_file.stat().st_size + 10, limits[1]))
            with pytest.raises(UserError, match="File too large; once that is solved, the same command resumes"):
                folder.append(record(RUN, "PushCube", 1, 0, True))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with opened(tmp_path / "run") as folder:
        assert folder.records == [FIRST]


def test_records_that_stay_survive_a_stop_while_others_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(RUN, "PushCube", state, 0, True) for state in range(4)]
    with opened(tmp_path / "run") as folder:
        for found in (records[0], failed(records[1]), *records[2:]):
            folder.append(found)

        def stopped(*paths: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.replace", stopped)
            folder.discard(lambda record: record["error"] is not None)
    assert [record["state"] for record in read_run(tmp_path / "run")[1]] == [0, 1, 2, 3]
    for states in ([0, 2, 3], [0, 2, 3, 1]):
        with opened(tmp_path / "run") as folder:
            folder.discard(lambda record: record["error"] is not None)
            assert [record["state"] for record in folder.records] == states
            if len(states) == 3:
                folder.append(records[1])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["rollouts.jsonl", "run.json"]


def test_a_rollout_recorded_twice_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", RUN, [*SOLVED, *({**found, "seconds": 9.0, "plan_ms": 1.0} for found in SOLVED[:10])])
    results = [{"task": task, "rollouts": 6, "successes": 4} for task in PAPER_TASKS]
    write_json(tmp_path / "a" / "results.json", {"results": results, "provenance": {**RUN, "command": "python run.py"}})
    assert read_run(tmp_path / "a")[1] == SOLVED
    run = read_finished(tmp_path / "a", "a")
    assert (run.results["PushCube"].successes, run.results["PushCube"].rollouts) == (4, 6)
    with opened(tmp_path / "a") as folder:
        assert folder.records == SOLVED


def test_two_records_of_one_rollout_that_differ_are_named_by_their_lines(tmp_path: Path) -> None:
    for changed in (record(RUN, "PushCube", 2, 0, True), failed(SOLVED[4])):
        write_run(tmp_path, RUN, [*SOLVED, changed])
        with pytest.raises(UserError, match=r"rollouts.jsonl, lines 5 and 19 contradict .* PushCube, state 2, policy"):
            read_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "PullCube"}, "task is 'PullCube'; the run has PushCube, PickCube, StackCube"),
        ({"state": 99, "env_seed": PROTOCOL_SEED + 99}, "state is 99; it must be from 0 to 2"),
        ({"state": -1, "env_seed": PROTOCOL_SEED - 1}, "state is -1"),
        ({"env_seed": 7}, f"env_seed is 7; it must be {PROTOCOL_SEED}"),
        ({"policy_seed": 2}, "policy_seed is 2; it must be from 0 to 1"),
        ({"state": 0.0}, "state is 0.0; expected a whole number"),
        ({"success_once": 1}, "success_once is 1; expected true or false"),
        ({"success_once": False}, "success_once is False, but steps_to_success is 90"),
        ({"steps": 900, "steps_to_success": 900}, "steps is 900; it must be from 1 to 400"),
        ({"steps": 400}, "steps is 400; it must be 90"),
        ({"steps_to_success": 91}, "steps_to_success is 91"),
        ({"steps": None}, "steps is None"),
        ({"success_at_end": True}, "success_at_end is True, which does not fit"),
        ({"error": "ValueError: no"}, "ended with an error, and yet has a result"),
        ({"renders": -1}, "renders is -1"),
        ({"seconds": float("nan")}, "NaN is no number"),
        ({"plan_ms": -3.0}, "plan_ms is -3.0"),
        ({"reward": "much"}, "reward is 'much'"),
        ({"actions_sha256": "b33c"}, "expected 16 hexadecimal digits"),
        ({"checkpoint": "4567"}, "checkpoint is '4567'; the run's is '0123'"),
        ({"track": "native"}, "track is 'native'"),
        ({"alignment": {}}, "'alignment' is no field of a record of this run"),
        ({"reached": 1}, "reached is 1; expected true or false"),
        ({**failed(FIRST), "reached": True}, "'reached' is no field of a record of this run"),
    ],
)
def test_what_is_no_record_of_the_run_is_refused_with_file_and_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_run(tmp_path, RUN, SOLVED)
    write_records(tmp_path, [SOLVED[-1], {**FIRST, **changes}])
    with pytest.raises(UserError, match=r"rollouts.jsonl, line 2 is no record of this run: ") as refused:
        read_run(tmp_path)
    assert message in str(refused.value)
    with pytest.raises(UserError, match="line 2 is no record"), RunFolder(tmp_path, RUN, states=3, policy_seeds=2):
        pass


def test_what_is_not_the_protocols_is_never_taken_for_it(tmp_path: Path) -> None:
    for run in (identity(state_seed=500), identity(variation="dim")):
        write_run(tmp_path, run, [record(run, "PushCube", 0, 0, True, protocol=True)])
        with pytest.raises(UserError, match="protocol is true; the run is of other initial states"):
            read_run(tmp_path)
    write_run(tmp_path, RUN, [record(RUN, "PushCube", 25, 0, True, protocol=True)])
    with pytest.raises(UserError, match="protocol is true; the protocol has 25 initial states"):
        read_run(tmp_path)


def test_steps_after_the_first_success_and_stages_are_kept_and_counted(tmp_path: Path) -> None:
    run = identity(after_success=5)
    stages = {"reached": True, "grasped": True, "lifted": False, "placed": False}
    solved = record(run, "PickCube", 0, 0, True, steps=95, success_at_end=False, **stages)
    missed = record(run, "PickCube", 1, 0, False, success_at_end=False, **stages | {"grasped": False})
    write_run(tmp_path, run, [solved, missed, failed(record(run, "PickCube", 2, 0, False))])
    _, records = read_run(tmp_path)
    assert records[:2] == [solved, missed]
    (result,) = summarise(records, ["PickCube"], 3)
    assert (result.successes, result.success_at_end) == (1, 0)
    assert result.stages == {"reached": 2, "grasped": 1, "lifted": 0, "placed": 0}
    header, [row] = result_table([result])
    cells = dict(zip(header, row, strict=True))
    assert [cells[name] for name in ("success at end", "reached", "grasped")] == ["0/3", "2/3", "1/3"]
    kept = {"new": records, "before there were stages": SOLVED}
    write_rollouts(tmp_path / "rollouts.parquet", kept)
    assert read_rollouts(tmp_path / "rollouts.parquet") == kept
    write_records(tmp_path, [{**solved, "steps": 90}])
    with pytest.raises(UserError, match="steps is 90; it must be 95"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_needed_and_of_its_type(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, RUN, SOLVED)
    for content in ({key: FIRST[key] for key in FIRST if key != name}, {**FIRST, name: [1]}, [FIRST]):
        (tmp_path / "rollouts.jsonl").write_text(json.dumps(content) + "\n")
        with pytest.raises(UserError, match="line 1 is no record of this run"):
            read_run(tmp_path)


def test_no_mutation_of_a_records_file_changes_an_outcome_in_silence(tmp_path: Path) -> None:
    write_run(tmp_path, RUN, SOLVED)
    file = tmp_path / "rollouts.jsonl"
    whole, wanted = file.read_bytes(), {record_key(found): found for found in SOLVED}
    draw, accepted = random.Random(0), 0
    for _ in range(200):
        content, place = bytearray(whole), draw.randrange(len(whole))
        change = draw.randrange(3)
        if change == 0:
            content[place] = draw.randrange(256)
        elif change == 1:
            del content[place : place + draw.randrange(1, 40)]
        else:
            content[place:place] = content[(start := draw.randrange(len(whole))) : start + 40]
        file.write_bytes(content)
        try:
            found = {record_key(record): record for record in read_run(tmp_path)[1]}
        except UserError as error:
            assert "rollouts.jsonl, line" in str(error)
            continue
        accepted += 1
        for key in found:
            for name in ("success_once", "steps", "steps_to_success", "env_seed", "checkpoint"):
                assert found[key][name] == wanted[key][name]
    assert accepted < 40
