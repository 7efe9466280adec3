"""Which marked tests run: `slow` and `network` when asked for, `gpu` where there is one; skips are listed."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run tests marked slow")
    parser.addoption("--run-network", action="store_true", help="also run tests marked network")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker in ("slow", "network"):
        if not config.getoption(f"--run-{marker}"):
            skip = pytest.mark.skip(reason=f"{marker}: run with --run-{marker}")
            for item in items:
                if marker in item.keywords:
                    item.add_marker(skip)
    gpu_items = [item for item in items if "gpu" in item.keywords]
    if gpu_items:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_items:
                item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device"))
