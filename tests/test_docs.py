"""Links and commands of the written pages are right."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from par_agent.cli import SUBCOMMANDS
from par_agent.utils.checked import option_hints

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in ROOT.glob("*.md") if page.name != "CHANGELOG.md") + sorted(
    path
    for folder in ("docs", "benchmarks", "par_agent", "examples", "integrations")
    for path in (ROOT / folder).rglob("*.md")
)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
CODE = re.compile(r"```\w*\n(.*?)```|`([^`]+)`|^ {4}(\S[^\n]*)$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:par-agent|-m par_agent) ((?:visualize )?[a-z-]+)([^#\n]*)")
SHORT = {"config", "help", "num-states"}
"""Options that are no fields."""
GIVEN = ("--config", 'builtins=["observation"]')
"""Names that a block may use and that its reader has."""


def test_links_lead_somewhere() -> None:
    pages = [*PAGES, ROOT / "CHANGELOG.md"]
    assert ROOT / "README.md" in pages and ROOT / "benchmarks" / "EXPERIMENTS.md" in pages
    for page in pages:
        for target in LINK.findall(page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists_and_has_the_options_that_it_is_given(page: Path) -> None:
    for block, span, line in CODE.findall(page.read_text().replace("\\\n", " ")):
        for name, words in COMMAND.findall(block or " ".join((span or line).split())):
            options = option_hints(SUBCOMMANDS[name].load()[1])
            known = SHORT | {option.replace("_", "-") for option in options}
            given = {word.removeprefix("no-") for word in re.findall(r"--([a-z][a-z-]*)", words)}
            assert given <= known, f"par-agent {name} has no --{' --'.join(given - known)}"


def test_python_blocks_compile_and_use_no_unknown_names() -> None:
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            ast.parse(block)
            lint = [sys.executable, "-m", "ruff", "check", "-q", "--isolated", "--select", "F821", *GIVEN, "-"]
            found = subprocess.run(lint, input=block, text=True, capture_output=True)
            assert found.returncode == 0, f"{page}: {found.stdout}"


def test_errors_of_the_page_are_messages_of_the_package() -> None:
    source = "".join(path.read_text() for path in (ROOT / "par_agent").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    headings = re.findall(r'^### "(.+)"$', (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert len(headings) > 20
    assert [heading for heading in headings if heading not in source] == ["Rendering might be disabled"]  # ManiSkill's
