"""Versions of packages and a hash of this package's code: with its inputs they decide a result."""

from __future__ import annotations

import ast
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from par_agent.errors import UserError
from par_agent.utils.hashes import hash_bytes

PACKAGE_FOLDER = Path(__file__).parents[1]


def source_files(names: Iterable[str]) -> list[Path]:
    """Python files of this package, sorted; of folders among the ``names``, below the package's folder, all files."""
    paths = [PACKAGE_FOLDER / name for name in names]
    return sorted(file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path]))


def hash_code(names: Iterable[str]) -> str:
    """Hash of what :func:`source_files` do, 12 hexadecimal digits: comments and docstrings do not count."""
    parts: list[str] = []
    for file in source_files(names):
        parts.append(file.relative_to(PACKAGE_FOLDER).as_posix())
        parts.append(ast.unparse(_WithoutText().visit(ast.parse(file.read_bytes()))))
    return hash_bytes("".join(f"{part}\0" for part in parts).encode())


class _WithoutText(ast.NodeTransformer):
    """Takes out strings that stand alone: docstrings of modules, classes, functions and fields."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.copy_location(ast.Pass(), node) if text else node


def installed_versions(packages: Sequence[str], code: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of packages, named as pip knows them; ``code`` is :func:`hash_code` of those names."""
    versions = {name.replace("-", "_"): installed_version(name) or "not installed" for name in packages}
    return {"python": platform.python_version(), **versions, "code": hash_code(code)}


def installed_version(package: str) -> str | None:
    """Version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def planner_problem(numpy: str | None, mplib: str | None) -> str | None:
    """Why ManiSkill's motion planner cannot run with these versions, None: not installed; None if it can.

    Under numpy 2, mplib ends the process when it is used.
    """
    if mplib is None:
        return "mplib, ManiSkill's motion planner, is not installed"
    if numpy is not None and int(numpy.split(".")[0]) >= 2:
        return f"mplib {mplib}, ManiSkill's motion planner, crashes with numpy {numpy}"
    return None


def check_versions(what: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuses to work for a machine that has other versions than this one."""
    differing = [
        f"{name} {found.get(name)} instead of {value}" for name, value in expected.items() if found.get(name) != value
    ]
    if differing:
        raise UserError(
            f"node {platform.node()} has another version of {what} ({', '.join(differing)}): results would not be "
            "comparable; install the same there"
        )


def git_commit() -> str:
    """Commit of the repository that this package lies in, marked where files differ from it."""
    command = ("git", "-C", str(PACKAGE_FOLDER), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
