"""Parameter counts of a model by the parts of the paper's Table 1."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from par_agent.modeling.par import PARModel

PHI_PARAMETERS = 2_648_560_640
"""Phi-2 without its language head, from its published sizes (32 layers of width 2560, 51,200 words)."""


@dataclass(frozen=True)
class PartCounts:
    """Parameters of each part."""

    action_tokenizer: int
    """MLP, begin-of-action token, positions in the chunk and the token of joint positions."""
    action_detokenizer: int
    """Action-DiT."""
    frame_detokenizer: int
    """Diffusion MLP of the frame path."""
    causal_transformer: int
    """Temporal and spatial encoder, mixer, text and time embedding, mask tokens."""
    motion_embedding: int
    """NOVA's two motion tokens, which the paper's 608.7M leave out."""

    @property
    def total(self) -> int:
        """What the paper counts: everything but the motion embedding."""
        return self.action_tokenizer + self.action_detokenizer + self.frame_detokenizer + self.causal_transformer


def count_parts(model: PARModel) -> PartCounts:
    """Counts a model's parameters; it may be on the meta device."""
    nova = model.nova
    inside = dict(nova.named_children()).get("image_decoder")
    frame, motion = parameters(inside), parameters(nova.motion_embed)
    return PartCounts(
        parameters(model.action_tokenizer),
        parameters(model.action_detokenizer),
        frame + parameters(model.frame_regression),
        parameters(nova) - frame - motion,
        motion,
    )


def parameters(module: nn.Module | None) -> int:
    """Parameters of a module, 0 where there is none; buffers are not counted."""
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())
