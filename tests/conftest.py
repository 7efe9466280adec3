"""Which tests run: `slow` and `network` when asked for, `gpu` where there is one; skips are listed. And a browser.

With several test processes each computes and renders with one thread, and the longest modules start first.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("LP_NUM_THREADS", "1")

LONGEST = (
    "test_benchmark_run",
    "test_rendering",
    "test_examples",
    "test_finetune",
    "test_vla_eval_runs",
    "test_cluster",
    "test_visualization",
    "test_baseline_training",
    "test_demos",
    "test_import_nova",
    "test_distributed",
    "test_virtual_cuda",
    "test_option_ranges",
    "test_variations",
    "test_make_env",
    "test_trainable",
    "test_recipes",
    "test_controllers",
    "test_play",
    "test_html_report",
    "test_evaluation_environment",
    "test_readme",
    "test_vla_eval",
    "test_workers",
    "test_mutated_files",
    "test_alignment",
)
"""Modules that take longest, the longest first."""
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
"""What the test process does at a signal."""


# The same inputs in every run; nothing is remembered from one run to the next.
hypothesis.settings.register_profile("suite", max_examples=60, derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run tests marked slow")
    parser.addoption("--run-network", action="store_true", help="also run tests marked network")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))
    for marker in ("slow", "network"):
        if not config.getoption(f"--run-{marker}"):
            skip = pytest.mark.skip(reason=f"{marker}: run with --run-{marker}")
            for item in items:
                if item.get_closest_marker(marker):  # not item.keywords, where folder names are too
                    item.add_marker(skip)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_items:
                item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device"))


@pytest.fixture(autouse=True)
def _signal_handlers() -> None:
    """Every test begins with the handlers of the process: Ray leaves one of its own for SIGTERM."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="module")
def _old_objects() -> None:
    """ManiSkill collects garbage for every scene: not among all that was imported, for that takes seconds."""
    gc.collect()
    gc.freeze()


@cache
def _renderer() -> Any:
    """A renderer of this process. While there is one, SAPIEN need not make its lookup tables anew for every
    environment, which takes 7 seconds on a CPU."""
    import sapien
    import torch

    gc.freeze()  # ManiSkill has just been imported
    if torch.cuda.is_available():  # ManiSkill chooses the device then, and a process has one renderer
        return None
    try:
        return sapien.render.RenderSystem("cpu")
    except RuntimeError:  # nothing can render here; tests that need it are skipped
        return None


@pytest.fixture(autouse=True)
def _kept_renderer() -> None:
    if "sapien" in sys.modules:
        _renderer()


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch computes with, until the test ends."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def without_pictures() -> Iterator[None]:
    """Training draws no pictures of predictions, which take longer than all else in a tiny run."""
    import numpy as np

    with pytest.MonkeyPatch.context() as patch:
        blank = np.zeros((2, 2, 3), np.uint8)
        patch.setattr("par_agent.training.par_training.draw", lambda episodes, path: blank)
        yield


@pytest.fixture
def without_workers(monkeypatch: pytest.MonkeyPatch, torch_threads: Callable[[int], None]) -> None:
    """Rollouts, rendering and making initial states need no worker processes, which import and compile all again."""
    from recordings import run_in_this_process

    torch_threads(1)
    for module in ("cli.render", "evaluation.benchmark_run"):
        monkeypatch.setattr(f"par_agent.{module}.open_runner", run_in_this_process)
    monkeypatch.setattr("par_agent.evaluation.initial_states.local_runner", run_in_this_process)


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
    for flag in (*flags, "window-size=1280,900", f"user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield browser
    browser.quit()
