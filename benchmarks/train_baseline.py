"""Trains one of the baselines that the paper compares PAR with.

python benchmarks/train_baseline.py --method dp --task PushCube PickCube StackCube --vae runs/vae/vae --out runs/dp
"""

from __future__ import annotations

import sys

from par_agent.baselines.training import BaselineConfig, train
from par_agent.cli.entry import run_command
from par_agent.cli.options import parse
from par_agent.utils.files import writing


def main(arguments: list[str]) -> int:
    """Trains and says where the policy is."""
    config = parse(BaselineConfig, arguments, "train_baseline.py", str(__doc__).splitlines()[0])
    with writing(config.out):
        train(config)
    print(f"trained policy: {config.out / 'policy'}; python benchmarks/run.py --policy {config.out / 'policy'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command("benchmarks/train_baseline.py", lambda: main(sys.argv[1:]), resumes=True))
