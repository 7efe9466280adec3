"""The live page: its token, its parts in a real browser, and that nothing is left when it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import psutil
import pytest

from held import TIMEOUT, default_signals, gone
from par_agent.errors import UserError
from par_agent.evaluation.policies import PolicySource
from par_agent.play.live import Live, pixel, whole
from par_agent.play.page import TokenGate, chosen, dragged
from tiny import LENGTH, task_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PolicySource:
    folder = tmp_path_factory.mktemp("policy")
    task_checkpoint().save(folder)
    return PolicySource(str(folder))


def blue_centre(image: np.ndarray) -> np.ndarray:
    """(x, y) of the pixels of PushCube's cube, which is blue; image: (H, W, 3) uint8."""
    red, green, blue = np.moveaxis(image[..., :3].astype(int), -1, 0)
    rows, columns = np.nonzero((blue > 80) & (blue > red + 50) & (blue > green + 30))
    return np.array([columns.mean(), rows.mean()])


def test_a_rollout_goes_on_step_by_step_and_shows_what_the_policy_expects(source: PolicySource) -> None:
    with Live(source, "PushCube", 0) as live:
        start = live.view()
        assert (start.steps, start.predicted, start.attention) == (0, None, None)
        first = live.step()
        assert first.predicted is not None and first.attention is not None
        assert (first.steps, first.predicted.shape, first.attention.shape) == (1, (16, 16, 3), (16, 16, 3))
        assert first.position is not None and re.fullmatch(r"step 1; object at (-?\d+\.\d,? ){3}cm", first.status)
        assert np.array_equal(live.step(LENGTH - 1).predicted, first.predicted)  # one prediction a chunk
        again = live.load(source, "PushCube", 0)
        assert again.steps == 0 and np.array_equal(again.image, start.image)
        assert not np.array_equal(live.load(source, "PushCube", 1).image, start.image)


def test_the_object_goes_to_where_the_image_was_clicked(source: PolicySource) -> None:
    with Live(source, "PushCube", 0) as live:
        for x, y in ((200, 400), (260, 420)):
            assert np.abs(blue_centre(live.put_object(x, y).image) - (x, y)).max() < 4
        with pytest.raises(UserError, match="no place on the table within the robot's reach"):
            live.put_object(5, 5)


def test_the_object_is_dragged_by_the_point_that_was_pressed(source: PolicySource) -> None:
    with Live(source, "PushCube", 0) as live:
        before = live.put_object(200, 400)
        centre = blue_centre(before.image)
        seized, way = centre + np.array([8, -5]), np.array([70, 25])  # the cube is some 30 pixels wide
        after = live.drag_object(tuple(seized), tuple(seized + way))
        assert np.abs(blue_centre(after.image) - centre - way).max() < 4
        assert after.position is not None and before.position is not None
        assert after.position[2] == pytest.approx(before.position[2], abs=1e-4)
        for start, end, match in (
            ((200, 400), (250, 400), "did not begin on the object"),  # it is no longer there
            (tuple(seized + way), (5, 5), "no place on the table within the robot's reach"),
        ):
            with pytest.raises(UserError, match=match):
                live.drag_object(start, end)
        assert np.array_equal(live.view().image, after.image)


def test_a_task_that_does_not_exist_leaves_the_one_before(source: PolicySource) -> None:
    with Live(source, "PushCube", 0) as live:
        with pytest.raises(UserError, match="unknown task 'PushBall'"):
            live.load(source, "PushBall", 0)
        assert live.step().steps == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.5, 2**70, None, "0", True, [0], {}])
def test_a_state_that_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"state is .*; it must be a whole number"):
        whole("state", value)
    assert whole("state", 3.0) == whole("state", 3) == 3


@pytest.mark.parametrize(
    "value", [None, 3, "12", [], [1], [1, 2, 3], [1, "2"], [1, None], [float("nan"), 1], [1, float("inf")], [True, 1]]
)
def test_a_place_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="is no place in the image"):
        pixel(value)
    live: Any = None  # which is not asked
    for start, end in ((value, [1, 2]), ([1, 2], value)):
        with pytest.raises(UserError, match="is no place in the image"):
            dragged(live, start, end)
    assert pixel([1, 2.5]) == (1.0, 2.5)


@pytest.mark.parametrize("name", [None, 0, [], ["PushCube"], {}, "os:path", "x" * 10_000])
def test_what_is_not_in_a_menu_is_refused(name: Any) -> None:
    with pytest.raises(UserError, match="is not in the menu; it has: PushCube, PickCube"):
        chosen(name, ["PushCube", "PickCube"])
    assert chosen("PickCube", ["PushCube", "PickCube"]) == "PickCube"


