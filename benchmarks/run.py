"""`par-agent benchmark`, with results in benchmarks/results.

python benchmarks/run.py --tasks PushCube --policy runs/my-checkpoint --policy-seeds 1

python benchmarks/run.py --policy dp --policy-checkpoint runs/dp/policy

python benchmarks/run.py --policy vla-eval:ws://127.0.0.1:8000

python benchmarks/run.py --policy my_package.my_module:MyPolicy --policy-kwargs chunk=8 device=cpu
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from par_agent.cli.benchmark import BenchmarkConfig, main
from par_agent.cli.options import run_script


@dataclass(frozen=True)
class ScriptConfig(BenchmarkConfig):
    """The options of `par-agent benchmark`."""

    out: Path = Path("benchmarks/results")
    """Folder under which the run gets its own folder."""


if __name__ == "__main__":
    sys.exit(run_script("benchmarks/run.py", main, ScriptConfig, __doc__, resumes=True))
