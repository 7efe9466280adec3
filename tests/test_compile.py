"""Everything that holds weights compiles as one graph: no Python in it depends on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from par_agent.modeling.action_detokenizer import ActionDetokenizer, action_loss, sample_actions
from par_agent.modeling.diffusion import noise_process
from par_agent.modeling.frame_loss import frame_errors
from par_agent.modeling.par import PARModel
from tiny import LENGTH, SIZE, tiny_features, tiny_inputs, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("nova_layout", [False, True], ids=["mini", "nova"])]


@pytest.fixture
def model(nova_layout: bool) -> PARModel:
    torch._dynamo.reset()
    return tiny_model(nova_layout)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """As one graph of ATen operators, with gradients; any break is an error."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_teacher_forcing(model: PARModel, recompute: bool) -> None:
    model.train().set_gradient_checkpointing(recompute)
    steps, context = torch.arange(3).expand(2, 3), torch.tensor([[1, 2, 2], [1, 1, 3]])
    arguments = (tiny_features(2), tiny_inputs(2, 3), steps, context)
    outputs = compiled(model.forward)(*arguments)
    close(outputs, model(*arguments))
    sum(output.square().sum() for output in outputs).backward()
    assert all(p.grad is not None for p in model.nova.video_encoder.blocks.parameters())


@torch.no_grad()
def test_a_step_with_the_cache_past_its_window(model: PARModel) -> None:
    step, features = compiled(model.step), tiny_features(2)
    one, other = model.start(features, slots=3), model.start(features, slots=3)
    for number in range(5):
        token = tiny_inputs(2, 1, seed=number)
        close(step(one, token), model.step(other, token))


def test_drawing_a_chunk(model: PARModel) -> None:
    head, process = model.action_detokenizer, noise_process(model.config.action.diffusion)
    assert isinstance(head, ActionDetokenizer)
    z, start = torch.randn(2, LENGTH, 32), torch.randn(2, LENGTH, SIZE)
    close(compiled(sample_actions)(head, z, process, 4, start), sample_actions(head, z, process, 4, start))


def test_the_action_loss(model: PARModel) -> None:
    process = noise_process(model.config.action.diffusion)
    actions, weights = torch.randn(3, LENGTH, SIZE), torch.ones(3, LENGTH)
    z = torch.randn(3, LENGTH, 32, requires_grad=True)
    compiled(action_loss)(model.action_detokenizer, z, actions, weights, process, 4).backward()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.abs().sum() > 0


def test_the_frame_loss(model: PARModel) -> None:
    process, known = noise_process(model.config.nova.diffusion), torch.tensor([[0, 1], [3, 2]])
    noise, index = torch.randn(8, 16, 8), process.draw_index((8, 16), None, torch.device("cpu"))
    latents, z = torch.randn(2, 2, 8, 8), torch.randn(2, model.frame_tokens, 32, requires_grad=True)

    def loss(condition: Tensor) -> Tensor:
        z = model.nova.encode_frame(latents, condition, known)
        return frame_errors(model.nova, latents, z, known, process, noise, index)[0].sum()

    total = compiled(loss)(z)
    close(total, loss(z))
    total.backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
