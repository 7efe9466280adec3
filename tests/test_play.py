"""The live page: its token, its parts in a real browser, and that nothing is left when it ends."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from par_agent.errors import UserError
from par_agent.evaluation.policies import PolicySource
from par_agent.play.live import Live
from par_agent.play.page import TokenGate
from tiny import LENGTH, task_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PolicySource:
    folder = tmp_path_factory.mktemp("policy")
    task_checkpoint().save(folder)
    return PolicySource(str(folder))


def test_a_rollout_goes_on_step_by_step_and_shows_what_the_policy_expects(source: PolicySource) -> None:
    with Live(source, "PushCube", 0) as live:
        start = live.view()
        assert (start.steps, start.predicted, start.attention) == (0, None, None)
        first = live.step()
        assert first.predicted is not None and first.attention is not None
        assert (first.status, first.predicted.shape, first.attention.shape) == ("step 1", (16, 16, 3), (16, 16, 3))
        assert np.array_equal(live.step(LENGTH - 1).predicted, first.predicted)  # one prediction a chunk
        again = live.load(source, "PushCube", 0)
        assert again.steps == 0 and np.array_equal(again.image, start.image)
        assert not np.array_equal(live.load(source, "PushCube", 1).image, start.image)


def test_the_object_goes_to_where_the_image_was_clicked(source: PolicySource) -> None:
    with Live(source, "PushCube", 0) as live:
        for x, y in ((200, 400), (260, 420)):
            image = live.put_object(x, y).image.astype(int)
            blue = (image[..., 2] > 80) & (image[..., 2] > image[..., 0] + 50) & (image[..., 2] > image[..., 1] + 30)
            rows, columns = np.nonzero(blue)
            assert abs(columns.mean() - x) < 4 and abs(rows.mean() - y) < 4
        with pytest.raises(UserError, match="no place on the table within the robot's reach"):
            live.put_object(5, 5)


def test_a_task_that_does_not_exist_leaves_the_one_before(source: PolicySource) -> None:
    with Live(source, "PushCube", 0) as live:
        with pytest.raises(UserError, match="unknown task 'PushBall'"):
            live.load(source, "PushBall", 0)
        assert live.step().steps == 1


def test_the_gate_lets_the_token_through_and_nothing_else() -> None:
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])

    def statuses(path: str, kind: str = "http") -> list[Any]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(TokenGate(app, "secret")({"type": kind, "path": path}, None, send))
        return [
            message.get("status", message.get("code")) for message in sent if message["type"] != "http.response.body"
        ]

    for path in ("/", "/secre/", "/secret2/", "/x/secret/", "//secret/", "/Secret/", "/sécret/"):
        assert statuses(path) == [403], path
    assert statuses("/ws", "websocket") == [1008]
    assert passed == []
    assert statuses("/secret/") == [] and statuses("/secret/queue/join") == []
    assert passed == ["/secret/", "/secret/queue/join"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium with its driver (Debian's packages: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking")
    for flag in (*flags, f"user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield browser
    browser.quit()


def status_of(address: str) -> int:
    try:
        return int(urllib.request.urlopen(address, timeout=60).status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_the_page_runs_pauses_steps_and_resets_and_ends_without_a_trace(source: PolicySource, browser: Any) -> None:
    pytest.importorskip("gradio", reason="needs par-agent[play]")
    from selenium.webdriver.support.ui import WebDriverWait

    words = ["play", "--policy", source.reference, "--task", "PushCube", "--port", "0"]
    server = subprocess.Popen([sys.executable, "-m", "par_agent", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.findall(r"(http://127\.0\.0\.1:\d+/\S+/)", server.stdout.readline())[0]
        root = address[: address.rindex("/", 0, -1) + 1]
        assert (status_of(address), status_of(root), status_of(root + "config")) == (200, 403, 403)
        listening = [c for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}

        browser.get(address)
        wait = WebDriverWait(browser, 120)

        def steps(_: Any = None) -> int:
            field = "const e = document.querySelector('#status textarea, #status input'); return e ? e.value : ''"
            found = re.match(r"step (\d+)", browser.execute_script(field))
            return -1 if found is None else int(found[1])

        def click(name: str) -> None:
            browser.find_element("id", name).click()

        wait.until(lambda _: steps() == 0)
        click("step")
        wait.until(lambda _: steps() == 1)
        wait.until(lambda _: len(browser.find_elements("css selector", "#predicted img, #attention img")) == 2)
        click("run")
        wait.until(lambda _: steps() >= 9)
        click("pause")
        seen: list[int] = []
        wait.until(lambda _: seen.append(steps()) or (len(seen) > 8 and len(set(seen[-8:])) == 1))
        click("step")
        wait.until(lambda _: steps() == seen[-1] + 1)
        click("reset")
        wait.until(lambda _: steps() == 0)
        click("run")
        wait.until(lambda _: steps() >= 4)
        server.send_signal(signal.SIGINT)  # in the middle of the rollout
        assert server.wait(timeout=60) == 0
        with pytest.raises(urllib.error.URLError):
            status_of(address)
    finally:
        server.kill()
        server.wait()
