"""`par-agent visualize attention`: where the action tokens attend in a rollout, by token and by pixel."""

from __future__ import annotations

from dataclasses import dataclass

from par_agent.cli.visualize import VisualizedRollout, file_stem, open_session
from par_agent.utils.checked import Length, NonNegative, SmallCount


@dataclass(frozen=True)
class AttentionConfig(VisualizedRollout):
    """Rolls a policy out once and draws its attention weights."""

    layer: SmallCount | None = None
    """Layer, from 1. Default: the last one for the token maps, the mean of all for the overlays."""
    head: SmallCount | None = None
    """Head of the overlays, from 1. Default: the mean of all."""
    look: NonNegative = 3
    """Plan whose token maps are drawn, from 0; the policy reads a frame and makes a plan once per chunk."""
    context: Length | None = None
    """Physical tokens of context. Default: the checkpoint's own; par-mini has 1, the current frame."""


def main(config: AttentionConfig) -> int:
    """Writes two PNGs."""
    import dataclasses

    from par_agent.utils.videos import check_video_path
    from par_agent.visualization.attention import draw_overlays, draw_tokens, record_attention

    if config.context is not None:
        config = dataclasses.replace(config, policy_kwargs=(*config.policy_kwargs, f"context={config.context}"))
    tokens, overlays = (config.out / f"{file_stem(config)}_attention_{kind}.png" for kind in ("tokens", "frames"))
    check_video_path(tokens, 1)
    with open_session(config) as session:
        rollout = record_attention(session, config.state, config.seed, layer=config.layer, head=config.head)
    layers = len(rollout.maps[0].weights)
    draw_tokens(rollout, tokens, config.layer or layers, config.look)
    draw_overlays(rollout, overlays, config.layer, config.head)
    print(f"{rollout.title}: {tokens} and {overlays}")
    return 0
