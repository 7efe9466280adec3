"""Other people's modules: objects in them, named as ``module:NAME``, and those of the optional extras."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from par_agent.errors import UserError


def optional_module(name: str, needs: str, extra: str) -> Any:
    """A module that is there where ``par-agent[extra]`` is installed; ``needs`` says what needs it, for the message."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{needs} ({error}); install it with: pip install 'par-agent[{extra}]'") from None


class _CurrentFolder(MetaPathFinder):
    """Finds modules in the current folder (worker processes have the same one), after all that are installed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [os.getcwd()]) if path is None else None


_FINDER = _CurrentFolder()


def load_object(reference: str) -> Any:
    """Imports ``module:NAME``, from the current folder if no such module is installed; UserError if it cannot."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"cannot import {module_name!r} of {reference!r}: {error}; run the command from the folder that holds it, "
            "or install it"
        ) from error
    if not hasattr(module, name):
        raise UserError(f"module {module_name!r} has no {name!r}")
    return getattr(module, name)
