"""The rotary variant of NOVA against its definition, written out again on the bare tensors of a checkpoint.

Rotation is a product of complex numbers here, attention a softmax, and every token has its position by name, so that
nothing is shared with the model but the weights.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from nova_fixtures import WEIGHTS, write_nova
from par_agent.modeling.nova.model import NOVA

Tensors = dict[str, Tensor]
Position = tuple[int, int, int]
ROWS, COLUMNS, HEADS = 4, 6, 2


def rotated(x: Tensor, positions: list[Position]) -> Tensor:
    """Tokens (S, head_dim) turned by their (time, row, column)."""
    size = x.shape[1]
    parts = (size // 8, (size - size // 8) // 2, (size - size // 8) // 2)
    angles = [
        [place / 10000 ** (2 * i / part) for place, part in zip(position, parts, strict=True) for i in range(part // 2)]
        for position in positions
    ]
    turn = torch.polar(torch.ones(len(positions), size // 2), torch.tensor(angles))
    return torch.view_as_real(torch.view_as_complex(x.reshape(len(x), -1, 2).contiguous()) * turn).flatten(1)


def norm(x: Tensor, w: Tensors, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def linear(x: Tensor, w: Tensors, name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def block(x: Tensor, w: Tensors, name: str, positions: list[Position], visible: Tensor) -> Tensor:
    heads = []
    for q, k, v in zip(*(part.chunk(HEADS, 1) for part in linear(x, w, f"{name}.attn.qkv").chunk(3, 1)), strict=True):
        scores = rotated(q, positions) @ rotated(k, positions).T / math.sqrt(q.shape[1])
        heads.append(scores.masked_fill(~visible, -math.inf).softmax(1) @ v)
    x = x + norm(linear(torch.cat(heads, 1), w, f"{name}.attn.proj"), w, f"{name}.norm1")
    return x + norm(linear(F.gelu(linear(x, w, f"{name}.mlp.fc1")), w, f"{name}.mlp.fc2"), w, f"{name}.norm2")


def patches(frame: Tensor, w: Tensors, name: str) -> Tensor:
    kernel = w[f"{name}.patch_embed.proj.weight"]
    x = F.conv2d(frame[None], kernel, w[f"{name}.patch_embed.proj.bias"], stride=kernel.shape[2])
    return x[0].flatten(1).T


def conditions(latents: Tensor, prefix: Tensor, w: Tensors, depth: int) -> list[Tensor]:
    """Conditions of every frame of a clip (C, T, h, w)."""
    grid = [(row, column) for row in range(ROWS // 2) for column in range(COLUMNS // 2)]
    frames = latents.shape[1]
    slots = [w["mask_embed.bos_token"].expand(len(grid), -1)]
    slots += [patches(latents[:, t], w, "video_encoder") for t in range(frames - 1)]
    positions = [(0, 0, 0)] * len(prefix) + [(t, *place) for t in range(frames) for place in grid]
    numbers = torch.tensor([0] * len(prefix) + [t for t in range(frames) for _ in grid])
    x = torch.cat([prefix, *slots])
    for layer in range(depth):
        x = block(x, w, f"video_encoder.blocks.{layer}", positions, numbers[:, None] >= numbers[None])
    first, *later = norm(x, w, "video_encoder.norm")[len(prefix) :].split(len(grid))
    mixed = []
    for output in later:
        hidden = F.silu(output)
        if "video_encoder.mixer.lora.weight" in w:
            hidden = linear(hidden, w, "video_encoder.mixer.lora")
        scale, shift = linear(hidden, w, "video_encoder.mixer.proj").chunk(2, 1)
        mixed.append(first * (1 + scale) + shift)
    return [first, *mixed]


def image_outputs(frame: Tensor, condition: Tensor, known: list[int], w: Tensors, depth: int) -> Tensor:
    grid = [(0, row, column) for row in range(ROWS) for column in range(COLUMNS)]
    tokens = patches(frame, w, "image_encoder")
    x = torch.stack([tokens[i] if i in known else w["mask_embed.mask_token"][0] for i in range(len(grid))])
    count, still = len(condition), [(0, 0, 0)] * len(condition)

    def run(sequence: Tensor, layers: range, positions: list[Position]) -> Tensor:
        everything = torch.ones(len(sequence), len(sequence), dtype=torch.bool)
        for layer in layers:
            sequence = block(sequence, w, f"image_encoder.blocks.{layer}", positions, everything)
        return sequence

    half = depth // 2
    sequence = run(torch.cat([condition, x[known]]), range(half), still + [grid[i] for i in known])
    x[known] = sequence[count:]
    sequence = run(torch.cat([sequence[:count], x]), range(half, depth), still + grid)
    return norm(sequence, w, "image_encoder.norm")[count:]


@pytest.mark.parametrize("mixer_rank", [7, -1])
@torch.inference_mode()
def test_the_rotary_variant_is_computed_as_defined(tmp_path: Path, mixer_rank: int) -> None:
    write_nova(
        tmp_path / "transformer",
        rotary=True,
        mixer_rank=mixer_rank,
        image_size=[8 * 2 * ROWS, 8 * 2 * COLUMNS],
        video_base_size=[3, ROWS // 2, COLUMNS // 2],
        image_base_size=[ROWS, COLUMNS],
    )
    model = NOVA.from_pretrained(tmp_path)
    w = {name: value.float() for name, value in load_file(tmp_path / "transformer" / WEIGHTS).items()}
    latents = torch.randn(1, 4, 4, 2 * ROWS, 2 * COLUMNS, generator=torch.Generator().manual_seed(0))
    prefix = model.prefix([torch.ones(2, 12)], flow=torch.tensor([3.0]))
    actual = model.mix(model.encode_video(latents, prefix))[0]
    expected = conditions(latents[0], prefix[0], w, depth=3)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=2e-5)
    known = [13, 2, 20, 5]
    z = model.encode_frame(latents[:, :, 2], actual[2:3], torch.tensor([known]))
    torch.testing.assert_close(z[0], image_outputs(latents[0, :, 2], expected[2], known, w, 5), rtol=0, atol=2e-5)
