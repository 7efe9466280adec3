"""What --help says of an option: the docstring behind its field, and its default where that tells something."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Any

UNTOLD = ("", "None")
"""Defaults that are not shown: the text says what they stand for."""


def option_texts(cls: type) -> dict[str, str]:
    """The docstrings behind the fields of a class and its bases, each on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("par_agent.") or base is cls:
            found |= _own_texts(base)
    return found


def _own_texts(cls: type) -> dict[str, str]:
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError):  # a class that was made at run time
        return {}
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def help_of(text: str) -> Any:
    """What tyro is to show of an option with this text."""
    import tyro

    def default_of(value: str) -> str:
        return "" if value in UNTOLD else f"(default: {value})"

    return tyro.conf.arg(help=text, help_behavior_hint=default_of)
