"""report.html: what is in it, that it needs nothing else, and that a click in a real browser plays a video."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lxml import html

from par_agent.evaluation.benchmark_run import BenchmarkRun
from par_agent.evaluation.policies import PolicySource
from par_agent.evaluation.report import write_results
from par_agent.evaluation.run_config import RunConfig

STATES, POLICY_SEEDS = 3, 2
TASKS = ("PushCube", "PickCube")


def record(task: str, state: int, policy_seed: int) -> dict[str, Any]:
    """A made-up record: policy seed 0 succeeds, 1 fails, and PickCube's last rollout ends with an exception."""
    error = "ValueError: 1 <b>&</b> 2" if (task, state, policy_seed) == ("PickCube", 2, 1) else None
    success = policy_seed == 0
    return {
        **{"task": task, "state": state, "policy_seed": policy_seed, "env_seed": 7000 + state},
        **{"success_once": success, "success_at_end": None, "steps": 400 - 300 * success, "error": error},
        "actions_sha256": None if error else f"{task}, {state}, {policy_seed}",
        **{"steps_to_success": 100 if success else None, "reward": 2.5, "renders": 9, "plan_ms": 8.0, "seconds": 1.5},
    }


def make_run(folder: Path, **arguments: Any) -> BenchmarkRun:
    options = {"tasks": TASKS, "states": STATES, "policy_seeds": POLICY_SEEDS, **arguments}
    return BenchmarkRun(RunConfig(policy=PolicySource("harness_policies:PlainResetPolicy"), out=folder, **options))


def page(run: BenchmarkRun, records: list[dict[str, Any]]) -> Any:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_results(run.info, records)
    return html.fromstring((run.folder / "report.html").read_text(encoding="utf-8"))


ALL_RECORDS = [record(t, state, seed) for t in TASKS for state in range(STATES) for seed in range(POLICY_SEEDS)]


def test_every_rollout_of_every_task_is_a_cell(tmp_path: Path) -> None:
    document = page(make_run(tmp_path, state_seed=7000), ALL_RECORDS)
    for task in TASKS:
        (grid,) = document.xpath(f"//table[@data-task='{task}']")
        assert [len(row.xpath("td")) for row in grid.xpath("tbody/tr")] == [STATES] * POLICY_SEEDS + [0]
        assert [cell.text for cell in grid.xpath("tbody/tr[1]/td/*")] == ["✓"] * STATES
    (failed,) = document.xpath("//*[@data-rollout='PickCube, state 2, policy seed 1']")
    assert failed.text == "!" and "ValueError: 1 <b>&</b> 2" in failed.get("title")
    assert document.xpath("//li/code/text()") == ["ValueError: 1 <b>&</b> 2"]  # shown as it is, not as markup
    assert document.xpath("//table[@id='results']/tbody/tr/td[2]/text()") == ["3/6", "3/6"]
    assert "PAR-Full" in document.xpath("string(//table[@id='comparison'])")
    assert [curve.xpath("string(title)") for curve in document.xpath("//*[@id='steps']/path[title]")] == list(TASKS)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    document = page(make_run(tmp_path), ALL_RECORDS)
    links = document.xpath("//@href | //@src")
    assert links and not [link for link in links if re.match(r"[a-z]+:|/", link)]
    assert not document.xpath("//link | //script[@src] | //img | //iframe")


def test_what_is_not_the_protocol_and_what_is_unfinished_is_said(tmp_path: Path) -> None:
    warnings = page(make_run(tmp_path, state_seed=7000), ALL_RECORDS[:-2]).xpath("//p[@class='warning']")
    assert ["NOT THE PROTOCOL" in warnings[0].text, "2 of 12 rollouts" in warnings[1].text] == [True, True]
    complete = [record(t, state, seed) for t in TASKS for state in range(25) for seed in range(5)]
    assert not page(make_run(tmp_path, states=25, policy_seeds=5), complete).xpath("//p[@class='warning']")


def test_a_cell_with_a_video_is_a_link_to_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    video = run.info.video_file("PickCube", 1, 0)
    video.parent.mkdir(parents=True)
    video.touch()
    (link,) = page(run, ALL_RECORDS).xpath("//a[@data-rollout]")
    assert link.get("data-rollout") == "PickCube, state 1, policy seed 0"
    assert (run.folder / link.get("href")) == video


@pytest.mark.usefixtures("without_workers")
def test_a_click_on_a_cell_shows_the_rollout_and_plays_its_video(tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    run = make_run(tmp_path / "out", tasks=("harness_task:NUDGE_CUBE",), states=1, video=1)
    page(run, run.run(lambda found: None, lambda record: None))
    browser.get((run.folder / "report.html").as_uri())
    with_video, without = browser.find_elements("css selector", "[data-rollout]")
    panel = browser.find_element("id", "rollout")
    assert not panel.is_displayed()
    with_video.click()
    loaded = "const v = document.getElementById('video'); return v.readyState >= 2 && v.duration"
    duration = WebDriverWait(browser, 20).until(lambda browser: browser.execute_script(loaded))
    assert duration == pytest.approx(13 / 20, abs=0.06)  # 12 steps and the initial state, 20 a second
    assert browser.execute_script("return document.getElementById('video').videoWidth") == 512
    assert "policy seed 0" in panel.text and "no success in 12 control steps" in panel.text
    without.click()
    assert "policy seed 1" in panel.text
    assert not browser.find_element("id", "video").is_displayed()
    browser.find_element("id", "close").click()
    assert not panel.is_displayed()
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
