"""Rotary positions: attention depends on differences of positions, with frequencies of their own for actions."""

from __future__ import annotations

import math

import pytest
import torch

from par_agent.modeling.rope import action_rotation, axis_sizes, frame_rotation, rotate

HEAD_DIM = 64


@pytest.fixture
def q_and_k() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 1, 1, HEAD_DIM, generator=generator, dtype=torch.float64) for _ in range(2))


def frame(t: float, y: float, x: float):
    return frame_rotation(torch.tensor([[t, y, x]]), HEAD_DIM)


def action(t: float, fraction: float):
    return action_rotation(torch.tensor([t]), torch.tensor([fraction]), HEAD_DIM, 100.0)


def score(q, k, q_rotation, k_rotation) -> float:
    return float((rotate(q, q_rotation) * rotate(k, k_rotation)).sum())


@pytest.mark.parametrize("shift", [(3, 0, 0), (0, 5, 0), (0, 0, 2), (7, 1, 4)])
def test_frame_scores_depend_on_position_differences_only(q_and_k, shift):
    a, b = (2.0, 1.0, 3.0), (5.0, 4.0, 0.0)
    shifted = [tuple(p + s for p, s in zip(position, shift, strict=True)) for position in (a, b)]
    here = score(*q_and_k, frame(*a), frame(*b))
    assert score(*q_and_k, *(frame(*p) for p in shifted)) == pytest.approx(here, abs=1e-4)
    assert abs(score(*q_and_k, frame(*shifted[0]), frame(*b)) - here) > 1e-2


def test_action_scores_depend_on_differences_of_step_and_of_fraction(q_and_k):
    here = score(*q_and_k, action(2, 0.25), action(1, 0.0))
    assert score(*q_and_k, action(9, 0.75), action(8, 0.5)) == pytest.approx(here, abs=1e-4)
    assert abs(score(*q_and_k, action(9, 0.5), action(8, 0.5)) - here) > 1e-2
    assert abs(score(*q_and_k, action(3, 0.25), action(1, 0.0)) - here) > 1e-2


def test_scores_between_an_action_and_a_frame_depend_on_their_distance_in_time_only(q_and_k):
    here = score(*q_and_k, action(4, 0.5), frame(1, 2, 3))
    assert score(*q_and_k, action(14, 0.5), frame(11, 2, 3)) == pytest.approx(here, abs=1e-4)
    assert abs(score(*q_and_k, action(14, 0.5), frame(1, 2, 3)) - here) > 1e-2


def test_every_position_inside_a_chunk_turns_differently():
    angles = [action(0, position / 8) for position in range(8)]
    for i in range(8):
        for j in range(i):
            assert (angles[i][0] - angles[j][0]).abs().max() > 0.05


def test_a_rotation_is_multiplication_of_pairs_by_unit_complex_numbers():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 5, HEAD_DIM, generator=generator)
    positions = torch.randint(0, 9, (2, 5, 3), generator=generator)
    cos, sin = frame_rotation(positions, HEAD_DIM)
    assert cos.shape == sin.shape == (2, 5, HEAD_DIM // 2)
    expected = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.complex(cos, sin)[:, None]
    torch.testing.assert_close(rotate(x, (cos, sin)), torch.view_as_real(expected).flatten(-2))
    torch.testing.assert_close(rotate(x, (cos, sin)).norm(dim=-1), x.norm(dim=-1))


def test_one_rotation_serves_all_rows_of_a_batch():
    x = torch.randn(2, 3, 5, HEAD_DIM, generator=torch.Generator().manual_seed(2))
    positions = torch.arange(15).view(5, 3)
    shared = rotate(x, frame_rotation(positions, HEAD_DIM))
    torch.testing.assert_close(shared, rotate(x, frame_rotation(positions.expand(2, 5, 3), HEAD_DIM)))


def test_the_frequencies_of_each_axis_follow_the_papers_formula():
    time, rows, columns = axis_sizes(HEAD_DIM)
    assert time + rows + columns == HEAD_DIM
    cos, sin = frame(3, 0, 5)
    angles = torch.atan2(sin, cos)[0]
    turned = [3 * 10000 ** (-2 * i / time) for i in range(time // 2)]
    turned += [0.0] * (rows // 2)
    turned += [5 * 10000 ** (-2 * i / columns) for i in range(columns // 2)]
    wrapped = [math.atan2(math.sin(angle), math.cos(angle)) for angle in turned]
    torch.testing.assert_close(angles, torch.tensor(wrapped), atol=1e-5, rtol=0)
