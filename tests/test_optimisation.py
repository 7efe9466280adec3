"""Optimiser groups, the learning rate over time, weight averaging and refusing a broken gradient."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from par_agent.errors import UserError
from par_agent.training.optimisation import EMA, clip_and_step, learning_rate, make_optimizer, set_learning_rate


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_only_trainable_matrices_decay():
    module = Small()
    optimizer = make_optimizer(module, 1e-3, 0.1)
    decaying, others = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert decaying == {id(module.linear.weight)}
    assert others == {id(module.linear.bias), id(module.norm.weight), id(module.norm.bias)}


def test_the_rate_warms_up_linearly_and_follows_a_cosine_to_its_end():
    rates = [learning_rate(step, 100, 10, 2.0, final=0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0 and rates[55] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[100] == pytest.approx(0.2) == learning_rate(150, 100, 10, 2.0, final=0.1)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


def test_a_run_without_warm_up_starts_at_the_peak():
    assert learning_rate(0, 10, 0, 3.0) == 3.0
    assert learning_rate(0, 1, 1, 3.0) == 3.0


def test_the_rate_is_set_in_every_group():
    optimizer = make_optimizer(Small(), 1e-3, 0.1)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_the_average_follows_its_formula_and_leaves_frozen_weights_out():
    torch.manual_seed(0)
    module = Small()
    average = EMA(module, 0.5)
    expected = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    for step in range(6):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(module, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * module.get_parameter(name).detach()
    assert set(average.tensors) == set(expected) and not any("frozen" in name for name in expected)
    for name, value in average.tensors.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_a_step_clips_the_whole_gradient_and_clears_it(max_norm):
    module = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = module.weight.detach().clone()
    gradient = torch.tensor([[3.0, 4.0]])
    module.weight.grad = gradient.clone()
    assert clip_and_step(module, optimizer, max_norm, "here") == pytest.approx(5.0)
    torch.testing.assert_close(before - module.weight.detach(), gradient * min(1.0, max_norm / 5))
    assert module.weight.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_gradient_is_refused_and_changes_no_weight(bad):
    module = nn.Linear(2, 2)
    optimizer = make_optimizer(module, 1e-3, 0.0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    module.weight.grad, module.bias.grad = torch.full((2, 2), bad), torch.ones(2)
    with pytest.raises(UserError, match=r"at step 7.*last training state is intact"):
        clip_and_step(module, optimizer, 1.0, "at step 7")
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
