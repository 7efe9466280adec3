"""Damages files of every format, reads them, and tells what became of each.

At length: ``PYTHONPATH=.:tests:benchmarks python tests/attacks.py --count 2000 --seed 1``.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mutated_formats import FORMATS
from mutations import damage_bytes, damage_hdf5, damage_json, damage_lines
from par_agent.errors import UserError


@dataclass
class Outcomes:
    """What became of damaged files."""

    counts: Counter[str] = field(default_factory=Counter)
    """By outcome: refused, equal, payload; traceback, silent."""
    faults: list[str] = field(default_factory=list)
    """What must not be."""


def attack(name: str, folder: Path, count: int, seed: int = 0) -> Outcomes:
    """Damages the files of a format ``count`` times, one at a time, and reads each."""
    form = FORMATS[name]
    folder = folder / name
    folder.mkdir(parents=True)
    form.make(folder)
    original = flat(form.load(folder))
    outcomes = Outcomes()
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    contents = {path: (folder / path).read_bytes() for path in form.files}
    ways = [(path, way) for path, found in form.files.items() for way in found]
    for number in range(count):
        path, way = ways[number % len(ways)]
        changed = damaged(generator, way, contents[path], folder.parent / "work.h5")
        (folder / path).write_bytes(changed)
        where = f"{name}, case {number}, {way} of {path}"
        try:
            found = flat(form.load(folder))
        except UserError as error:
            named = not form.named or Path(path).name in str(error) or str(folder) in str(error)
            outcome = "refused" if named else "nameless"
            if not named:
                outcomes.faults.append(f"{where}: the error names no file: {error}")
        except Exception:
            outcome = "traceback"
            outcomes.faults.append(f"{where}: {traceback.format_exc(limit=-4)}")
        else:
            outcome, differing = judge(original, found, form.payload, form.shapes)
            if outcome == "silent":
                outcomes.faults.append(f"{where}: silent change of {differing}")
        outcomes.counts[outcome] += 1
        (folder / path).write_bytes(contents[path])
    return outcomes


def damaged(generator: np.random.Generator, way: str, content: bytes, work: Path) -> bytes:
    """Content that is not what it was."""
    ways: dict[str, Callable[[], bytes]] = {
        "bytes": lambda: damage_bytes(generator, content),
        "json": lambda: damage_json(generator, content),
        "lines": lambda: damage_lines(generator, content),
        "hdf5": lambda: damage_hdf5(generator, content, work),
    }
    while (changed := ways[way]()) == content:
        pass
    return changed


def judge(original: dict[str, Any], found: dict[str, Any], payload: str, shapes: bool = True) -> tuple[str, list[str]]:
    """Whether what was read is equal, differs in what nobody can check, or has changed silently; and where."""
    differing = [place for place in {**original, **found} if original.get(place) != found.get(place)]
    silent = []
    for place in differing:
        before, after = original.get(place), found.get(place)
        both_arrays = isinstance(before, tuple) and isinstance(after, tuple)
        if not re.search(payload, place) or (both_arrays and shapes and before[:2] != after[:2]):
            silent.append(f"{place}: {str(before)[:60]} -> {str(after)[:60]}")
    return ("silent" if silent else "payload" if differing else "equal"), silent[:5]


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Everything in a value by its place; arrays as their type, shape and bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return {f"{place} (not finite)": True}
        return {place: (str(value.dtype), value.shape, value.tobytes())}
    if isinstance(value, dict):
        return {f"{place}{{}}": len(value)} | {
            k: v for name, entry in value.items() for k, v in flat(entry, f"{place}.{name}").items()
        }
    if isinstance(value, list | tuple):
        return {f"{place}[]": len(value)} | {
            k: v for n, entry in enumerate(value) for k, v in flat(entry, f"{place}[{n}]").items()
        }
    return {place: value}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    arguments = parser.parse_args()
    faults = 0
    for name in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            found = attack(name, Path(folder), arguments.count, arguments.seed)
        print(f"{name}: {dict(found.counts)}", flush=True)
        for fault in found.faults[:20]:
            print(f"  {fault}", flush=True)
        faults += len(found.faults)
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
