"""Demonstrations made by the real motion planner: their content, and interruptions, full disks and bad arguments."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from held import CHANGES, TIMEOUT, Held, Moment
from par_agent.cli import main
from par_agent.data import demos as demos_module
from par_agent.data.demos import DemoRequest, make_demos
from par_agent.data.trajectory import TrajectoryFile
from par_agent.errors import UserError
from par_agent.jobs.runner import JobRunner
from par_agent.simulation import planning
from par_agent.tasks import PROTOCOL_SEED
from par_agent.utils.files import write_json
from recordings import run_in_this_process

NUM = 11  # needs two parts: seed 9 has no solution
COMMAND = [sys.executable, "-c", "import sys; from par_agent.cli import main; sys.exit(main())", "demos"]


def arguments(out: Path) -> list[str]:
    return ["--task", "PushCube", "--num", str(NUM), "--workers", "1", "--out", str(out)]


def start(out: Path, **options) -> subprocess.Popen:
    return subprocess.Popen([*COMMAND, *arguments(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def make_here(out: Path) -> None:
    """Runs the command to its end in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demos_module, "open_runner", run_in_this_process)
        assert main(["demos", *arguments(out)]) == 0


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    """`NUM` PushCube demonstrations made without interruption."""
    out = tmp_path_factory.mktemp("demos")
    make_here(out)
    return DemoRequest("PushCube", NUM).path(out)


def test_episodes_are_successful_in_seed_order_and_readable(demos):
    with TrajectoryFile(demos) as file:
        assert (file.env_id, len(file)) == ("PushCube-v1", NUM)
        infos = [file.info(number) for number in file.episodes]
        assert [info.seed for info in infos] == [*range(9), 10, 11]
        assert {info.control_mode for info in infos} == {"pd_joint_pos"}
        assert [len(file.read(number).actions) for number in file.episodes[:3]] == [71, 72, 64]
        assert all(file.succeeded(number) for number in file.episodes)
        episode = file.read(0)
    assert episode.actions.shape == (71, 8) and episode.actions.dtype == np.float32
    assert episode.joint_positions("panda").shape == (72, 9)
    assert set(episode.states["actors"]) == {"cube", "goal_region", "table-workspace"}


def test_only_the_two_final_files_remain(demos):
    assert files_below(demos.parent) == sorted([demos.name, demos.with_suffix(".json").name])


def test_the_same_command_again_changes_nothing(demos):
    before = demos.stat().st_mtime_ns
    assert main(["demos", *arguments(demos.parents[2])]) == 0
    assert demos.stat().st_mtime_ns == before


def test_a_file_made_with_other_arguments_is_not_replaced(demos):
    content = demos.read_bytes()
    with pytest.raises(UserError, match=r"'num': 11.*'num': 12.*another output folder"):
        make_demos(DemoRequest("PushCube", NUM + 1), demos.parents[2])
    assert demos.read_bytes() == content


@pytest.mark.parametrize("damage", ["truncated", "last trajectory lost", "last trajectory emptied", "no JSON"])
def test_a_finished_file_that_is_damaged_is_not_taken_for_complete(demos, tmp_path, damage):
    request = DemoRequest("PushCube", NUM)
    target = request.path(tmp_path)
    target.parent.mkdir(parents=True)
    for path in (demos, demos.with_suffix(".json")):
        shutil.copy(path, target.with_suffix(path.suffix))
    if damage == "truncated":
        target.write_bytes(target.read_bytes()[:1000])
    elif damage == "no JSON":
        target.with_suffix(".json").unlink()
    else:
        with h5py.File(target, "a") as file:
            del file[f"traj_{NUM - 1}" + "/actions" * (damage == "last trajectory emptied")]
    with pytest.raises(UserError, match=r"(is damaged .*;|lacks its \.json:) delete it and run the same command again"):
        make_demos(request, tmp_path)


def held(out: Path, marks: Path, seeds: int) -> Held:
    """The command, whose worker holds when it has solved some seeds more."""
    moment = Moment("par_agent.simulation.planning:solve", number=seeds)
    return Held(["par-agent", "demos", *arguments(out)], moment, marks)


def test_interrupted_killed_and_resumed_gives_the_same_bytes_as_one_run(demos, tmp_path):
    target = DemoRequest("PushCube", NUM).path(tmp_path / "out")
    parts = target.parent / ".parts"

    with held(tmp_path / "out", tmp_path / "interrupted", seeds=11) as interrupted:
        interrupted.interrupt()
    assert [part.name for part in parts.glob("*s*-*")] == ["seeds-00000000"], "the second was not finished"

    with held(tmp_path / "out", tmp_path / "killed", seeds=1) as killed:
        killed.kill()
    assert sorted(part.name for part in parts.glob("*s*-*")) == ["seeds-00000000", "unfinished-00000010"]
    assert not target.exists() and not target.with_suffix(".json").exists()

    make_here(tmp_path / "out")
    assert target.read_bytes() == demos.read_bytes()
    assert target.with_suffix(".json").read_bytes() == demos.with_suffix(".json").read_bytes()
    assert files_below(tmp_path / "out") == files_below(demos.parents[2])


