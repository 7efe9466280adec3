"""Reading a subcommand's options from the command line and from a JSON file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from par_agent.cli.entry import run_command
from par_agent.cli.help import help_of, option_texts
from par_agent.errors import UserError
from par_agent.utils.checked import Checked, MayBeEmpty, from_options, is_group, option_hints, option_values
from par_agent.utils.device import usable_device
from par_agent.utils.files import check_writable, naming, read_object
from par_agent.utils.json_fields import check, required_fields

C = TypeVar("C", bound=Checked)
FILE_OPTION = "--config"
"""Names a JSON file of options, such as the one that a run writes into its folder."""


def parse(cls: type[C], arguments: Sequence[str], prog: str, description: str, **defaults: Any) -> C:
    """Makes a frozen dataclass ``cls`` from command-line arguments; ``defaults`` stand in for those of its options.

    --help shows its own options first, then those of each of its groups under the group's docstring. --help, and
    arguments that do not parse, are a SystemExit of tyro, which prints why.
    """
    import tyro

    words, file = _without_file(arguments)
    _check_words(cls, words)
    options = _unchecked(cls, explained=any(word in ("-h", "--help") for word in words))
    given: dict[str, Any] = {}
    if file is not None or defaults:
        defaults = dict.fromkeys(required_fields(cls), tyro.MISSING) | defaults
        given["default"] = from_options(options, defaults | (read_options(cls, file) if file else {}))
    description = description.rstrip()
    description += "\n\n" if "\n" in description else " "
    description += f"{FILE_OPTION} FILE.json reads options from a file; those on the command line take precedence."
    found = tyro.cli(
        options, args=words, prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,), **given
    )
    config = from_options(cls, option_values(found))
    _check_places(config)
    return config


def run_script(
    program: str,
    main: Callable[[Any], int | None],
    cls: type[Checked],
    description: str | None,
    resumes: bool = False,
    **defaults: Any,
) -> int:
    """Runs ``main`` of a script of `benchmarks/` with the options of the command line; its exit status.

    See :func:`parse` for the options, and :func:`par_agent.cli.entry.run_command` for the rest.
    """
    read = partial(parse, cls, sys.argv[1:], program, description or "", **defaults)
    return run_command(program, lambda: main(read()), resumes)


def read_options(cls: type[Checked], path: Path) -> dict[str, Any]:
    """The options that a JSON file holds, by their names."""
    content, hints = read_object(path), option_hints(cls)
    if unknown := [name for name in content if name not in hints]:
        raise UserError(f"{path} has the unknown option {unknown[0]!r}; known: {', '.join(hints)}")
    with naming(path):
        return {name: check(name, value, hints[name]) for name, value in content.items()}


def _unchecked(cls: type[C], explained: bool = False) -> type[C]:
    """A subclass that takes any values: tyro would print what __post_init__ refuses in a box, with broken lines.

    ``explained``: with the texts of --help, which take a moment to read from the source.
    """
    hints: dict[str, Any] = {n: _unchecked(h, explained) for n, h in get_type_hints(cls).items() if is_group(h)}
    members: dict[str, Any] = {name: field(default_factory=group) for name, group in hints.items()}
    if explained:
        texts, types = option_texts(cls), get_type_hints(cls, include_extras=True)
        for option in fields(cls):  # type: ignore[arg-type]
            if option.name in texts and option.name not in hints:
                hints[option.name] = Annotated[types[option.name], help_of(texts[option.name])]
                if option.default is not MISSING:
                    members[option.name] = option.default
                elif option.default_factory is not MISSING:
                    members[option.name] = field(default_factory=option.default_factory)
    members |= {"__annotations__": hints, "__doc__": cls.__doc__, "__post_init__": lambda self: None}
    return dataclass(frozen=True, kw_only=True)(type(cls.__name__, (cls,), members))


def _without_file(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The arguments without ``--config FILE``, and that file."""
    words = list(arguments)
    place = next((i for i, word in enumerate(words) if word.partition("=")[0] == FILE_OPTION), None)
    if place is None:
        return words, None
    _, inline, value = words.pop(place).partition("=")
    if not inline and place == len(words):
        raise UserError(f"{FILE_OPTION} needs a file: {FILE_OPTION} FILE.json")
    return words, Path(value if inline else words.pop(place))


def _check_words(cls: type, words: Sequence[str]) -> None:
    """Refuses empty values: an empty path would be the folder that the command is given in."""
    may_be_empty, option = [name for name, hint in option_hints(cls).items() if MayBeEmpty in get_args(hint)], ""
    for word in words:
        if word.startswith("--"):
            option, inline, value = word.partition("=")
            word = value if inline else option
        if not word.strip() and option[2:].replace("-", "_") not in may_be_empty:
            raise UserError(f"{option or 'an argument'} is empty; leave it out, or give it a value")


def _check_places(config: Any) -> None:
    """Checks, before any work is done, the device and that results can be written."""
    out, device = getattr(config, "out", None), getattr(config, "device", None)
    if isinstance(out, Path):
        check_writable(out.parent if config.out_is_file else out)
    if isinstance(device, str) and device != "cpu":  # which needs no look, and no torch
        usable_device(device)
