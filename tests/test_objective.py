"""What training hides and displaces."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from par_agent.data.windows import Windows
from par_agent.training.config import FinetuneConfig
from par_agent.training.objective import Objective, perturb_proprioception
from par_agent.training.setup import prepare
from tiny import LENGTH, tiny_run, with_options


def beside(config: FinetuneConfig) -> tuple[Windows, Windows, Objective]:
    """A batch as it is, and with the robot said to be elsewhere."""
    setup = prepare(config, torch.device("cpu"))
    transforms = setup.policy.transforms
    assert transforms is not None
    objective = Objective(setup.policy.model, transforms, setup.policy.text_encoder, config)
    windows = setup.train.batch(0)
    generator = torch.Generator().manual_seed(0)
    perturbed = perturb_proprioception(windows, transforms, LENGTH, config.loss.recovery_noise, generator)
    return windows, perturbed, objective


def test_targets_of_a_perturbed_robot_lead_to_where_they_led(tmp_path: Path) -> None:
    before, after, objective = beside(tiny_run(tmp_path, recovery_noise=0.5, batch_size=64))
    transforms = objective.transforms
    assert transforms is not None
    moved = after.proprioception - before.proprioception
    expected = 0.5 * torch.tensor(transforms.action_std[LENGTH - 1])
    torch.testing.assert_close(moved.std((0, 1))[:7], expected[:7], rtol=0.3, atol=0)
    assert not moved[..., 7:].any()  # the fingers, which no action moves relative to their positions
    targets = transforms.normalise_actions(after.target_actions, after.proprioception)
    torch.testing.assert_close(transforms.denormalise_actions(targets, after.proprioception), before.target_actions)
    assert not torch.allclose(targets, transforms.normalise_actions(before.target_actions, before.proprioception))
    for name in ("latents", "action_weights", "steps"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name


def test_the_past_of_a_perturbed_robot_leads_to_where_it_is(tmp_path: Path) -> None:
    """Nothing but the image tells how far it is from where it should be."""
    before, after, _ = beside(tiny_run(tmp_path, recovery_noise=0.5, window=3, batch_size=64))
    moved, chunk = after.proprioception - before.proprioception, after.past_actions - before.past_actions
    torch.testing.assert_close(chunk[:, :, -1, :7], moved[..., :7])
    follows = before.context_length[:, 1:] > 1
    began = (after.past_proprioception - before.past_proprioception)[:, 1:]
    torch.testing.assert_close(began[follows], moved[:, :-1][follows])
    assert not chunk[..., 7:].any()  # the gripper
    steps = chunk.diff(dim=2)
    torch.testing.assert_close(steps, steps[:, :, :1].expand_as(steps))
    together = torch.corrcoef(torch.stack([moved[:, 1, 0], moved[:, 2, 0]]))[0, 1]
    assert 0.6 < together < 0.95


def test_each_episode_of_a_window_is_perturbed_by_itself(tmp_path: Path) -> None:
    before, _, objective = beside(tiny_run(tmp_path, recovery_noise=0.5, window=3, batch_size=64))
    assert objective.transforms is not None
    two = dataclasses.replace(before, context_length=torch.tensor([1, 2, 1]).expand_as(before.context_length))
    perturbed = perturb_proprioception(two, objective.transforms, LENGTH, 0.5, None)
    moved = (perturbed.proprioception - two.proprioception)[..., 0]
    same, other = (torch.corrcoef(torch.stack([moved[:, 1], moved[:, place]]))[0, 1] for place in (0, 2))
    assert same > 0.6 and abs(other) < 0.4


def test_noise_of_a_batch_follows_from_its_number(tmp_path: Path) -> None:
    windows, _, objective = beside(tiny_run(tmp_path, recovery_noise=0.5))
    losses = [objective(windows, number, torch.device("cpu")).total.item() for number in (7, 7, 8)]
    assert losses[0] == losses[1] != losses[2]
    objective.config = with_options(objective.config, recovery_noise=0.0)
    assert objective(windows, 7, torch.device("cpu")).total.item() != losses[0]
