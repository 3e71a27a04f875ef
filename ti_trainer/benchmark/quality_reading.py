"""Read from pixels what an image of the embedded model shows: background, shape, size, position, colour and texture.

The images are those of `scenes`: one thing before a background that is the same across each row. N images of 64 px.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ti_trainer.tiny_model.making.scenes import (
    COLOURS,
    POSITIONS,
    SCENERY,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    draw_array,
    pattern,
)

Array = NDArray[np.float32]
BACKGROUNDS = {
    **SCENERY,
    **{f"on a {name} background": (colour, colour, "soft") for name, colour in COLOURS.items()},
}
PLACEMENTS = tuple((size, position) for size in SIZES for position in POSITIONS if position == "" or size != "big")
SIZE_PX, BORDER_PX = 64, 3  # the border that no thing reaches
CONTRAST = 0.12  # of a colour channel, between the thing and the background
PLAIN_BELOW = 0.09  # standard deviation of a thing's colours along their main axis
SMALLEST_PX = 40  # of a thing; fewer pixels are no thing


@dataclass(frozen=True)
class Reading:
    """What one image shows; the thing's attributes are "none" if there is no thing."""

    background: str
    shape: str = "none"
    size: str = "none"
    position: str = "none"
    colour: str = "none"
    texture: str = "none"


def read(image: Array) -> Reading:
    """Read an image (64, 64, 3) in [0, 1]."""
    border = np.concatenate([image[:, :BORDER_PX], image[:, -BORDER_PX:]], 1)
    rows = np.median(border, axis=1)  # (64, 3)
    names, profiles = _backgrounds()
    background = names[int(np.abs(profiles - rows).mean((1, 2)).argmin())]
    mask = np.abs(image - rows[:, None]).max(2) > CONTRAST  # (64, 64)
    if mask.sum() < SMALLEST_PX:
        return Reading(background)
    keys, masks, areas = _templates()
    common = masks @ mask.reshape(-1).astype(np.float32)  # (number of templates,)
    best = int((common / (areas + mask.sum() - common)).argmax())
    shape, size, position = keys[best]
    inside = _eroded(mask & masks[best].reshape(mask.shape).astype(bool))
    inside = inside if inside.sum() >= SMALLEST_PX / 2 else mask
    return Reading(background, shape, size, position, _colour(image[inside]), _texture(image, inside, size, position))


def _colour(pixels: Array) -> str:
    """The named colour that most of the pixels (n, 3) are nearest to."""
    named = np.array(list(COLOURS.values()), np.float32)
    nearest = np.abs(pixels[:, None] - named).sum(2).argmin(1)  # (n,)
    return list(COLOURS)[int(np.bincount(nearest, minlength=len(named)).argmax())]


def _texture(image: Array, inside: NDArray[np.bool_], size: str, position: str) -> str:
    """The texture whose pattern follows the colours along their main axis most closely."""
    pixels = image[inside] - image[inside].mean(0)  # (n, 3)
    _, spreads, axes = np.linalg.svd(pixels, full_matrices=False)
    if spreads[0] / len(pixels) ** 0.5 < PLAIN_BELOW:
        return "plain"
    along = pixels @ axes[0]  # (n,)
    fits = {kind: abs(float(np.corrcoef(along, _pattern(kind, size, position)[inside])[0, 1])) for kind in TEXTURES[1:]}
    return max(fits, key=lambda kind: fits[kind])


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its outermost pixels, which are mixed with the background."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


@cache
def _backgrounds() -> tuple[list[str], Array]:
    """The names and (17, 64, 3) the colours of each row."""
    nothing = Thing("circle", COLOURS["white"])
    drawn = [
        draw_array(Scene(nothing, 1e-3, (9.0, 9.0), top, bottom, kind == "hard"), SIZE_PX)[:, 0]
        for top, bottom, kind in BACKGROUNDS.values()
    ]
    return list(BACKGROUNDS), np.stack(drawn)


@cache
def _templates() -> tuple[list[tuple[str, str, str]], Array, Array]:
    """Shape, size and position, (110, 64 * 64) masks and their areas."""
    keys, masks = [], []
    for shape in SHAPES:
        for size, position in PLACEMENTS:
            black = Scene(Thing(shape, COLOURS["black"]), SIZES[size], POSITIONS[position])
            keys.append((shape, size, position))
            masks.append(draw_array(black, SIZE_PX)[..., 0].reshape(-1) < 0.5)
    stacked = np.stack(masks).astype(np.float32)
    return keys, stacked, stacked.sum(1)


@cache
def _pattern(kind: str, size: str, position: str) -> Array:
    """How much of the second colour a texture shows at each pixel, (64, 64)."""
    axis = (np.arange(SIZE_PX, dtype=np.float32) + 0.5) / SIZE_PX - 0.5
    left, top = POSITIONS[position]
    x, y = np.meshgrid((axis - left) / SIZES[size], (axis - top) / SIZES[size])  # (64, 64) each
    amount = pattern(kind, x, y, 1 / (SIZE_PX * SIZES[size]))
    assert amount is not None, f"{kind} has no pattern"  # noqa: S101
    return amount.astype(np.float32)
