"""Links and commands of the written pages are right."""

from __future__ import annotations

import re
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
