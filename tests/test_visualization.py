"""Figures of rollouts and failures, and the rules that say why a rollout failed."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from lxml import html
from PIL import Image, ImageSequence

from harness_task import NUDGE_CUBE
from par_agent.cli import main
from par_agent.errors import UserError
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.protocol import CHECKSUMS, states_checksum
from par_agent.evaluation.report import write_results
from par_agent.evaluation.run_config import RunConfig
from par_agent.tasks import TASKS
from par_agent.utils.files import read_json, write_json
from par_agent.visualization import causes, gallery
from par_agent.visualization.causes import GOALS, ObjectTrace, propose_cause
from par_agent.visualization.failures import FailedRun
from par_agent.visualization.rollout import Rollout
from par_agent.visualization.session import RolloutSession
from recordings import run_in_this_process
from tiny import task_checkpoint

STEPS = 100


def trace(height: Any = 0.02, distance: Any = 0.2, held: Any = False) -> ObjectTrace:
    """An object at some height and distance from its goal, each a number or one per control step."""
    positions = np.zeros((STEPS + 1, 3))
    positions[:, 0], positions[:, 2] = distance, height
    goals = np.zeros((STEPS + 1, 3))
    goals[:, 2] = positions[:, 2]
    return ObjectTrace(positions, goals, np.broadcast_to(held, STEPS + 1))


time = np.arange(STEPS + 1)
LIFTED = np.where((time > 20) & (time < 60), 0.1, 0.02)
GRASPED = (time > 20) & (time < 60)


@pytest.mark.parametrize(
    ("task", "found", "cause"),
    [
        ("PushCube", trace(), causes.NEVER_MOVED),
        ("PushCube", trace(distance=np.linspace(0.3, 0.2, STEPS + 1)), causes.TOO_SLOW),
        ("PushCube", trace(distance=np.where(time < 9, 0.3, 0.2)), causes.WRONG_PLACE),
        ("PickCube", trace(), causes.NEVER_GRASPED),
        ("PickCube", trace(held=time % 5 < 4), causes.NEVER_GRASPED),
        ("PickCube", trace(height=LIFTED, held=GRASPED), causes.DROPPED),
        ("StackCube", trace(held=GRASPED), causes.WRONG_PLACE),
        ("PickCube", trace(distance=0.01, held=time > 20), causes.NOT_SETTLED),
        ("PickCube", trace(distance=np.linspace(0.3, 0.1, STEPS + 1), held=time > 20), causes.TOO_SLOW),
        ("PickCube", trace(distance=0.1, held=time > 20), causes.WRONG_PLACE),
    ],
)
def test_every_cause_has_its_rule(task: str, found: ObjectTrace, cause: str) -> None:
    assert propose_cause(found, GOALS[task]) == cause


@pytest.mark.usefixtures("without_workers")
def test_a_rollout_is_drawn_as_strip_and_video(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("skimage", reason="needs par-agent[viz]")
    task_checkpoint().save(tmp_path / "policy")
    words = f"--task harness_task:NUDGE_CUBE --state 0 --imagine 2 --policy {tmp_path / 'policy'} --out {tmp_path}"
    assert main(["visualize", "rollout", *words.split(), "--every", "0"]) == 2
    assert main(["visualize", "rollout", *words.split(), "--task", "PushCube", "--state", "25"]) == 2
    errors = capsys.readouterr().err
    assert "every is 0" in errors and "state is 25; PushCube has the states 0 to 24" in errors
    assert main(["visualize", "rollout", *words.split()]) == 0
    name = "NUDGE_CUBE_state00_seed0"
    assert "no success in 12 steps" in capsys.readouterr().out
    assert imageio.imread(tmp_path / f"{name}.png").shape[1] > 600
    video = imageio.imread(tmp_path / f"{name}.mp4")
    assert len(video) == 7 + 15  # every second step, then a second and a half of the last image
    assert not np.array_equal(video[0], video[6])


@pytest.fixture(scope="module")
def failed_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a finished run of two failures under a variation, once each."""

    @functools.cache
    def run_of(variation: str) -> Path:
        folder = tmp_path_factory.mktemp(variation)
        task_checkpoint().save(folder / "policy")
        options: dict[str, Any] = {"states": 2, "policy_seeds": 2, "variation": variation}
        source = PolicySource(str(folder / "policy"))
        run = BenchmarkRun(RunConfig(tasks=("harness_task:NUDGE_CUBE",), policy=source, out=folder / "out", **options))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("par_agent.evaluation.benchmark_run.open_runner", run_in_this_process)
            records = run.run(lambda found: None, lambda record: None)
        write_results(run.info, records)
        return run.folder

    return run_of


@pytest.fixture
def failed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, failed_runs: Callable[[str], Path]
) -> Path:
    """A copy of a finished run, of a task that has rules here; its parameter is the run's variation."""
    monkeypatch.setitem(TASKS, "NudgeCube", NUDGE_CUBE)
    monkeypatch.setitem(GOALS, "NudgeCube", GOALS["PushCube"])
    return Path(shutil.copytree(failed_runs(getattr(request, "param", "none")), tmp_path / "run"))


