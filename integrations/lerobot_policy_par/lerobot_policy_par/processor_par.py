"""Batches on their way into and out of a PAR policy: a batch dimension and the device; nothing is normalised."""

from __future__ import annotations

from typing import Any

from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors

from lerobot_policy_par.configuration_par import ParConfig


def make_par_pre_post_processors(
    config: ParConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]:
    """LeRobot's usual steps, which the identity of :attr:`ParConfig.normalization_mapping` makes harmless."""
    return make_default_pre_post_processors(config, dataset_stats)
