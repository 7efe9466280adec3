"""Files that appear under their final name only when they are complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, overload

from par_agent.errors import UserError
from par_agent.json_fields import check
from par_agent.strict_json import parse_json

T = TypeVar("T")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it to ``path`` if the block succeeds, deletes it otherwise.

    The name carries the process id, so that two processes never write the same temporary file. The file gets the
    permissions of any new one, whatever wrote it (safetensors would keep it to its owner).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_process(lock: Path, doing: str) -> Iterator[None]:
    """Holds the file ``lock`` while the block runs, so that no other process does the same; a dead one holds nothing.

    Args:
        lock: made if absent, removed at the end; its folder must exist.
        doing: what the block does, for the error message: "another process {doing} now".

    Raises:
        UserError: another process holds it.
    """
    with contextlib.closing(_lock(lock, doing)):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _lock(lock: Path, doing: str) -> IO[str]:
    """The file, made and locked."""
    while True:
        file = open(lock, "w")  # noqa: SIM115 the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"another process {doing} now; wait for it to end") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                return file
        file.close()  # its last holder removed it after it was opened here


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically.

    Raises:
        UserError: NaN or infinity is in it, which JSON has no words for.
    """
    try:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError:
        raise UserError(f"{path} cannot be written: NaN or infinity is among its numbers") from None
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def check_file(path: Path) -> None:
    """Checks that a path is a file's: opening a pipe, for example, would wait for ever.

    Raises:
        UserError: it does not exist, cannot be reached, or is something else.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'a device or pipe'}; expected a file")


def inside(folder: Path, name: str) -> Path:
    """The path of a file below a folder, by a name that is written in the data of somebody else.

    Links may lead out of the folder only where it is a snapshot in a model hub's cache: into that repository's cache.

    Raises:
        UserError: the name leads out of the folder.
    """
    root, fits = os.path.realpath(folder), False
    if os.path.basename(os.path.dirname(root)) == "snapshots":
        root = os.path.dirname(os.path.dirname(root))
    path = Path(name)
    if path.parts and not path.is_absolute() and ".." not in path.parts and "\0" not in name:
        fits = os.path.commonpath([root, os.path.realpath(folder / path)]) == root
    if not fits:
        raise UserError(f"{folder} refers to {name!r}, which lies outside of it; only files inside are read")
    return folder / path


def read_content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: see :func:`check_file`; or it cannot be read.
    """
    check_file(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        UserError: the file is missing, cannot be read or is not JSON; see :func:`par_agent.strict_json.parse_json`.
    """
    return parse_json(read_content(path), str(path))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts a file's name before the errors of what is made from its content."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@overload
def read_object(path: Path) -> dict[str, Any]: ...


@overload
def read_object(path: Path, kind: type[T]) -> T: ...


def read_object(path: Path, kind: Any = dict) -> Any:
    """Reads JSON that is an object.

    Args:
        path: the file.
        kind: a TypedDict, whose fields must be there and be of its types, others may be; a plain dict has none.

    Raises:
        UserError: see :func:`read_json`; or it is something else.
    """
    content = read_json(path)
    check(str(path), content, kind)
    return content


def claim_folder(
    settings: Path,
    wanted: dict[str, Any],
    *,
    begun: bool,
    free: tuple[str, ...] = (),
    defaults: dict[str, Any] | None = None,
) -> None:
    """Writes the settings that a folder's content depends on, or checks that it was begun with the same ones.

    Args:
        settings: JSON file in the folder.
        wanted: this run's settings: JSON types, tuples and paths.
        begun: whether the folder holds any content yet; before that, other settings replace the old ones.
        free: names of settings that may change.
        defaults: values of settings that a file of an older version may lack.

    Raises:
        UserError: the folder was begun with other settings.
    """
    wanted = json.loads(json.dumps(wanted, default=str))
    if not (begun and settings.exists()):
        write_json(settings, wanted)
        return
    found = {**(defaults or {}), **read_object(settings)}
    differing = sorted(name for name in wanted if name not in free and found.get(name) != wanted[name])
    if differing:
        details = "; ".join(f"{name}: {found.get(name)} there, {wanted[name]} asked for" for name in differing)
        raise UserError(f"{settings.parent} was begun with other settings ({details}); choose another --out")


def cannot_write(folder: Path, error: OSError) -> str:
    """What to tell the user when a disk is full or a folder cannot be written."""
    return f"cannot write below {folder}: {error}. What is finished is kept: make room, then run the same command again"