@pytest.mark.parametrize("failed_run", ["none", "action_delay=0.25"], indirect=True)
def test_failures_are_repeated_to_the_bit_drawn_once_and_reported(failed_run: Path, capsys: Any) -> None:
    assert main(["visualize", "failures", str(failed_run)]) == 0
    records = [json.loads(path.read_text()) for path in sorted((failed_run / "failures").glob("*.json"))]
    assert [record["state"] for record in records] == [0, 1]  # the policy draws no random numbers: seeds agree
    assert all(record["repeated"] and record["policy_seeds"] == [0, 1] for record in records)
    assert "NudgeCube: 4 " in capsys.readouterr().out
    pictures = {path: path.stat().st_mtime_ns for path in (failed_run / "failures").glob("*.png")}
    assert len(pictures) == 2
    assert main(["visualize", "failures", str(failed_run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    page = html.fromstring((failed_run / "report.html").read_text(encoding="utf-8"))
    assert len(page.xpath("//h2[text()='Why rollouts failed']")) == 1
    assert page.xpath("//table[@id='causes']/tbody/tr/td/text()")[0] == "NudgeCube"
    assert all((failed_run / source).exists() for source in page.xpath("//details/img/@src"))


def test_rollouts_are_computed_with_one_thread_as_in_the_benchmark(failed_run: Path, torch_threads: Any) -> None:
    run = FailedRun(failed_run)
    torch_threads(2)
    with RolloutSession(NUDGE_CUBE, run.source, states_file=run.states_file):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_states_are_those_of_the_longest_run_in_the_folder(failed_run: Path) -> None:
    two = failed_run / "states" / "NudgeCube-2.safetensors"
    run, checksums = read_json(failed_run / "run.json"), two.with_name(CHECKSUMS)
    longer = {f"NudgeCube-{number}.safetensors": states_checksum(two) for number in (9, 10)}
    for name in longer:
        shutil.copy(two, two.with_name(name))
    write_json(checksums, {**read_json(checksums), **longer})
    write_json(failed_run / "run.json", {**run, "made_states": {**run["made_states"], **longer}})
    assert FailedRun(failed_run).states_file(NUDGE_CUBE).stem == "NudgeCube-10"
    write_json(failed_run / "run.json", {**run, "made_states": {two.name: "0" * 64}})
    with pytest.raises(UserError, match="holds other initial states than those that"):
        FailedRun(failed_run).states_file(NUDGE_CUBE)


def test_failures_of_another_policy_are_refused(failed_run: Path) -> None:
    with pytest.raises(UserError, match=r"made by another policy .* say where that is with --policy"):
        FailedRun(failed_run, "par-mini")
    with pytest.raises(UserError, match=r"run\.json does not exist"):
        FailedRun(failed_run / "videos")


def test_a_policy_is_found_that_was_run_by_its_rows_name(failed_run: Path, tmp_path: Path) -> None:
    results = read_json(failed_run / "results.json")
    where = results["provenance"]["policy"]
    results["provenance"] |= {"policy": "par-noar", "policy_folder": where}
    write_json(failed_run / "results.json", results)
    assert FailedRun(failed_run).source.folder == Path(where)
    write_json(tmp_path / "act" / "baseline.json", {"method": "act"})
    with pytest.raises(UserError, match="act is no checkpoint of PAR, and only these can be drawn"):
        FailedRun(failed_run, str(tmp_path / "act"))


def test_the_gallery_shows_the_first_state_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(session: Any, state: int, seeds: tuple[int, ...]) -> Any:
        return None, {"success_once": state != 5}, lambda path: path.write_text(str(state))

    monkeypatch.setattr(gallery, "examine", examine)
    session: Any = None
    assert gallery.draw_one_failure(session, [8, 0, 5, 6], tmp_path / "shown") == 5
    assert (tmp_path / "shown").read_text() == "5"
    assert gallery.draw_one_failure(session, [8, 0], tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_the_moving_picture_shows_a_prediction_until_its_chunk_ends(tmp_path: Path) -> None:
    colours = {"predicted": (200, 0, 0), "then": (0, 200, 0), "executed": (0, 0, 200)}
    images = {name: np.full((40, 40, 3), colour, np.uint8) for name, colour in colours.items()}
    plans = [
        SimpleNamespace(step=0, frame=images["executed"], frames=[images["predicted"]]),
        SimpleNamespace(step=8, frame=images["executed"], frames=[images["then"]]),
    ]
    trace: Any = SimpleNamespace(plans=plans, actions=[None] * 12)
    unused: Any = None
    outcome = {"success_once": True, "steps_to_success": 12}
    frames = dict.fromkeys((0, 4, 8, 12), images["executed"])
    rollout = Rollout("Push, state 0", "", outcome, trace, frames, unused, unused, unused, ())
    gallery.draw_moving([rollout], 4, tmp_path / "moving.gif")
    found, times = [], []
    with Image.open(tmp_path / "moving.gif") as moving:
        for page in ImageSequence.Iterator(moving):  # equal images are one, shown for longer
            image = np.asarray(page.convert("RGB")).astype(int)
            near = {name: (np.abs(image - colour).max(-1) < 8).sum() for name, colour in colours.items()}
            found.append({name for name, pixels in near.items() if pixels > 99})
            times.append(page.info["duration"])
    assert found == [{"predicted", "executed"}, {"then", "executed"}]
    assert times == [600, 1700]  # ms: 12 control steps; then the last image, which stays
