"""Textures made by code: patterns of two colours, and materials that show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from par_agent.simulation.world import Draw, World, rounded

SIZE = 128
"""Height and width of a pattern, texels."""
OWN_SIZE = 512
"""Largest height and width to which a material's own texture is reduced when a weak change mixes with it."""
_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE] / SIZE


def _waves(numbers: np.random.RandomState) -> np.ndarray:
    """Smooth noise: a sum of waves that fit the tile."""
    total = np.zeros((SIZE, SIZE))
    for _ in range(8):
        across, down, phase = (*numbers.randint(-6, 7, 2), numbers.uniform(0, 2 * np.pi))
        total += np.cos(2 * np.pi * (across * _COLUMNS + down * _ROWS) + phase)
    return 1 / (1 + np.exp(-2 * total))


PATTERNS: tuple[Callable[[np.random.RandomState, int], np.ndarray], ...] = (
    lambda _, tiles: ((_ROWS * tiles).astype(int) + (_COLUMNS * tiles).astype(int)) % 2,
    lambda _, tiles: (_ROWS * tiles).astype(int) % 2,
    lambda _, tiles: (((_ROWS + _COLUMNS) * tiles).astype(int)) % 2,
    lambda _, tiles: np.hypot(_ROWS * tiles % 1 - 0.5, _COLUMNS * tiles % 1 - 0.5) < 0.3,
    lambda numbers, _: _waves(numbers),
)
"""Shares of the second colour (SIZE, SIZE) in [0, 1]: squares, stripes, slanted stripes, dots and clouds."""


class Pattern(NamedTuple):
    """A pattern that was drawn."""

    image: np.ndarray
    """(SIZE, SIZE, 3) float64 sRGB in [0, 1]."""
    drawn: list[float]
    """Number of the pattern, tiles across, and both colours."""


def draw_pattern(draw: Draw) -> Pattern:
    """Draws a pattern and two colours."""
    first, second = draw.color(), draw.color()
    kind, tiles = draw.choice(len(PATTERNS)), 2 ** (1 + draw.choice(3))
    share = PATTERNS[kind](draw.numbers, tiles).astype(float)[..., None]
    return Pattern((1 - share) * first + share * second, rounded([kind, tiles, *first, *second]))


def paint(world: World, material: Any, image: np.ndarray, strength: float) -> None:
    """Shows an image (H, W, 3) sRGB in [0, 1] on a material, in place of its texture or colour.

    Below a strength of 1 the image is mixed with what the material shows. Where the scene was rendered before, only
    materials that had a texture then show it (:func:`give_textures`).
    """
    share = min(strength, 1.0)
    if share < 1:
        own = own_image(material)
        rows, columns = (np.arange(max(a, b)) for a, b in zip(own.shape[:2], image.shape[:2], strict=True))
        own, image = (
            picture[np.ix_(rows * len(picture) // len(rows), columns * picture.shape[1] // len(columns))]
            for picture in (own, image)
        )
        image = (1 - share) * own + share * image
    world.set(material, "base_color_texture", _texture(image))


def give_textures(world: World, roles: Sequence[str]) -> None:
    """Gives the objects of some roles textures of their colours, before a scene is rendered for the first time.

    SAPIEN shows no texture on a material that had none when its scene was rendered first.
    """
    for role in roles:
        for material in world.materials(world.objects(role, required=False)):
            if material.base_color_texture is None:
                material.base_color_texture = _texture(own_image(material))


def _texture(image: np.ndarray) -> Any:
    """SAPIEN's texture of an image (H, W, 3) sRGB in [0, 1]."""
    import sapien

    texels = np.full((*image.shape[:2], 4), 255, np.uint8)
    texels[..., :3] = np.rint(255 * image)
    levels = texels.shape[0].bit_length()
    return sapien.render.RenderTexture2D(texels, "R8G8B8A8Unorm", mipmap_levels=levels, srgb=True)


def own_image(material: Any) -> np.ndarray:
    """What a material shows: its texture (H, W, 3), reduced, or its colour (1, 1, 3); sRGB in [0, 1]."""
    texture = material.base_color_texture
    if texture is None:
        color: np.ndarray = np.array(material.base_color[:3]) ** (1 / 2.2)
        return color[None, None]
    image = texture.download()
    step = -(-max(image.shape[:2]) // OWN_SIZE)
    return image[::step, ::step, :3].astype(float) / 255
