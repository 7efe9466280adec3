"""Rotary positions with separate frequencies for frames and actions (Su et al. 2024; paper section 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each (..., S, head_dim / 2) float32."""


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """Dimensions of a head that turn with time, row and column (NOVA: an eighth for time, the rest in halves).

    >>> axis_sizes(64)
    (8, 28, 28)
    """
    time = head_dim // 8
    return time, (head_dim - time) // 2, (head_dim - time) // 2


def frequencies(size: int, base: float, device: torch.device | None = None) -> Tensor:
    """``base ** (-2 i / size)`` for the ``size / 2`` pairs of one axis."""
    return base ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)


def frame_rotation(positions: Tensor, head_dim: int, base: float = 10000.0) -> Rotation:
    """Rotation of frame tokens.

    Args:
        positions: (..., S, 3) time, row and column of each token.
        head_dim: Width of one attention head.
        base: Base of the frequencies.
    """
    parts = zip(positions.float().unbind(-1), axis_sizes(head_dim), strict=True)
    angles = torch.cat([p[..., None] * frequencies(size, base, p.device) for p, size in parts], -1)
    return angles.cos(), angles.sin()


def action_rotation(step: Tensor, fraction: Tensor, head_dim: int, base: float) -> Rotation:
    """Rotation of action tokens at time ``n + l / L``.

    The pairs that turn with time in a frame turn with ``n`` here too, at the same frequencies, so that attention
    between frames and actions depends on their distance in time only; the pairs of rows and columns turn with ``l / L``
    at frequencies of their own.

    Args:
        step: (..., S) physical step ``n``.
        fraction: (..., S) position in the chunk, ``l / L``, from 0 to 1.
        head_dim: Width of one attention head.
        base: Base of the action frequencies.
    """
    time, row, column = axis_sizes(head_dim)
    coarse = step.float()[..., None] * frequencies(time, 10000.0, step.device)
    fine = fraction.float()[..., None] * torch.pi * frequencies(row + column, base, step.device)
    angles = torch.cat([coarse, fine], -1)
    return angles.cos(), angles.sin()


def physical_token_rotation(
    slots: Tensor,
    grid: tuple[int, int],
    proprioception: bool,
    chunk_length: int,
    head_dim: int,
    base: float,
    cameras: int = 1,
) -> Rotation:
    """Rotation (B, N (F + L), head_dim / 2) of physical tokens.

    Joint positions sit one row and one column past a camera's last patch.

    Args:
        slots: (B, N) time of each step.
        grid: rows and columns of a frame's patches, those of all cameras.
        proprioception: whether a token of joint positions follows the patches.
        chunk_length: actions per chunk, ``L``.
        head_dim: width of one attention head.
        base: base of the action frequencies.
        cameras: how many stand side by side in a frame; each counts its columns from 0.
    """
    rows, columns = grid[0], grid[1] // cameras
    slots = slots.float()[:, :, None]  # (B, N, 1)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns * cameras) % columns).to(slots)
    if proprioception:
        places = torch.cat([places, places.new_tensor([[rows, columns]])])  # (F, 2)
    times = slots[..., None].expand(-1, -1, len(places), 1)
    positions = torch.cat([times, places.expand(*slots.shape[:2], -1, 2)], -1)  # (B, N, F, 3)
    fraction = (torch.arange(chunk_length, device=slots.device) / chunk_length).expand(
        *slots.shape[:2], -1
    )  # (B, N, L)
    frames = frame_rotation(positions, head_dim)
    actions = action_rotation(slots.expand_as(fraction), fraction, head_dim, base)
    cos, sin = (torch.cat([f, a], 2).flatten(1, 2) for f, a in zip(frames, actions, strict=True))
    return cos, sin


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns adjacent pairs of the last axis: a product of complex numbers, in one pass over memory.

    Args:
        x: (B, heads, S, head_dim).
        rotation: Cosines and sines (S, head_dim / 2) or (B, S, head_dim / 2).
    """
    turn = torch.complex(*rotation).unsqueeze(-3)
    pairs = torch.view_as_complex(x.to(turn.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
