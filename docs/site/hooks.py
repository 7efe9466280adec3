"""What the site shows besides the files of docs/: the README, the pages that are linked to, and two references.

Links that lead out of docs/ on GitHub lead to the same pages here: to included files, or to a module's reference.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|const|exc):(<code>)~?")
PARTS = ("modeling", "policy", "simulation", "data", "training", "evaluation", "baselines", "jobs", "visualization")
"""Packages of the reference, besides the modules that lie beside them."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that docs/ has no file of."""
    pages = [DOCS / file.src_uri for file in files.documentation_pages()] + [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    known = set(pages)
    for page in pages:  # grows while it is read
        for path in linked(page):
            if path in known or path.is_dir() or reference_of(path):
                continue
            known.add(path)
            if path.suffix == ".md":
                pages.append(path)
    for path in sorted(known):
        if not path.is_relative_to(DOCS):
            files.append(File.generated(config, uri_of(path), abs_src_path=str(path)))
    files.append(File.generated(config, "reference/python.md", content=python_index()))
    for part in PARTS:
        files.append(File.generated(config, f"reference/{part}.md", content=part_page(part)))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    source = page.file.abs_src_path
    if source is None or not Path(source).is_file():  # made here
        return markdown

    def replaced(match: re.Match[str]) -> str:
        path = Path(source).parent / match[1]
        return posixpath.relpath(target_of(path.resolve()), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(replaced, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Shows docstrings' marks of other tools, such as `:class:`, as plain code."""
    return ROLE.sub(r"\1", html).replace("::</p>", ":</p>")


def linked(page: Path) -> Iterator[Path]:
    """The files and folders that a page links to."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        if path.exists():  # mkdocs warns of others
            yield path / "README.md" if (path / "README.md").is_file() else path


def reference_of(path: Path) -> str | None:
    """The page of the reference that describes a module or package; None where there is none."""
    if not path.is_relative_to(ROOT / "par_agent") or not (path.suffix == ".py" or (path / "__init__.py").is_file()):
        return None
    part = path.relative_to(ROOT / "par_agent").parts[0] if path != ROOT / "par_agent" else ""
    return f"reference/{part if part in PARTS else 'python'}.md"


def uri_of(path: Path) -> str:
    """Where a file of the repository stands in the site."""
    if path == ROOT / "README.md":
        return "index.md"
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def target_of(path: Path) -> str:
    """The site's file that a link to a file or folder of the repository leads to."""
    if (path / "README.md").is_file():
        path /= "README.md"
    if (page := reference_of(path)) is not None:
        return page
    while path.is_dir() and not (path / "README.md").is_file() and path != ROOT:  # a folder: the nearest page above it
        path = path.parent
    if path.is_dir():
        path /= "README.md"
    return uri_of(path)


def python_index() -> str:
    """The page of what is imported from the package itself, and links to those of its parts."""
    lines = ["# Python", "", *(f"- [`par_agent.{part}`]({part}.md)" for part in PARTS), ""]
    for name in ("policy.par_policy.PARPolicy", "modeling.par.PARModel", "simulation.environment.make_env"):
        lines += [f"- [`par_agent.{name.rpartition('.')[2]}`][par_agent.{name}]"]
    for name in ("par_agent.tasks", "par_agent.envs", "par_agent.errors"):
        lines += ["", f"::: {name}"]
    return "\n".join(lines) + "\n"


def part_page(part: str) -> str:
    """The page of all modules of a package that hold something public."""
    folder, lines = ROOT / "par_agent" / part, [f"# par_agent.{part}"]
    for path in sorted(folder.rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        if not names[-1].startswith("_"):
            lines += ["", f"::: {'.'.join(names)}"]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """The page of all commands, as tyro explains them."""
    from par_agent.cli import SUBCOMMANDS, usage

    lines = ["# Commands", "", "```text", usage(), "```", ""]
    for name in SUBCOMMANDS:
        lines += [f"## par-agent {name}", "", "```text", help_of(name), "```", ""]
    return "\n".join(lines)


def help_of(name: str) -> str:
    """What `par-agent NAME --help` prints."""
    from par_agent.cli import run_subcommand

    printed, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            run_subcommand(name, ["--help"])
    finally:
        os.environ.pop("COLUMNS") if width is None else os.environ.update(COLUMNS=width)
    return printed.getvalue().strip()
