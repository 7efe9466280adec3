"""README's figures are those of the result files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme_table.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_readme_shows_the_reported_results(tmp_path: Path) -> None:
    result = run("--check")
    assert result.returncode == 0, result.stdout
    wrong = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text()
    wrong.write_text(text.replace(" = **", " = **1", 1))
    assert wrong.read_text() != text
    assert run("--check", "--documents", str(wrong)).returncode == 1
    assert run("--documents", str(wrong)).returncode == 0
    assert re.sub(r"\]\(.*?\)", "", wrong.read_text()) == re.sub(r"\]\(.*?\)", "", text)


def test_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("par_agent/checkpoints/*/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