class FakePlanner:
    """In place of worker processes: makes parts of ten episodes of a few numbers, at once."""

    workers = 1

    @contextmanager
    def __call__(self, prepare: Any, env_id: str, parts: Path, *_: Any) -> Iterator[JobRunner]:
        self.parts = parts
        yield self

    def run(self, jobs: Iterable[int | None], *, yield_lost: bool = False) -> Iterator[tuple[int, Path]]:
        for first in jobs:
            if first is None:
                return
            self.make(self.parts, first)
            yield first, planning.part_folder(self.parts, first)

    def make(self, parts: Path, first: int) -> None:
        unfinished = parts / f"unfinished-{first:08d}"
        unfinished.mkdir()
        with h5py.File(unfinished / "part.h5", "w") as file:
            for number in range(10):
                file.create_dataset(f"traj_{number}/actions", data=np.full((3, 8), first + number, np.float32))
        episodes = [{"episode_id": n, "episode_seed": first + n, "elapsed_steps": 3} for n in range(10)]
        write_json(unfinished / "part.json", {"episodes": episodes})
        unfinished.rename(planning.part_folder(parts, first))


def killed_before_change(number: int, out: Path) -> bool:
    """Makes demonstrations in a copy of this process that is killed before it changes a folder once more."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1] != 0
    changes = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    make_demos(DemoRequest("PushCube", NUM), out, progress=False)
    os._exit(0)


def test_killed_at_any_step_of_the_clean_up_it_goes_on_and_leaves_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(demos_module, "open_runner", FakePlanner())
    request = DemoRequest("PushCube", NUM)
    expected = make_demos(request, tmp_path / "whole", progress=False)
    for number in itertools.count(1):
        for moved_away in (False, True):  # the finished file, as one that was damaged would be
            out = tmp_path / f"{number}{moved_away}"
            killed = killed_before_change(number, out)
            target, parts = request.path(out), request.path(out).parent / ".parts"
            for part in parts.glob("seeds-*"):
                assert sorted(os.listdir(part)) == ["part.h5", "part.json"], "a part without a file passes for whole"
            if moved_away:
                target.unlink(missing_ok=True)
            assert make_demos(request, out, progress=False) == target
            assert target.read_bytes() == expected.read_bytes()
            assert files_below(out) == files_below(tmp_path / "whole")
        if not killed:
            break
    assert number > 10


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    process = start(tmp_path, preexec_fn=limit_file_size)
    output = process.communicate(timeout=TIMEOUT)[0].decode()
    assert process.returncode == 2, output
    assert "par-agent: error: cannot write below" in output and "File too large" in output
    assert "Traceback" not in output
    assert [name for name in files_below(tmp_path) if not name.endswith("lock")] == []


def test_without_a_renderer_the_error_names_the_doctor(tmp_path):
    environment = {**os.environ, "VK_ICD_FILENAMES": "/nonexistent", "VK_DRIVER_FILES": "/nonexistent"}
    process = start(tmp_path, env=environment)
    output = process.communicate(timeout=TIMEOUT)[0].decode()
    assert process.returncode == 2
    assert "par-agent doctor" in output.splitlines()[-1]


def test_two_processes_never_write_in_one_folder(tmp_path):
    parts = DemoRequest("PushCube", 1).path(tmp_path).parent / ".parts"
    parts.mkdir(parents=True)
    with open(parts / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            make_demos(DemoRequest("PushCube", 1), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "PushCub", "num": 1}, "'PushCub'.*PushCube, PickCube, StackCube"),
        ({"task": "PushCube", "num": 0}, "num is 0.*at least 1"),
        ({"task": "PushCube", "num": 1, "first_seed": -1}, "first_seed is -1"),
        ({"task": "PushCube", "num": 1, "max_steps": 0}, "max_steps is 0"),
        ({"task": "PushCube", "num": 1, "first_seed": PROTOCOL_SEED}, f"{PROTOCOL_SEED}.*must not enter training"),
        ({"task": "PushCube", "num": 11, "first_seed": PROTOCOL_SEED - 10}, "must not enter training"),
    ],
)
def test_bad_requests_are_refused(values, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make_demos(DemoRequest(**values), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_worker_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="workers is 0"):
        make_demos(DemoRequest("PushCube", 1), tmp_path, workers=0)
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_how_it_was_made(demos):
    document = json.loads(demos.with_suffix(".json").read_text())
    assert document["source_type"] == "motionplanning"
    assert document["request"] == {"env_id": "PushCube-v1", "num": NUM, "first_seed": 0, "max_steps": 200}


def test_a_task_of_ones_own_is_planned_by_what_its_module_brings(tmp_path: Path, monkeypatch) -> None:
    from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS

    reference = "harness_task:NUDGE_CUBE"
    assert DemoRequest(reference).path(tmp_path).parent == tmp_path / "NudgeCube-v1" / "motionplanning"
    with pytest.raises(UserError, match=r"no motion planner for NudgeCube-v1; .* can add one to the MP_SOLUTIONS"):
        planning.find_solution("NudgeCube-v1")
    monkeypatch.setitem(MP_SOLUTIONS, "NudgeCube-v1", MP_SOLUTIONS["PushCube-v1"])
    monkeypatch.setattr(planning, "SEEDS_PER_PART", 1)
    steps, folder = planning.part_maker(reference, tmp_path)(0)
    assert isinstance(steps, int) and folder == planning.part_folder(tmp_path, 0) and (folder / "part.h5").is_file()
