"""Scaled dot-product attention, by the faster of two ways."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

SHORT = 256
"""Keys up to which scores are written out where that is faster."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Values (B, heads, S, head_dim) gathered for queries (B, heads, S, head_dim); ``mask`` True: may attend.

    On the CPU the backward pass of PyTorch's fused attention is slow for short sequences, up to ten times slower in
    bfloat16 than plain matrix products over scores that are kept; there training writes the scores out.
    """
    if q.device.type != "cpu" or not q.requires_grad or k.shape[2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v
