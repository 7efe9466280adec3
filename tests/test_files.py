"""Files that are complete or absent, locks, and folders that were begun with other settings."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest
import torch
from safetensors.torch import save_file

from held import gone_process
from other_process import lock_held_elsewhere
from par_agent.errors import UserError
from par_agent.utils.files import (
    atomic_path,
    check_writable,
    claimed_folder,
    only_process,
    read_json,
    read_object,
    write_json,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_its_block_has_ended(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("content")
        assert temporary.parent == target.parent and not target.exists()
    assert target.read_text() == "content" and names(target.parent) == ["file.txt"]


def test_weights_are_as_readable_as_any_new_file(tmp_path):
    with atomic_path(tmp_path / "weights.safetensors") as temporary:
        save_file({"weight": torch.zeros(2)}, temporary)
    (tmp_path / "other").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failed_block_leaves_the_older_file(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("older")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "older" and names(tmp_path) == ["file.txt"]


def test_json_is_read_as_written(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None, "ü"]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None, "ü"]}


def test_a_lock_keeps_other_processes_out_while_the_block_runs(tmp_path):
    lock = tmp_path / "lock"
    with (
        lock_held_elsewhere(lock),
        pytest.raises(UserError, match="another process works here now; wait"),
        only_process(lock, "works here"),
    ):
        pass
    with only_process(lock, "works here"):
        assert names(tmp_path) == ["lock"]
    assert names(tmp_path) == []


def test_unfinished_files_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    unfinished = [folder / f".a.json.{gone_process()}.tmp", folder / "inner" / f".b.h5.{os.getpid()}.tmp"]
    others = [
        folder / f".a.json.{os.getppid()}.tmp",
        folder / "c.tmp",
        folder / ".d.old.tmp",
        tmp_path / unfinished[0].name,
    ]
    for path in (*unfinished, *others):
        path.touch()
    with only_process(folder / "lock", "works here", within=folder):
        assert [path.exists() for path in unfinished] == [False, False]
    assert all(path.exists() for path in others)


def test_a_lock_keeps_out_who_asks_twice_in_one_process(tmp_path):
    with (
        only_process(tmp_path / "lock", "works here"),
        pytest.raises(UserError, match="another process works here"),
        only_process(tmp_path / "lock", "works here"),
    ):
        pass


def test_a_lock_that_a_killed_process_left_holds_nothing(tmp_path):
    with lock_held_elsewhere(tmp_path / "lock") as process:
        process.kill()
        process.wait()
        assert names(tmp_path) == ["lock"]
        with only_process(tmp_path / "lock", "works here"):
            pass
    assert names(tmp_path) == []


RACE = """
import sys
from pathlib import Path
from par_agent.errors import UserError
from par_agent.utils.files import only_process
lock, inside = Path(sys.argv[1]) / "folder" / "lock", Path(sys.argv[1]) / "inside"
sys.stdin.read()
entered = 0
while entered < 50:
    try:
        with only_process(lock, "works here"):
            inside.touch(exist_ok=False)
            inside.unlink()
            entered += 1
    except UserError:
        pass
