"""What is imagined against what happens: measures, observers, and the benchmark's columns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lxml import html

from par_agent import PARPolicy
from par_agent.errors import UserError
from par_agent.evaluation.alignment import MEASURES, Alignment, align
from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.object_search import find_object, object_colors, share_in_place
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.protocol import load_states, protocol_file
from par_agent.evaluation.report import write_results
from par_agent.evaluation.rollout import roll_out
from par_agent.evaluation.run_config import RunConfig
from par_agent.evaluation.trace import RolloutTracer, Trace
from par_agent.simulation.end_effector import EndEffector
from par_agent.simulation.environment import TaskEnvironment
from par_agent.tasks import get_task
from par_agent.utils.image_quality import moving_psnr, psnr, psnr_of_error, ssim
from tiny import LENGTH, task_checkpoint

pytest.importorskip("skimage", reason="needs par-agent[viz]")
STEPS, AHEAD = 3 * LENGTH + 2, 2


def test_psnr_and_ssim_are_what_they_are_defined_to_be() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    other = np.clip(frame.astype(int) + 10, 0, 255).astype(np.uint8)
    error = ((frame.astype(float) - other) ** 2).mean()
    assert psnr(other, frame) == pytest.approx(10 * np.log10(255**2 / error))
    assert psnr(frame, frame) > 58 and ssim(frame, frame) == pytest.approx(1)
    assert psnr_of_error(0.04, 2) == pytest.approx(10 * np.log10(4 / 0.04))
    assert ssim(255 - frame, frame) < ssim(other, frame) < 1


def test_moving_pixels_are_those_that_differ_from_the_last_frame() -> None:
    last = np.full((8, 8, 3), 100, np.uint8)
    true, image = last.copy(), last.copy()
    true[:2], image[:2], image[5:] = 200, 190, 0
    assert moving_psnr(image, true, last) == pytest.approx(psnr_of_error(100, 255))
    assert moving_psnr(image, last + 20, last) == psnr(image, last + 20)  # nothing moves


def square(row: int, column: int, color: tuple[int, int, int], side: int = 12) -> np.ndarray:
    frame = np.full((320, 320, 3), (203, 130, 82), np.uint8)  # the table's brown
    frame[row : row + side, column : column + side] = color
    return frame


def test_an_object_is_found_by_its_colour_within_six_pixels_of_320() -> None:
    red, blue = (0.0, 1.0), (0.61, 0.69)
    true = square(100, 50, (190, 10, 10))
    assert find_object(true, red) == (105.5, 55.5) and find_object(true, blue) is None
    assert find_object(square(100, 50, (43, 76, 140)), blue) is not None
    assert find_object(square(100, 50, (190, 10, 10), side=3), red) is None  # too small to count
    for moved, share in ((5, 1.0), (7, 0.5)):
        assert share_in_place(square(100, 50 + moved, (190, 10, 10)), true, [red, blue]) == share
    vanished = square(0, 0, (203, 130, 82))
    assert share_in_place(vanished, true, [red, blue]) == 0.5 and share_in_place(true, vanished, [red]) == 0


def test_means_by_horizon_are_over_the_plans_that_reach_it() -> None:
    alignment = {**{name: [[1.0, 3.0], [2.0]] for name in MEASURES}, "encoder_psnr_db": [30.0]}
    assert Alignment.summarise([alignment, alignment])["ssim"] == [1.5, 3.0]
    nothing = {**{name: [[]] for name in MEASURES}, "encoder_psnr_db": [30.0]}
    assert Alignment.summarise([nothing])["path_cm"] == []


@pytest.fixture(scope="module")
def traced() -> tuple[Trace, dict[str, Any], dict[str, Any], PARPolicy, TaskEnvironment]:
    """A short rollout of PushCube by a tiny policy, once traced and once not."""
    spec = dataclasses.replace(get_task("PushCube"), max_steps=STEPS)
    policy = PARPolicy(task_checkpoint(), spec.instruction)
    env, states = TaskEnvironment(spec, "paper"), load_states(protocol_file(spec), spec)
    [(_, plain)] = roll_out(env, policy, states[:1], 0)
    tracer = RolloutTracer(env, policy, AHEAD)
    [(_, record)] = roll_out(env, policy, states[:1], 0, observers=[tracer])
    return tracer.traces[0], plain, record, policy, env


def test_a_traced_rollout_is_the_same_to_the_bit(traced: Any) -> None:
    trace, plain, record, _, _ = traced
    assert record["actions_sha256"] == plain["actions_sha256"] and record["steps"] == STEPS
    assert [plan.step for plan in trace.plans] == [0, LENGTH, 2 * LENGTH, 3 * LENGTH]
    assert len(trace.actions) == STEPS and len(trace.joints) == STEPS + 1
    for plan in trace.plans:  # the first chunk imagined is the one executed
        executed = np.array(trace.actions[plan.step : plan.step + LENGTH])
        np.testing.assert_allclose(plan.actions[0][: len(executed)], executed, atol=1e-6)


def test_kinematics_put_the_hand_where_the_simulator_has_it(traced: Any) -> None:
    *_, env = traced
    agent = env.simulation.agent
    found = EndEffector(env).positions(agent.robot.get_qpos().numpy())
    np.testing.assert_allclose(found[0], agent.tcp.pose.p[0].numpy(), atol=1e-5)


def test_every_plan_is_compared_as_far_as_the_rollout_went(traced: Any) -> None:
    trace, _, _, policy, env = traced
    colors = object_colors(env, 0)
    found = align(trace, policy.transforms, policy.checkpoint.encoder, EndEffector(env), colors)
    lengths = {name: [len(row) for row in found[name]] for name in MEASURES}
    assert lengths["psnr_db"] == lengths["ssim"] == lengths["still_psnr_db"] == [2, 2, 1, 0]
    assert lengths["path_cm"] == [2, 2, 1, 0]  # the last chunk was not executed to its end
    first, second = trace.plans[:2]
    assert found["psnr_db"][0][0] == pytest.approx(psnr(first.frames[0], second.frame), abs=0.01)
    assert found["still_psnr_db"][0][0] == pytest.approx(psnr(first.frame, second.frame), abs=0.01)
    moving = moving_psnr(first.frames[0], second.frame, first.frame)
    assert found["moving_psnr_db"][0][0] == pytest.approx(moving, abs=0.01)
    assert found["still_objects_found"][0][0] == share_in_place(first.frame, second.frame, colors)
    assert len(found["encoder_psnr_db"]) == 4


@pytest.mark.usefixtures("without_workers")
def test_the_benchmark_reports_it_where_asked_to(tmp_path: Path) -> None:
    task_checkpoint().save(tmp_path / "policy")
    source = PolicySource(str(tmp_path / "policy"))
    options = {"tasks": ("harness_task:NUDGE_CUBE",), "states": 1, "policy_seeds": 1}
    runs = [
        BenchmarkRun(RunConfig(policy=source, out=tmp_path, measurements=found, **options))
        for found in ((), (Alignment(AHEAD),))
    ]
    assert runs[0].folder != runs[1].folder
    records = runs[1].run(lambda found: None, lambda record: None)
    write_results(runs[1].info, records)
    record = json.loads((runs[1].folder / "rollouts.jsonl").read_text())
    assert [len(row) for row in record["alignment"]["ssim"]] == [2, 1, 0]
    [result] = json.loads((runs[1].folder / "results.json").read_text())["results"]
    assert len(result["measured"]["alignment"]["psnr_db"]) == AHEAD
    assert "psnr_db,ssim,path_cm" in (runs[1].folder / "results.csv").read_text()
    page = html.fromstring((runs[1].folder / "report.html").read_text())
    assert len(page.xpath("//table[@id='alignment']/tbody/tr")) == AHEAD
    assert (runs[1].folder / page.xpath("//img/@src")[0]).stat().st_size > 1000


@pytest.mark.usefixtures("without_workers")
def test_what_imagines_nothing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = PolicySource("harness_policies:PlainResetPolicy")
    config = RunConfig(
        tasks=("PushCube",), policy=source, out=tmp_path, states=1, policy_seeds=1, measurements=(Alignment(1),)
    )
    with pytest.raises(UserError, match="PlainResetPolicy imagines no frames"):
        BenchmarkRun(config).run(lambda found: None, lambda record: None)
    assert not list(tmp_path.iterdir())
