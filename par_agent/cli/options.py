"""Reading a subcommand's options from the command line and from a JSON file."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from par_agent.cli.entry import run_command
from par_agent.errors import UserError
from par_agent.option_ranges import MAY_BE_EMPTY
from par_agent.utils.device import usable_device
from par_agent.utils.files import check_writable, read_object

FILE_OPTION = "--config"
"""Names a JSON file of options, such as the one that a run writes into its folder."""


def parse(cls: type, arguments: Sequence[str], prog: str, description: str) -> Any:
    """Makes a frozen dataclass ``cls`` from command-line arguments.

    Where ``cls`` inherits from dataclasses called ``...Options``, --help shows each as a group under its docstring.

    Raises:
        UserError: values out of range, or a file of options that cannot be read.
        SystemExit: `--help`, or arguments that do not parse (printed by tyro).
    """
    arguments = with_file(cls, arguments)
    _check_words(arguments)
    config = _parse(cls, arguments, prog, description)
    _check_places(config)
    return config


def run_script(
    program: str, main: Callable[[Any], int | None], cls: type, description: str | None, resumes: bool = False
) -> int:
    """Runs a script of `benchmarks/` with the options of the command line; its exit status.

    Args:
        program: what error messages begin with.
        main: takes the options and returns the status; None counts as 0.
        cls: frozen dataclass of the options.
        description: what --help says first.
        resumes: whether the same command goes on where it was stopped.
    """
    return run_command(program, lambda: main(parse(cls, sys.argv[1:], program, description or "")), resumes)


def _parse(cls: type, arguments: list[str], prog: str, description: str) -> Any:
    import tyro

    description = description.rstrip()
    description += "\n\n" if "\n" in description else " "
    description += f"Options may also come from a file: {FILE_OPTION} FILE.json, and those beside it win."
    bases = [base for base in reversed(cls.__mro__) if base.__name__.endswith("Options")]
    if not bases:
        # tyro would box what __post_init__ refuses, and break its lines: checked is what it has read.
        unchecked = type(cls.__name__, (cls,), {"__post_init__": lambda self: None, "__doc__": cls.__doc__})
        found: Any = tyro.cli(unchecked, args=arguments, prog=prog, description=description)
        return cls(**{option.name: getattr(found, option.name) for option in dataclasses.fields(cls)})
    groups = {
        base.__name__.removesuffix("Options").lower(): Annotated[base, tyro.conf.OmitArgPrefixes] for base in bases
    }
    grouped: Any = tyro.cli(
        dataclasses.make_dataclass(cls.__name__, groups.items()), args=arguments, prog=prog, description=description
    )
    return cls(**{name: value for group in groups for name, value in vars(getattr(grouped, group)).items()})


def _check_words(arguments: Sequence[str]) -> None:
    """Refuses empty values: an empty path would be the folder that the command is given in.

    Raises:
        UserError: one is empty.
    """
    option = ""
    for word in arguments:
        if word.startswith("--"):
            option, inline, value = word.partition("=")
            word = value if inline else option
        if not word.strip() and option[2:].replace("-", "_") not in MAY_BE_EMPTY:
            raise UserError(f"{option or 'an argument'} is empty; leave it out, or give it a value")


def _check_places(config: Any) -> None:
    """Checks, before any work is done, the device and where results go.

    Raises:
        UserError: no such device here, or nothing can be written there.
    """
    out, device = getattr(config, "out", None), getattr(config, "device", None)
    if isinstance(out, Path):
        check_writable(out.parent if getattr(config, "out_is_file", False) else out)
    if isinstance(device, str) and device != "cpu":  # which needs no look, and no torch
        usable_device(device)


def with_file(cls: type, arguments: Sequence[str]) -> list[str]:
    """Arguments with ``--config FILE`` replaced by the file's options, but for those that are given beside it.

    Raises:
        UserError: the file is missing, not a JSON object of options, or names one that ``cls`` does not have.
    """
    import tyro

    given = list(arguments)
    place = next((i for i, word in enumerate(given) if word.partition("=")[0] == FILE_OPTION), None)
    if place is None:
        return given
    _, inline, value = given.pop(place).partition("=")
    if not inline and place == len(given):
        raise UserError(f"{FILE_OPTION} needs a file: {FILE_OPTION} FILE.json")
    path = Path(value if inline else given.pop(place))
    content = read_object(path)
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := [name for name in content if name not in known]:
        raise UserError(f"{path} has the unknown option {unknown[0]!r}; known: {', '.join(known)}")
    spelled = {argument.partition("=")[0].replace("_", "-") for argument in given if argument.startswith("--")}
    hints = get_type_hints(cls, include_extras=True)
    words: list[str] = []
    for name, value in content.items():
        if tyro.conf.Positional in getattr(hints[name], "__metadata__", ()):
            if not given or given[0].startswith("-"):
                given.insert(0, str(value))
            continue
        option = f"--{name.replace('_', '-')}"
        if option not in spelled and f"--no-{option[2:]}" not in spelled:
            words += _words(option, value)
    return given + words


def _words(option: str, value: Any) -> list[str]:
    """One option of a file, as it is written on the command line."""
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    return [option, *map(str, value if isinstance(value, list) else [value])]
