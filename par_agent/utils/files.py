"""Files that appear under their final name only when they are complete, and strict reading of files.

What cannot be read, written or is not as expected is a UserError that names the path.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from par_agent.errors import UserError, user_errors
from par_agent.utils.json_fields import check, parse_json

if TYPE_CHECKING:
    from filelock import BaseFileLock

T = TypeVar("T")

PATIENCE = 0.2
"""Seconds to wait for a lock, so that one whose holder is about to end counts as free."""

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    errno.EFBIG: "allow larger files (ulimit -f)",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "get permission to write there, or choose another place"),
    errno.EROFS: "choose another place, this one is read-only",
    errno.EIO: "check the disk",
}
"""Number of an error that writing meets -> what to do about it."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it to ``path`` if the block succeeds, deletes it otherwise.

    The name carries the process id, so that two processes never write the same temporary file. The file gets the
    permissions of any new one, whatever wrote it (safetensors would keep it to its owner). Folders are made as needed.
    """
    path = Path(path)
    made = _make_folder(path.parent)
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
        _remove_empty(made)


def _make_folder(folder: Path) -> list[Path]:
    """Makes a folder; returns those of it and above it that did not exist, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    """Removes those folders, the innermost first, that hold nothing."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextlib.contextmanager
def only_process(lock: Path, doing: str, within: Path | None = None) -> Iterator[None]:
    """Holds the file ``lock`` while the block runs, so that no other process does the same.

    A killed process leaves the file, which the next one takes; else it is removed at the end, with those of its folders
    that this made and that are still empty.

    Args:
        lock: made if absent, with its folder.
        doing: what the block does, for the error message: "another process {doing} now"; nothing was made then.
        within: a folder to write to, from which unfinished files of processes that were killed are removed first.
    """
    with contextlib.ExitStack() as undo:
        held = _acquire(lock, doing, undo)
        undo.callback(held.release)
        undo.callback(lock.unlink, missing_ok=True)  # before it is released: who waits for it sees that it is gone
        if within is not None:
            remove_leftovers(within)
        yield


def remove_leftovers(folder: Path) -> None:
    """Deletes temporary files and folders with names as those of :func:`atomic_path`, anywhere in a folder, whose
    processes are gone."""
    for path in list(folder.rglob(".*.tmp")):
        process = path.name.split(".")[-2]
        alive = process != str(os.getpid()) and Path("/proc", process).exists()
        if process.isdigit() and not alive:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _acquire(lock: Path, doing: str, undo: contextlib.ExitStack) -> BaseFileLock:
    """The lock, held; ``undo`` gets what removes the folders made for it."""
    from filelock import FileLock, Timeout

    held = FileLock(lock, preserve_lock_file=True)  # it is removed here, while it is held
    while True:
        check_writable(lock.parent)
        try:
            undo.callback(_remove_empty, _make_folder(lock.parent))
            held.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 10)
            return held
        except Timeout:
            raise UserError(f"another process {doing} now; wait for it to end") from None
        except (FileExistsError, FileNotFoundError):
            continue  # another process made the folder, and has just removed it with its lock
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise UserError(f"the file system of {lock.parent} has no file locks; choose another place") from None


def check_writable(folder: Path) -> None:
    """Checks that files can be written into a folder, or that it could be made; leaves nothing behind."""
    existing = Path(folder)
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if existing.is_symlink() and not existing.exists():
        target = os.readlink(existing)
        raise UserError(
            f"cannot write to {folder}: {existing} is a link to {target}, which does not exist; make that folder, or "
            "remove the link"
        )
    if not existing.is_dir():
        raise UserError(f"cannot write to {folder}: {existing} is no folder; choose another place")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {existing}: {error.strerror}; {remedy(error)}") from None


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically; NaN and infinity, which JSON has no words for, are refused."""
    try:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError:
        raise UserError(f"{path} cannot be written: NaN or infinity is among its numbers") from None
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_file(path: Path) -> None:
    """Checks that a path is a file's: opening a pipe, for example, would wait for ever."""
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

    A name that leads out of the folder is refused. Links may lead out of it only where it is a snapshot in a model
    hub's cache: into that repository's cache.
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
    """The bytes of a file."""
    check_file(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """Reads JSON, by the rules of :func:`~par_agent.utils.json_fields.parse_json`."""
    return parse_json(read_content(path), str(path))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts a file's name before the errors of what is made from its content, which become :class:`UserError`."""
    with user_errors(f"{path}: "):
        yield


@overload
def read_object(path: Path) -> dict[str, Any]: ...


@overload
def read_object(path: Path, kind: type[T]) -> T: ...


def read_object(path: Path, kind: Any = dict) -> Any:
    """Reads JSON that is an object; of a TypedDict, ``kind``, the fields must be there, and others may be."""
    content = read_json(path)
    check(str(path), content, kind)
    return content


@contextlib.contextmanager
def claimed_folder(
    settings: Path,
    wanted: dict[str, Any],
    *,
    begun: Callable[[], bool],
    free: tuple[str, ...] = (),
    added: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[None]:
    """Writes the settings that a folder's content depends on, or checks that it was begun with the same ones.

    If the block fails before anything is begun, the settings are as they were.

    Args:
        settings: JSON file in the folder.
        wanted: this run's settings: JSON types, tuples and paths.
        begun: whether the folder holds any content yet; before that, other settings replace the old ones.
        free: names of settings that may change.
        added: what settings meant before they had names, for folders that were begun then.
    """
    wanted = json.loads(json.dumps(wanted, default=str))
    older = settings.read_bytes() if settings.exists() else None
    if begun() and older is not None:
        stored = read_object(settings)
        found = {**added, **stored}
        differing = sorted(name for name in wanted if name not in free and found.get(name) != wanted[name])
        if differing:
            details = "; ".join(f"{name}: {found.get(name)} there, {wanted[name]} asked for" for name in differing)
            raise UserError(f"{settings.parent} was begun with other settings ({details}); choose another --out")
        if found != {**found, **wanted}:  # the free ones
            write_json(settings, {**stored, **wanted})
    else:
        write_json(settings, wanted)
    try:
        yield
    except BaseException:
        if not begun() and older is not None:
            with atomic_path(settings) as temporary:
                temporary.write_bytes(older)
        elif not begun():
            settings.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns the system's errors inside the block, which works in ``folder``, into one line for the user.

    ``BrokenPipeError`` from this process's own output is passed on.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(cannot_write(folder, error)) from error


def cannot_write(folder: Path | str, error: OSError) -> str:
    """What to tell the user of an error of the system."""
    what = f"cannot write below {folder}" if error.errno in _REMEDIES else f"the work in {folder} failed"
    return f"{what}: {error}. What is finished is kept: {remedy(error)}, then run the same command again"


def remedy(error: OSError) -> str:
    """What to do about an error of the system."""
    return _REMEDIES.get(error.errno or 0, "see to that")
