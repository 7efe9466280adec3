"""The baselines' networks: what each may look at, and its loss, against what its paper says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from par_agent.baselines import NAMES
from par_agent.baselines.common import History, keys_and_values, past_mask, recent
from par_agent.baselines.methods import METHODS
from tiny import LENGTH


def test_sizes_at_full_size_are_within_twice_those_of_par_mini() -> None:
    from par_agent.modeling.par import PARModel
    from par_agent.modeling.presets import preset

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        par = count(PARModel(preset("mini")))
        for name, method in METHODS.items():
            assert par / 2 < count(method(method.Config())) < 2 * par, name


def test_a_step_sees_its_own_episode_and_nothing_later() -> None:
    context_length = torch.tensor([[0, 1, 2, 1, 2]])
    expected = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert torch.equal(past_mask(context_length)[0, 0].int(), torch.tensor(expected, dtype=torch.int32))
    tokens = torch.arange(5.0)[None, :, None, None]
    assert recent(tokens, context_length, 2)[0, :, :, 0].tolist() == [[0, 0], [1, 1], [1, 2], [3, 3], [3, 4]]


@pytest.mark.parametrize("method", NAMES)
def test_what_comes_later_changes_no_step_before_it(method: str) -> None:
    torch.manual_seed(0)
    model = METHODS[method](METHODS[method].Config(width=32, heads=2, chunk_length=LENGTH)).eval()
    config = model.config
    tokens, later = torch.randn(2, 2, 4, config.frame_tokens, 32)
    past = torch.randn(2, 4, LENGTH, 8)
    context_length = torch.tensor([[1, 2, 3, 4], [1, 2, 1, 2]])
    history = History(tokens, past, (context_length > 1), context_length, torch.randn(2, config.text_length, 32))
    usual = model.conditions(history)
    for name, value in (("tokens", later), ("past_actions", past + 1)):
        changed = getattr(history, name).clone()
        changed[:, 3] = value[:, 3]
        other = model.conditions(dataclasses.replace(history, **{name: changed}))
        torch.testing.assert_close(other[:, :3], usual[:, :3])
        assert torch.equal(other[:, 3], usual[:, 3]) == (name == "past_actions" and method != "icrt")


@pytest.mark.parametrize("method", NAMES)
def test_dropout_acts_in_training_alone(method: str) -> None:
    torch.manual_seed(0)
    model = METHODS[method](METHODS[method].Config(width=32, heads=2, chunk_length=LENGTH, dropout=0.1))
    for parameter in model.parameters():
        if not parameter.any():  # a layer that starts from zero hides what is in front of it
            torch.nn.init.normal_(parameter)
    config = model.config
    context_length = torch.tensor([[1, 2, 3, 4]])
    tokens, past = torch.randn(1, 4, config.frame_tokens, 32), torch.randn(1, 4, LENGTH, 8)
    history = History(tokens, past, context_length > 1, context_length, torch.randn(1, config.text_length, 32))

    def drawn() -> torch.Tensor:
        return model.draw(model.conditions(history).flatten(0, 1), None)

    assert not torch.equal(drawn(), drawn())
    model.eval()
    assert torch.equal(drawn(), drawn())


def test_diffusion_policys_actions_do_not_see_later_ones() -> None:
    torch.manual_seed(0)
    model = METHODS["dp"](METHODS["dp"].Config(width=32, heads=2)).eval()
    noised, time = torch.randn(1, 16, 8), torch.tensor([50])
    observed = keys_and_values(model.decoder, torch.randn(1, 5, 32))
    changed = noised.clone()
    changed[:, 9:] += 1
    usual, other = (model._noise(x, time, observed) for x in (noised, changed))
    torch.testing.assert_close(other[:, :9], usual[:, :9])
    assert (other[:, 9:] - usual[:, 9:]).abs().amin(-1).min() > 0


def test_acts_style_is_a_variational_posterior_of_the_chunk_without_its_padding() -> None:
    torch.manual_seed(0)
    model = METHODS["act"](METHODS["act"].Config(width=32, heads=2, dropout=0.0)).eval()
    torch.nn.init.normal_(model.style_head.weight, std=0.5)
    z, actions = torch.randn(3, 27, 32), torch.randn(3, 32, 8)
    weights = torch.ones(3, 32)
    weights[:, 20:] = 0
    mean, log_variance = model._style_of(z[:, -2:-1], actions, weights)
    padding, chunk = actions.clone(), actions.clone()
    padding[:, 20:] += 1
    chunk[:, 19] += 1
    torch.testing.assert_close(model._style_of(z[:, -2:-1], padding, weights)[0], mean)
    assert (model._style_of(z[:, -2:-1], chunk, weights)[0] - mean).abs().max() > 1e-3
    posterior = Normal(mean, (log_variance / 2).exp())
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum(-1).mean()
    torch.manual_seed(1)
    loss = model.chunk_loss(z, actions, weights)
    torch.manual_seed(1)
    answer = model._decode(z, mean + posterior.stddev * torch.randn_like(mean))
    torch.testing.assert_close(loss, (answer - actions)[:, :20].abs().mean() + 10 * divergence)
    without = (model.draw(z, None) - actions)[:, :20].abs().mean() + 10 * divergence
    assert (loss - without).abs() > 1e-3


def test_bc_ts_loss_is_the_likelihood_of_its_mixture_and_it_draws_components_by_weight() -> None:
    torch.manual_seed(0)
    model = METHODS["bc-t"](METHODS["bc-t"].Config(width=32, heads=2)).eval()
    z, actions = torch.randn(3, 1, 32), torch.randn(3, 8, 8)
    weights = torch.ones(3, 8)
    weights[1, 5:] = 0
    logits, mean, deviation = model._mixture(z)
    total = torch.zeros(())
    for row, steps in enumerate((8, 5, 8)):
        chunks = Independent(Normal(mean[row, :, :steps], deviation[row, :, :steps]), 2)
        mixture = MixtureSameFamily(Categorical(logits=logits[row]), chunks)
        total -= mixture.log_prob(actions[row, :steps])
    torch.testing.assert_close(model.chunk_loss(z, actions, weights), total / (21 * 8))
    drawn = model.draw(z[:1].expand(20_000, -1, -1), torch.randn(20_000, 8, 8))
    # Means of another batch size are the same but for the last bits.
    near = (drawn[:, None] - mean[0]).abs().flatten(2).amax(-1) < 1e-5
    assert bool((near.sum(-1) == 1).all()), "every draw is one component's mean, and no two are alike"
    torch.testing.assert_close(near.float().mean(0), logits[0].softmax(-1), rtol=0, atol=0.015)
    torch.testing.assert_close(model.draw(z, None)[0], mean[0, logits[0].argmax()], rtol=0, atol=1e-5)


def test_icrt_learns_from_what_follows_the_prompt() -> None:
    model = METHODS["icrt"](METHODS["icrt"].Config(width=32, heads=2))
    context_length = torch.tensor([[1, 2, 1, 2, 0], [1, 2, 3, 1, 2], [1, 2, 3, 4, 5]])
    expected = [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert torch.equal(model.counted(context_length).int(), torch.tensor(expected, dtype=torch.int32))
