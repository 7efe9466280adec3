"""The documentation site is built without a warning, and shows what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from par_agent.cli import SUBCOMMANDS
from test_docs import ROOT


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="the site needs the extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "docs" / "site" / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)  # with a warning: mkdocs.exceptions.Abort
    commands = (tmp_path / "reference" / "commands.html").read_text()
    assert all(f"usage: par-agent {name} " in commands for name in SUBCOMMANDS)
    policy = (tmp_path / "reference" / "policy.html").read_text()
    assert 'id="par_agent.policy.par_policy.PARPolicy.from_pretrained"' in policy
    assert "examples/gallery/rollouts.gif" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "examples" / "gallery" / "rollouts.gif").is_file()
