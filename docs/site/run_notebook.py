"""Runs the cells of a notebook in order, in one process and an empty folder, and writes their outputs into it.

    python docs/site/run_notebook.py examples/par_agent_tour.ipynb

`make notebook` does this. It needs IPython, which ManiSkill installs, and no Jupyter. What cells print to stderr, such
as progress bars, is not kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MACHINE = (Path.home(), Path.cwd(), Path(sys.prefix), Path(tempfile.gettempdir()))
"""Folders of this machine, which outputs must not show."""


def executed(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with the outputs that its cells have when they run in a folder; the first error is raised."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ |= {"IPYTHONDIR": str(folder / ".ipython"), "PATH": programs}
    os.chdir(folder)
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.system = lambda command: _system(shell.var_expand(command, depth=1))
    for number, cell in enumerate(code_cells(notebook), 1):
        print(f"cell {number}", file=sys.stderr, flush=True)
        with capture_output() as captured:
            shell.display_trap.hook = sys.displayhook  # the value of a cell's last line is captured, too
            result = shell.run_cell("".join(cell["source"]))
        result.raise_error()
        cell["execution_count"], cell["outputs"] = number, _outputs(captured)
    text = json.dumps(notebook)
    if shown := [str(place) for place in MACHINE if f"{place}/" in text]:
        raise SystemExit(f"the outputs show the folder {shown[0]} of this machine")
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that run, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _system(command: str) -> None:
    """What a line that begins with `!` does: runs a command, and prints what it prints."""
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    if done.returncode:
        raise SystemExit(f"{command} ended with status {done.returncode}")


def _outputs(captured: Any) -> list[dict[str, Any]]:
    """What a cell printed and showed, as notebooks store it."""
    printed = captured.stdout.splitlines(keepends=True)
    outputs: list[dict[str, Any]] = [{"name": "stdout", "output_type": "stream", "text": printed}] if printed else []
    for shown in captured.outputs:
        data = {kind: value.splitlines(keepends=True) for kind, value in shown.data.items()}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return outputs


def main() -> None:
    """Runs the notebook that the command line names."""
    path = Path(sys.argv[1]).resolve()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        try:
            done = executed(notebook, Path(folder))
        finally:
            os.chdir(path.parent)  # the folder is removed
    path.write_text(json.dumps(done, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":  # worker processes import this file
    main()