def statuses_of(app: Any, scope: dict[str, Any], body: tuple[bytes, ...] = ()) -> list[Any]:
    """What a request through the gate of the token `secret` is answered with; its body comes in parts."""
    sent: list[dict[str, Any]] = []
    parts = iter(body)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(parts), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(TokenGate(app, "secret")(scope, receive, send))
    return [message.get("status", message.get("code")) for message in sent if message["type"] != "http.response.body"]


def test_a_body_that_is_too_large_is_not_read() -> None:
    received: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(3):
            received.append((await receive())["type"])

    scope = {"type": "http", "path": "/secret/queue/join"}
    for size in (b"1000001", b"9" * 5_000, b"-1", b"many"):
        assert statuses_of(app, {**scope, "headers": [(b"content-length", size)]}) == [413]
    assert received == []
    statuses_of(app, {**scope, "headers": [(b"content-length", b"1000000")]}, (b"x" * 500_000, b"x" * 500_000, b"x"))
    assert received == ["http.request", "http.request", "http.disconnect"]


def test_the_gate_lets_the_token_through_and_nothing_else() -> None:
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])

    def statuses(path: str, kind: str = "http") -> list[Any]:
        return statuses_of(app, {"type": kind, "path": path})

    for path in ("/", "/secre/", "/secret2/", "/x/secret/", "//secret/", "/Secret/", "/sécret/", "*", "", "secret/"):
        assert statuses(path) == [403], path
    for path in ("x/secret/", "*/secret/", "/\udcff/", "/secret\0/", "/" * 10_000, "/" + "x" * 100_000):
        assert statuses(path) == [403], path
    assert statuses("*", "websocket") == [1008]
    assert statuses("/ws", "websocket") == [1008]
    assert passed == []
    assert statuses("/secret/") == [] and statuses("/secret/queue/join") == []
    assert passed == ["/secret/", "/secret/queue/join"]


def status_of(address: str) -> int:
    try:
        return int(urllib.request.urlopen(address, timeout=60).status)
    except urllib.error.HTTPError as error:
        return error.code


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    address: str
    temporary: Path
    """Where it keeps temporary files."""


@pytest.fixture
def server(source: PolicySource, tmp_path: Path) -> Iterator[Server]:
    """`par-agent play` in a process of its own."""
    pytest.importorskip("gradio", reason="needs par-agent[play]")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = ["play", "--policy", source.reference, "--task", "PushCube", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "par_agent", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=default_signals
    ) as process:
        try:
            assert process.stdout is not None
            [address] = re.findall(r"(http://127\.0\.0\.1:\d+/\S+/)", process.stdout.readline())
            yield Server(process, address, temporary)
        finally:
            process.kill()


