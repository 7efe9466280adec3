"""`par-agent visualize attention`: where the action tokens attend in a rollout, by token and by pixel."""

from __future__ import annotations

from dataclasses import dataclass

from par_agent.cli.visualize import VisualizedRollout, file_stem, policy_source, states_file
from par_agent.utils.checked import Length, NonNegative, SmallCount


@dataclass(frozen=True)
class AttentionConfig(VisualizedRollout):
    """Rolls a policy out once and draws its attention; the weights are computed beside the fast path."""

    layer: SmallCount | None = None
    """Layer, from 1. Default: the last for the token maps, the mean over all for the overlays."""
    head: SmallCount | None = None
    """Head of the overlays, from 1. Default: their mean."""
    look: NonNegative = 3
    """Look of the token maps, from 0; a look is a frame that the policy reads."""
    context: Length | None = None
    """Physical tokens that the policy remembers. Default: the checkpoint's own; par-mini's is 1, the current frame."""


def main(config: AttentionConfig) -> int:
    """Writes two PNGs."""
    import dataclasses

    from par_agent.visualization.attention import draw_overlays, draw_tokens, perform
    from par_agent.visualization.videos import check_video_path

    source = policy_source(config)
    if config.context is not None:
        source = dataclasses.replace(source, options={**source.options, "context": config.context})
    tokens, overlays = (config.out / f"{file_stem(config)}_attention_{kind}.png" for kind in ("tokens", "frames"))
    check_video_path(tokens, 1)
    chosen = {"layer": config.layer, "head": config.head}
    rollout = perform(config.task, source, config.state, config.seed, config.track, states_file(config), **chosen)
    layers = len(rollout.maps[0].weights)
    draw_tokens(rollout, tokens, config.layer or layers, config.look)
    draw_overlays(rollout, overlays, config.layer, config.head)
    print(f"{rollout.title}: {tokens} and {overlays}")
    return 0
