"""The folder of a run: one writer, whole lines, nothing lost."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from par_agent.errors import UserError
from par_agent.evaluation.records import RunFolder, read_records


def test_a_folder_of_another_run_or_in_use_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {"policy": "a"}) as folder:
        folder.append({"task": "PushCube", "state": 0, "policy_seed": 0, "error": None})
        with pytest.raises(UserError, match="another process is writing"), RunFolder(tmp_path / "run", {"policy": "a"}):
            pass
    with pytest.raises(UserError, match="results of another policy, task or version"), RunFolder(tmp_path / "run", {}):
        pass


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "rollouts.jsonl").write_text('{"task": \n{"task": "PushCube"}\n')
    with pytest.raises(UserError, match=r"rollouts.jsonl, line 1 is damaged"):
        read_records(tmp_path / "rollouts.jsonl")


def test_a_full_disk_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    record = {"task": "PushCube", "state": 0, "policy_seed": 0, "error": None}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunFolder(tmp_path / "run", {}) as folder:
        folder.append(record)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (folder.records_file.stat().st_size + 10, limits[1]))
            with pytest.raises(UserError, match="File too large; once that is solved, the same command resumes"):
                folder.append({**record, "state": 1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with RunFolder(tmp_path / "run", {}) as folder:
        assert folder.records == [record]


def test_records_that_stay_survive_a_stop_while_others_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [{"task": "PushCube", "state": state, "error": "died" if state == 1 else None} for state in range(4)]
    with RunFolder(tmp_path / "run", {"policy": "par-mini"}) as folder:
        for record in failed:
            folder.append(record)

        def stopped(records: list[Any]) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(folder, "_write", stopped)
        with pytest.raises(KeyboardInterrupt):
            folder.discard(lambda record: record["error"] is not None)
    assert read_records(folder.records_file) == []
    for _ in range(2):
        with RunFolder(tmp_path / "run", {"policy": "par-mini"}) as folder:
            assert [record["state"] for record in folder.records] == [0, 2, 3]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["rollouts.jsonl", "run.json"]
