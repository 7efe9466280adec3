"""Attention: both ways give the same values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from par_agent.modeling.attention_mask import physical_token_mask
from par_agent.modeling.blocks import SHORT, attention


@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_fused_attention(masked: bool) -> None:
    tensors = torch.randn(3, 2, 3, 26, 8).unbind()
    mask = physical_token_mask(2, 3, 5, 3, torch.device("cpu")) if masked else None
    outputs, gradients = [], []
    for function in (attention, F.scaled_dot_product_attention):
        q, k, v = (tensor.clone().requires_grad_() for tensor in tensors)
        output = function(q, k, v, mask)
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append([tensor.grad for tensor in (q, k, v)])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)
    assert all(gradient is not None and gradient.any() for gradient in gradients[0])


@pytest.mark.parametrize(("keys", "trained", "fused"), [(9, True, False), (9, False, True), (SHORT + 1, True, True)])
def test_scores_are_kept_for_short_sequences_in_training_alone(
    keys: int, trained: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or original(*a, **k))
    q, k, v = torch.randn(3, 1, 1, keys, 4).requires_grad_(trained).unbind()
    attention(q, k, v)
    assert bool(calls) == fused
