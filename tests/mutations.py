"""Random damage to files, by a seed: flipped bytes, cut and doubled parts, and other structure in JSON and HDF5."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Generator = np.random.Generator

HUGE = "@huge@"
"""Stands for digits that Python's json module would not write."""
NESTED = "@nested@"
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 10**12, 2**63, 2**64, 0.5, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "../../x", "/etc/passwd", "{0.__class__}", "a\0b", "\ud800", "ü", HUGE, NESTED),
    *([], {}, [1, 2], {"a": 1}, [[]], [None]),
)
"""What a JSON value may become."""


def damage_bytes(generator: Generator, content: bytes) -> bytes:
    """Content with some bits flipped, or a part cut off, taken out, doubled, zeroed or put in."""
    if not content:
        return b"\0"
    place = int(generator.integers(len(content)))
    size = int(generator.integers(1, 64))
    match int(generator.integers(8)):
        case 0 | 1 | 2:
            changed = bytearray(content)
            for position in range(place, min(len(content), place + int(generator.integers(1, 4)))):
                changed[position] ^= 1 << int(generator.integers(8))
            return bytes(changed)
        case 3:
            return content[:place]
        case 4:
            return content[:place] + content[place + size :]
        case 5:
            return content[:place] + content[place : place + size] + content[place:]
        case 6:
            return content[:place] + bytes(size) + content[place + size :]
        case _:
            return content[:place] + generator.bytes(size) + content[place:]


def damage_json(generator: Generator, content: bytes) -> bytes:
    """JSON text in which one value is another, or missing, or there twice; the text stays JSON, of the loose kind."""
    document = json.loads(content)
    places = [*_places(document)]
    if not places:
        return json.dumps(_pick(generator, VALUES)).encode()
    parent, key = _pick(generator, places)
    match int(generator.integers(7)):
        case 0 if isinstance(parent, dict):
            del parent[key]
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key)
        case 1 | 2 if isinstance(parent, list):
            parent.insert(key, parent[key])
        case 2:
            parent["new"] = parent[key]
        case 3:
            parent[key] = [parent[key]]
        case 4 if isinstance(parent[key], int | float):
            parent[key] = type(parent[key])(parent[key] * _pick(generator, (-1, 0, 2, 10, 1000))) + int(
                generator.integers(2)
            )
        case _:
            parent[key] = _pick(generator, VALUES)
    text = json.dumps(document, indent=2)
    text = text.replace(f'"{HUGE}"', "9" * 5000).replace(f'"{NESTED}"', "[" * 5000 + "]" * 5000)
    if generator.integers(20) == 0:  # a name twice
        text = text.replace("{", '{"twice": 1, "twice": 2, ', 1)
    return text.encode()


