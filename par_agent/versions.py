"""What decides a result beside its inputs: versions of packages, and of this package's own code."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from par_agent.errors import UserError

PACKAGE_FOLDER = Path(__file__).parent
_HASH_DIGITS = 12


def hash_files(paths: Iterable[Path]) -> str:
    """Hash of files' names and contents, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:_HASH_DIGITS]


def installed_versions(packages: Sequence[str], code: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of packages; ``code`` is a hash of sources of this package.

    Args:
        packages: names as pip knows them.
        code: patterns below this package's folder.
    """
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name.replace("-", "_")] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name.replace("-", "_")] = "not installed"
    versions["code"] = hash_files(sorted(path for pattern in code for path in PACKAGE_FOLDER.glob(pattern)))
    return versions


def check_versions(what: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compares this machine's versions with those of the machine that asks it to work.

    Raises:
        UserError: they differ.
    """
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