class Page:
    """Operates the page as one who sits before it."""

    def __init__(self, browser: Any, address: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser = browser
        self._wait = WebDriverWait(browser, 240)
        browser.get(address)

    def until(self, condition: Any) -> None:
        self._wait.until(lambda _: condition())

    @property
    def status(self) -> str:
        field = "const e = document.querySelector('#status textarea, #status input'); return e ? e.value : ''"
        return str(self.browser.execute_script(field))

    @property
    def steps(self) -> int:
        found = re.match(r"step (\d+)", self.status)
        return -1 if found is None else int(found[1])

    @property
    def position(self) -> np.ndarray:
        """(3,) cm: the object in the simulator."""
        return np.array([float(number) for number in self.status.partition("object at ")[2].split(" cm")[0].split(",")])

    @property
    def image(self) -> np.ndarray:
        """The simulator's image as it is seen."""
        return imageio.imread(self._image.screenshot_as_png)

    @property
    def predicted_width(self) -> int:
        """Pixels of the predicted frame, 0 without one; the test's policy and par-mini predict other sizes."""
        return int(self.browser.execute_script("return document.querySelector('#predicted img')?.naturalWidth ?? 0"))

    @property
    def script_errors(self) -> list[str]:
        """What went wrong in the browser; that its own requests outside of the page get a 403 is meant."""
        log = self.browser.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] == "SEVERE" and "403" not in entry["message"]]

    @property
    def _image(self) -> Any:
        return self.browser.find_element("css selector", "#image img")

    def click(self, name: str) -> None:
        self.browser.find_element("id", name).click()

    def choose(self, menu: str, option: str) -> None:
        self.browser.find_element("css selector", f"#{menu} input").click()
        options = f"//*[@role='option'][normalize-space(@aria-label)='{option}']"
        self.until(lambda: self.browser.find_elements("xpath", options))
        self.browser.find_element("xpath", options).click()

    def type_state(self, state: int) -> None:
        field = self.browser.find_element("css selector", "#state input[type=number]")
        self.browser.execute_script("arguments[0].select()", field)
        field.send_keys(f"{state}\t")

    def drag(self, start: np.ndarray, end: np.ndarray) -> None:
        """Presses at one pixel of the shown image and releases at another."""
        from selenium.webdriver.common.action_chains import ActionChains

        size = self._image.size
        from_centre = np.round(start - (size["width"] / 2, size["height"] / 2)).astype(int).tolist()
        by = np.round(end - start).astype(int).tolist()
        chain = ActionChains(self.browser).move_to_element_with_offset(self._image, *from_centre).click_and_hold()
        for _ in range(2):
            chain = chain.move_by_offset(by[0] // 2, by[1] // 2)
        chain.release().perform()


@pytest.mark.slow
def test_the_page_runs_pauses_steps_and_resets_and_ends_without_a_trace(server: Server, browser: Any) -> None:
    address = server.address
    root = address[: address.rindex("/", 0, -1) + 1]
    assert (status_of(address), status_of(root), status_of(root + "config")) == (200, 403, 403)
    listening = [c for c in psutil.Process(server.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}

    page = Page(browser, address)
    page.until(lambda: page.steps == 0)
    page.click("step")
    page.until(lambda: page.steps == 1)
    page.until(lambda: len(browser.find_elements("css selector", "#predicted img, #attention img")) == 2)
    page.click("run")
    page.until(lambda: page.steps >= 9)
    page.click("pause")
    seen: list[int] = []
    page.until(lambda: seen.append(page.steps) or (len(seen) > 8 and len(set(seen[-8:])) == 1))
    page.click("step")
    page.until(lambda: page.steps == seen[-1] + 1)
    page.click("reset")
    page.until(lambda: page.steps == 0)
    assert page.script_errors == []
    page.click("run")
    page.until(lambda: page.steps >= 4)
    server.process.send_signal(signal.SIGINT)  # in the middle of the rollout
    assert server.process.wait(TIMEOUT) == 0
    with pytest.raises(urllib.error.URLError):
        status_of(address)
    assert not [path for path in server.temporary.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_the_cube_is_dragged_and_the_menus_choose_and_a_killed_page_leaves_no_process(
    server: Server, browser: Any
) -> None:
    page = Page(browser, server.address)
    page.until(lambda: page.steps == 0)
    page.until(lambda: page.image.std() > 10)
    before, start = page.position, blue_centre(page.image)
    end = start + np.array([60, 30])
    image = "document.querySelector('#image img')"
    browser.execute_script(f"Object.defineProperty({image}, 'naturalWidth', {{value: 0, configurable: true}})")
    page.drag(start, end)  # as it is while the browser loads the next picture
    browser.execute_script(f"delete {image}.naturalWidth")
    page.until(lambda: np.linalg.norm(page.position - before) > 3)
    page.until(lambda: np.abs(blue_centre(page.image) - end).max() < 4)
    page.drag(start, end)  # from where it no longer is
    page.until(lambda: "did not begin on the object" in browser.page_source)

    page.click("run")
    page.until(lambda: page.steps >= 1)
    dropped = page.position
    page.drag(blue_centre(page.image), end + np.array([60, 0]))  # as it runs
    page.until(lambda: np.linalg.norm(page.position - dropped) > 3)
    assert page.script_errors == []
    page.type_state(3)
    page.until(lambda: page.steps == 0 and page.predicted_width == 0)
    pushing = page.image.astype(int)
    page.choose("task", "PickCube")
    page.until(lambda: np.abs(page.image - pushing).max() > 100)
    page.click("step")
    page.until(lambda: page.predicted_width == 16)
    page.choose("policy", "par-mini")
    page.until(lambda: page.steps == 0 and page.predicted_width == 0)
    page.click("step")
    page.until(lambda: page.predicted_width > 16)
    assert page.script_errors == []

    page.click("run")
    page.until(lambda: page.steps >= 4)
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    server.process.wait()
    gone(children)
    with pytest.raises(urllib.error.URLError):
        status_of(server.address)
