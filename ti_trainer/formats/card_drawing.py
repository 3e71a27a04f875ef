"""The text on a card's image: a title at the top and footers at the bottom, on darkened edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SHORTEST_SIDE = 512  # of the image, so that words can be read
_FONT_SIZE = 96


def captioned(image: Image.Image, title: str, footers: Sequence[str]) -> Image.Image:
    """The image in RGB, at least 512 pixels a side, with the title above and three footers (left, middle, right)."""
    image = _darkened(_enlarged(image.convert("RGB")))
    width, height = image.size
    margin = height // 50
    for mask in _words([title], height // 12, width - 2 * margin):
        _put(image, mask, margin, margin)
    for position, mask in enumerate(_words(footers, height // 22, width // 3 - 2 * margin)):
        free = width - 2 * margin - mask.width
        _put(image, mask, margin + free * position // 2, height - margin - mask.height)
    return image


def _enlarged(image: Image.Image) -> Image.Image:
    factor = _SHORTEST_SIDE / min(image.size)
    if factor <= 1:
        return image
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def _darkened(image: Image.Image) -> Image.Image:
    """Black towards the top and bottom edge, so that white words can be read on anything."""
    edge = np.abs(np.linspace(-1, 1, image.height))[:, None, None]  # (H, 1, 1), 1 at the edges
    return Image.fromarray((np.asarray(image) * (1 - 0.75 * edge**3)).astype(np.uint8))


def _put(image: Image.Image, mask: Image.Image, left: int, top: int) -> None:
    image.paste((255, 255, 255), (left, top), mask)


def _words(texts: Sequence[str], height: int, width: int) -> list[Image.Image]:
    """Masks of one size of letters, as high as `height` unless the longest would be wider than `width`."""
    masks = [_mask(text) for text in texts]
    factor = min(height / masks[0].height, width / max(mask.width for mask in masks))
    return [
        mask.resize((max(1, round(mask.width * factor)), max(1, round(mask.height * factor))), Image.Resampling.LANCZOS)
        for mask in masks
    ]


def _mask(text: str) -> Image.Image:
    """The words in white on black, one line high whatever letters they have."""
    try:
        font = ImageFont.load_default(_FONT_SIZE)
    except TypeError:  # Pillow before 10.1 has one small font of Latin letters only
        font = ImageFont.load_default()
        text = text.encode("latin-1", "replace").decode("latin-1")
    _, top, _, bottom = (round(side) for side in font.getbbox("ÀÅgjpq|"))
    left, _, right, _ = (round(side) for side in font.getbbox(text))
    mask = Image.new("L", (max(1, right - left), bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    return mask