"""


def test_of_processes_that_race_for_a_lock_and_its_folder_one_is_inside_at_a_time(tmp_path):
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for racer in racers:
        racer.stdin.close()
    assert [(racer.wait(), racer.stderr.read()) for racer in racers] == [(0, "")] * 3
    assert not list(tmp_path.glob("*/*"))


def test_a_block_that_fails_leaves_no_lock_and_no_folder_that_was_made_for_it(tmp_path):
    with pytest.raises(UserError, match="bad"), only_process(tmp_path / "a" / "b" / "lock", "works here"):
        raise UserError("bad")
    assert names(tmp_path) == []
    with only_process(tmp_path / "a" / "b" / "lock", "works here"):
        (tmp_path / "a" / "b" / "result").touch()
    assert names(tmp_path / "a" / "b") == ["result"]


def test_a_place_that_cannot_be_written_to_is_called_what_it_is(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    (tmp_path / "good").symlink_to(tmp_path)
    with pytest.raises(UserError, match=rf"link/out: .*link is a link to {tmp_path}/gone, which does not"):
        check_writable(tmp_path / "link" / "out")
    with pytest.raises(UserError, match=r"cannot write to .*link: .* is a link to"):
        check_writable(tmp_path / "link")
    with pytest.raises(UserError, match=r"cannot write to .*file/out: .*file is no folder; choose another place"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(UserError, match=r"cannot write to /proc/out: /proc: "):
        check_writable(Path("/proc/out"))
    check_writable(tmp_path / "good" / "out" / "deeper")
    assert names(tmp_path) == ["file", "good", "link"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (
            errno.ENOSPC,
            "cannot write below out: .*No space left.*: 'file'. What is finished is kept: make room, ",
        ),
        (errno.EDQUOT, "kept: make room, then run the same command again"),
        (errno.EFBIG, r"kept: allow larger files \(ulimit -f\), then"),
        (errno.EACCES, "Permission denied: 'file'.*kept: get permission to write there, or choose another place, then"),
        (errno.EROFS, "kept: choose another place, this one is read-only, then"),
        (errno.EIO, "kept: check the disk, then"),
        (
            errno.ENOENT,
            "^the work in out failed: .*No such file or directory: 'file'. What is.* kept: see to",
        ),
    ],
)
def test_an_error_of_the_system_says_what_to_do_about_it(number, words):
    with pytest.raises(UserError, match=words), writing(Path("out")):
        raise OSError(number, os.strerror(number), "file")


def test_that_nobody_reads_the_output_any_more_is_no_error_of_the_disk():
    with pytest.raises(BrokenPipeError), writing(Path("out")):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def claim(settings, wanted, begun, **options):
    with claimed_folder(settings, wanted, begun=lambda: begun, **options):
        pass


def test_a_claim_whose_block_fails_before_anything_is_begun_is_taken_back(tmp_path):
    settings, begun = tmp_path / "settings.json", []
    for older in (None, b"{}"):
        if older is not None:
            settings.write_bytes(older)
        with pytest.raises(UserError), claimed_folder(settings, {"a": 1}, begun=lambda: bool(begun)):
            assert read_json(settings) == {"a": 1}
            raise UserError("bad")
        assert (settings.read_bytes() if settings.exists() else None) == older
    with pytest.raises(UserError), claimed_folder(settings, {"a": 1}, begun=lambda: bool(begun)):
        begun.append(True)
        raise UserError("bad")
    assert read_json(settings) == {"a": 1}


def test_the_same_settings_are_accepted_again(tmp_path):
    wanted = {"out": Path("a/b"), "sizes": (1, 2), "inner": {"x": None}}
    claim(tmp_path / "settings.json", wanted, begun=False)
    before = (tmp_path / "settings.json").read_bytes()
    assert json.loads(before) == {"out": "a/b", "sizes": [1, 2], "inner": {"x": None}}
    claim(tmp_path / "settings.json", wanted, begun=True)
    assert (tmp_path / "settings.json").read_bytes() == before


def test_other_settings_are_refused_and_each_is_named(tmp_path):
    claim(tmp_path / "settings.json", {"a": 1, "b": (1, 2), "c": 3}, begun=False)
    with pytest.raises(UserError, match=r"b: \[1, 2\] there, \[1, 3\] asked for; c: 3 there, None asked for.*--out"):
        claim(tmp_path / "settings.json", {"a": 1, "b": (1, 3), "c": None}, begun=True)


def test_free_settings_may_change(tmp_path):
    claim(tmp_path / "settings.json", {"a": 1, "device": "cpu"}, begun=False)
    claim(tmp_path / "settings.json", {"a": 1, "device": "cuda"}, begun=True, free=("device",))


def test_settings_of_a_folder_without_content_are_replaced(tmp_path):
    claim(tmp_path / "settings.json", {"camera": "mistyped"}, begun=False)
    claim(tmp_path / "settings.json", {"camera": "base_camera"}, begun=False)
    assert read_json(tmp_path / "settings.json") == {"camera": "base_camera"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 64 levels"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64 levels"),
        (b'{"a": ' * 65 + b"1" + b"}" * 65, "nested deeper than 64 levels"),
        (b"1" * 5000, "more than 64 bits"),
        (b"-18446744073709551616", "more than 64 bits"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"1e999", "out of range"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' occurs twice"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b'{"\\uDFFF": 1}', "surrogates not allowed"),
        (b'"\xff"', "invalid start byte"),
        ('"ü"'.encode("utf-16"), "invalid start byte"),
        (b'"a\nb"', "Invalid control character"),
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
    ],
)
def test_what_is_not_strict_json_is_refused_by_the_name_of_its_file(tmp_path, content, fault):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json is not valid JSON \(.*{fault}"):
        read_json(tmp_path / "a.json")


def test_the_largest_numbers_and_deepest_nesting_that_are_allowed_are_read(tmp_path):
    (tmp_path / "a.json").write_text(f'{"[" * 64}18446744073709551615, -1e308, "\\ud83d\\ude00"{"]" * 64}')
    value = read_json(tmp_path / "a.json")
    for _ in range(63):
        (value,) = value
    assert value == [2**64 - 1, -1e308, "\N{GRINNING FACE}"]


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    for name, fault in {
        "pipe.json": "is a device or pipe; expected a file",
        "folder.json": "is a folder; expected a file",
        "loop.json": "cannot be read: Too many levels",
        "absent.json": "does not exist",
        "pipe.json/a": "cannot be read: Not a directory",
    }.items():
        with pytest.raises(UserError, match=fault):
            read_json(tmp_path / name)


def test_numbers_that_could_not_be_read_again_are_not_written(tmp_path):
    with pytest.raises(UserError, match=r"a\.json cannot be written: NaN or infinity"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


class Entry(TypedDict):
    seed: int


class Listing(TypedDict):
    entries: list[Entry]
    sizes: dict[str, float]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([], r"a\.json is \[\]; expected an object"),
        ({"sizes": {}}, r"a\.json lacks entries"),
        ({"entries": {}, "sizes": {}}, r"a\.json\.entries is \{\}; expected a list"),
        ({"entries": [{"seed": 1}, {}], "sizes": {}}, r"a\.json\.entries\[1\] lacks seed"),
        ({"entries": [{"seed": True}], "sizes": {}}, r"a\.json\.entries\[0\]\.seed is True; expected a whole number"),
        ({"entries": [], "sizes": {"b": "c"}}, r"a\.json\.sizes\.b is 'c'; expected a finite number"),
    ],
)
def test_an_object_of_another_kind_is_refused_by_the_name_of_its_field(tmp_path, content, fault):
    write_json(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=fault):
        read_object(tmp_path / "a.json", Listing)


def test_an_object_may_have_fields_that_nobody_asked_for(tmp_path):
    content = {"entries": [{"seed": 1, "more": None}], "sizes": {"b": 1}, "other": [1]}
    write_json(tmp_path / "a.json", content)
    assert read_object(tmp_path / "a.json", Listing) == content
