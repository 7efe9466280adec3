"""``par-agent finetune``: trains a policy on rendered demonstrations."""

from __future__ import annotations

from par_agent.training.finetune import FinetuneConfig, finetune

__all__ = ["FinetuneConfig", "main"]


def main(config: FinetuneConfig) -> int:
    """Trains and says where the policy is."""
    finetune(config)
    print(f"trained policy: {config.out / 'policy'}")
    return 0
