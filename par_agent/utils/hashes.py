"""Hashes that tell files and contents apart: the first hexadecimal digits of a SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DIGITS = 12


def hash_bytes(content: bytes, digits: int = DIGITS) -> str:
    """Hash of bytes."""
    return hashlib.sha256(content).hexdigest()[:digits]


def hash_content(content: Any, digits: int = DIGITS) -> str:
    """Hash of anything that JSON can hold."""
    return hash_bytes(json.dumps(content, sort_keys=True).encode(), digits)


def hash_file(path: Path, digits: int = DIGITS) -> str:
    """Hash of a file's content."""
    return hash_bytes(path.read_bytes(), digits)


def hash_files(paths: Iterable[Path]) -> str:
    """Hash of the names and contents of files."""
    parts = (path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest() for path in paths)
    return hash_bytes(b"".join(parts))
