"""`par-agent recipe`: makes a bundled checkpoint, or a row of the table of methods, by the commands that made it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from configparser import ConfigParser, ExtendedInterpolation
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Annotated, Literal

import tyro

from par_agent.errors import UserError
from par_agent.utils.checked import Checked
from par_agent.utils.interrupts import Interrupted, Interrupts, deferred_interrupts
from par_agent.utils.versions import PACKAGE_FOLDER

RECIPES = Path(__file__).with_name("recipes.ini")
TRAINING = frozenset(("train-vae", "finetune", "train-baseline"))
"""Commands that run on a device."""


@dataclass(frozen=True)
class RecipeConfig(Checked):
    """Prints the commands of a recipe, then runs them one after the other; finished steps are not repeated."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Recipe: par-mini, par-mini-video, row-mini, row-act, ..., demonstrations; an unknown name lists all."""
    data_root: Path = Path("data")
    """Folder of demonstrations and rendered datasets."""
    out: Path = Path("runs")
    """Folder of training runs."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to train on."""
    dry_run: bool = False
    """Only prints the commands."""


def read_recipes() -> ConfigParser:
    """The sections of recipes.ini: texts with the names ``summary`` and ``commands``."""
    recipes = ConfigParser(interpolation=ExtendedInterpolation())
    recipes.read_string(RECIPES.read_text())
    return recipes


def commands(config: RecipeConfig) -> list[tuple[list[str], str]]:
    """The words of the recipe's commands, each with its note."""
    recipes = read_recipes()
    if config.name not in recipes.sections():
        known = "\n".join(f"  {name}: {recipes[name]['summary']}" for name in recipes.sections())
        raise UserError(f"unknown recipe {config.name!r}; known:\n{known}")
    folders = {"data": config.data_root, "out": config.out, "bundled": PACKAGE_FOLDER / "checkpoints"}
    found = []
    for line in recipes[config.name]["commands"].replace("\\\n", "").split("\n"):
        command, _, note = line.partition("  # ")
        words = [word.format(**folders) for word in shlex.split(command)]
        if config.device != "cpu" and not TRAINING.isdisjoint(words):
            words += ["--device", config.device]
        if words:
            found.append((words, note))
    return found


def main(config: RecipeConfig) -> int:
    """Prints and runs the commands; ends with the first that fails, with its status."""
    steps = commands(config)
    for words, note in steps:
        program = [] if words[0] == "python" else ["par-agent"]
        print(shlex.join([*program, *words]) + (f"  # {note}" if note else ""))
    with deferred_interrupts() as interrupts:
        for number, (words, _) in enumerate([] if config.dry_run else steps, 1):
            print(f"\nstep {number} of {len(steps)}: {words[0]}", flush=True)
            program = words[1:] if words[0] == "python" else ["-m", "par_agent", *words]
            if status := _run([sys.executable, *program], interrupts):
                return status
    return 0


def _run(command: list[str], interrupts: Interrupts) -> int:
    """Runs one command in a process of its own, since accelerate fixes device and precision once per process.

    Where this process is told to end, it tells the command, and raises :class:`Interrupted`.
    """
    interrupts.check()
    process = subprocess.Popen(command)
    ended = os.pidfd_open(process.pid)
    try:
        while process.poll() is None:
            wait([ended, interrupts.fileno()])
            interrupts.check()
    except Interrupted:
        process.terminate()
        raise
    finally:
        status = process.wait()
        os.close(ended)
    return status
