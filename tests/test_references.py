"""Modules of one's own are found in the current folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from par_agent.errors import UserError
from par_agent.utils.references import load_object


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_module_in_the_current_folder_and_those_that_it_imports_are_found_without_a_change_of_the_path(
    folder: Path,
) -> None:
    (folder / "sizes_of_my_own.py").write_text("WIDTH = 3")
    (folder / "policy_of_my_own.py").write_text("from sizes_of_my_own import WIDTH")
    before = list(sys.path)
    assert load_object("policy_of_my_own:WIDTH") == 3
    assert sys.path == before


def test_what_is_installed_comes_first(folder: Path) -> None:
    (folder / "colorsys.py").write_text("ONE_THIRD = 0")
    assert load_object("colorsys:ONE_THIRD") == 1 / 3


def test_a_module_that_is_nowhere_is_refused() -> None:
    with pytest.raises(UserError, match="run the command from the folder that holds it"):
        load_object("nowhere_at_all:NAME")
