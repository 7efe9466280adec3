"""`par-agent train-baseline`: trains one of the methods that PAR is compared with."""

from __future__ import annotations

from par_agent.baselines.config import BaselineConfig
from par_agent.baselines.training import train
from par_agent.utils.files import writing


def main(config: BaselineConfig) -> int:
    """Trains and says where the policy is."""
    with writing(config.out):
        train(config)
    policy = config.out / "policy"
    print(f"trained policy: {policy}; par-agent benchmark --policy {policy}")
    return 0
