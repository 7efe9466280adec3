"""What counts as a change of the code that decides a rollout."""

from __future__ import annotations

from pathlib import Path

import pytest

from par_agent.utils import versions
from par_agent.utils.versions import hash_code, source_files

CODE = '''"""What the module is for."""

LIMIT = 2
"""Metres."""


def double(value: float) -> float:
    """Twice the value."""
    return 2 * value  # not more
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(versions, "PACKAGE_FOLDER", tmp_path)
    (tmp_path / "part" / "below").mkdir(parents=True)
    (tmp_path / "part" / "below" / "code.py").write_text(CODE)
    (tmp_path / "single.py").write_text(CODE)
    (tmp_path / "other.py").write_text(CODE)
    return tmp_path


def test_all_files_of_a_folder_and_no_others_count(folder: Path) -> None:
    assert source_files(["single.py", "part"]) == [folder / "part" / "below" / "code.py", folder / "single.py"]


@pytest.mark.parametrize(
    ("old", "new"), [("Twice the", "Two times the"), ("  # not more", ""), ("Metres", "In metres"), ("\n\n\n", "\n\n")]
)
def test_comments_docstrings_and_layout_do_not_change_the_hash(folder: Path, old: str, new: str) -> None:
    before = hash_code(["part"])
    (folder / "part" / "below" / "code.py").write_text(CODE.replace(old, new))
    assert hash_code(["part"]) == before


@pytest.mark.parametrize(
    ("old", "new"), [("2 * value", "3 * value"), ("LIMIT = 2", "LIMIT = 2.0"), ("double", "twice")]
)
def test_code_changes_the_hash(folder: Path, old: str, new: str) -> None:
    before = hash_code(["part"])
    (folder / "part" / "below" / "code.py").write_text(CODE.replace(old, new))
    assert hash_code(["part"]) != before


def test_a_file_with_another_name_changes_the_hash(folder: Path) -> None:
    before = hash_code(["part"])
    (folder / "part" / "below" / "code.py").rename(folder / "part" / "below" / "moved.py")
    assert hash_code(["part"]) != before
