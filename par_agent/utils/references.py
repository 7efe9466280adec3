"""Objects of other people's modules, named as ``module:NAME``."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from par_agent.errors import UserError


def search_folder(folder: str) -> None:
    """Lets :func:`load_object` find modules in a folder too, here and in worker processes started from here.

    What is installed comes first: a worker must not import another copy of a package than the process that started it.
    """
    if os.path.isdir(folder) and folder not in sys.path:
        sys.path.append(folder)


def load_object(reference: str) -> Any:
    """Imports ``module:NAME``.

    Raises:
        UserError: the module cannot be imported or has no such name.
    """
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
