"""`par-agent benchmark`, with results in benchmarks/results.

python benchmarks/run.py --tasks PushCube --policy runs/my-checkpoint --policy-seeds 1

python benchmarks/run.py --policy dp --policy-checkpoint runs/dp/policy

python benchmarks/run.py --policy vla-eval:ws://127.0.0.1:8000

python benchmarks/run.py --policy my_package.my_module:MyPolicy --policy-kwargs chunk=8 device=cpu
"""

import sys
from pathlib import Path

from par_agent.cli.benchmark import BenchmarkConfig, main
from par_agent.cli.options import run_script

if __name__ == "__main__":
    out = Path("benchmarks/results")
    sys.exit(run_script("benchmarks/run.py", main, BenchmarkConfig, __doc__, resumes=True, out=out))
