"""The scripts in examples/ run as they are, with smaller numbers."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALLER = {
    "push_cube.py": {"max_episode_steps=200": "max_episode_steps=2"},
    "evaluate.py": {"5, 200": "2, 2"},
    "many_environments.py": {'("PushCube", "PickCube", "StackCube"), 200, 100': '("PushCube", "StackCube"), 4, 3'},
    "own_task.py": {"STEPS = 200": "STEPS = 2"},
    "own_demonstrations.py": {"10, 200, 300": "2, 12, 1", "out=RENDERED": "out=RENDERED, include_failures=True"},
}
"""Numbers of every script, and those that the test has in place of them."""
PRINTED = {
    "push_cube.py": "success: False, after 2 steps",
    "evaluate.py": "success_once: 0.00\nsuccess_at_end: 0.00\nreturn: ",
    "many_environments.py": "solved in 4 control steps: {'PushCube': 0, 'StackCube': 0}",
    "own_task.py": "success: False after 2 control steps",
    "own_demonstrations.py": "instruction 'Push the cube into the circle.')",
}


def test_every_script_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALLER) == set(PRINTED)


@pytest.mark.usefixtures("without_workers", "without_pictures")
@pytest.mark.parametrize("name", SMALLER)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (EXAMPLES / name).read_text()
    for whole, small in SMALLER[name].items():
        assert whole in text
        text = text.replace(whole, small)
    (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(name, run_name="__main__")
    assert PRINTED[name] in capsys.readouterr().out
    assert len(list(tmp_path.glob("videos/*.mp4"))) == {"push_cube.py": 1, "evaluate.py": 2}.get(name, 0)