def damage_lines(generator: Generator, content: bytes) -> bytes:
    """Lines of JSON, one of them damaged."""
    lines = content.splitlines()
    place = int(generator.integers(len(lines)))
    lines[place] = b" ".join(damage_json(generator, lines[place]).split())
    return b"\n".join(lines) + b"\n"


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every value of a document, as its container and its key or number."""
    found: list[tuple[Any, Any]] = []
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        found += [(document, key), *_places(document[key])]
    return found


def damage_hdf5(generator: Generator, content: bytes, path: Path) -> bytes:
    """An HDF5 file with other structure; ``path`` is where it may be worked on."""
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = _pick(generator, names)
        change = _pick(generator, CHANGES)
        change(generator, file, name)
    return path.read_bytes()


def _drop(generator: Generator, file: h5py.File, name: str) -> None:
    del file[name]


def _rename(generator: Generator, file: h5py.File, name: str) -> None:
    file.move(name, f"{name}_")


def _link(generator: Generator, file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = _pick(generator, (h5py.SoftLink("/"), h5py.SoftLink("/x"), h5py.ExternalLink("other.h5", name)))


def _cycle(generator: Generator, file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = file["/"]


def _swap(generator: Generator, file: h5py.File, name: str) -> None:
    """A group where an array was, and an array where a group was."""
    was_array = isinstance(file[name], h5py.Dataset)
    del file[name]
    if was_array:
        file.create_group(name)
    else:
        file[name] = np.zeros((3, 8), np.float32)


def _retype(generator: Generator, file: h5py.File, name: str) -> None:
    values = np.asarray(file[name][()]) if isinstance(file[name], h5py.Dataset) else np.zeros((2, 2))
    kind = _pick(generator, ("f2", "f8", ">f4", "i1", "i8", "u8", "?", "S4", "c8", "V8", "text", "fields", "ragged"))
    del file[name]
    if kind == "text":
        file.create_dataset(name, data=values.astype(str).astype(object), dtype=h5py.string_dtype())
    elif kind == "fields":
        file[name] = np.zeros(values.shape, [("a", "f4"), ("b", "i4")])
    elif kind == "ragged":
        file.create_dataset(name, values.shape, dtype=h5py.vlen_dtype(np.float32))
    else:
        file[name] = values.astype("S4").view("V4") if kind == "V8" else values.astype(kind)


def _reshape(generator: Generator, file: h5py.File, name: str) -> None:
    values = np.asarray(file[name][()]) if isinstance(file[name], h5py.Dataset) else np.zeros((2, 2))
    changed: list[np.ndarray] = [values.ravel(), values[None], values.T, values[..., None], np.zeros((), values.dtype)]
    if values.ndim:
        changed += [values[1:], values[:-1], values[:0], np.concatenate([values, values[-1:]])]
    if values.ndim > 1:
        changed += [values[:, 1:], values[:, :0], values[:, :1]]
    del file[name]
    file[name] = _pick(generator, changed)


def _poison(generator: Generator, file: h5py.File, name: str) -> None:
    """One number that is not finite, or huge."""
    if not isinstance(file[name], h5py.Dataset):
        return _drop(generator, file, name)
    values = np.array(file[name][()])
    flat = values.reshape(-1)
    if values.dtype.kind == "f" and len(flat):
        flat[int(generator.integers(len(flat)))] = _pick(generator, (np.nan, np.inf, -np.inf))
    elif values.dtype.kind in "iu" and len(flat):
        flat[int(generator.integers(len(flat)))] = np.iinfo(values.dtype).max
    del file[name]
    file[name] = values
    return None


def _claim(generator: Generator, file: h5py.File, name: str) -> None:
    """An array that claims to be far larger than the file, or lies elsewhere."""
    kind = file[name].dtype if isinstance(file[name], h5py.Dataset) else np.dtype("f4")
    shape = file[name].shape if isinstance(file[name], h5py.Dataset) else (3, 8)
    del file[name]
    match int(generator.integers(4)):
        case 0:
            file.create_dataset(name, (2**40, *shape[1:]), kind, chunks=(1, *shape[1:]))
        case 1:
            file.create_dataset(name, shape, kind)
        case 2:
            file.create_dataset(name, shape, kind, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
        case _:
            layout = h5py.VirtualLayout(shape, kind)
            layout[...] = h5py.VirtualSource("other.h5", name, shape)
            file.create_virtual_dataset(name, layout)


def _attribute(generator: Generator, file: h5py.File, name: str) -> None:
    names = sorted(file.attrs)
    if not names:
        return _drop(generator, file, name)
    chosen = _pick(generator, names)
    del file.attrs[chosen]
    values = (None, "", "text", 5, -5, 1.5, np.nan, b"\xff", [1, 2], h5py.Empty("f4"), 1 + 2j, np.zeros((2, 2)))
    value = _pick(generator, values)
    if value is not None:
        file.attrs[chosen] = value
    return None


CHANGES: tuple[Callable[[Generator, h5py.File, str], None], ...] = (
    *(_drop, _rename, _link, _cycle, _swap, _retype, _retype, _reshape, _reshape, _poison, _claim, _attribute),
)


def _pick(generator: Generator, choices: Any) -> Any:
    return choices[int(generator.integers(len(choices)))]
