"""The pixels of an image as it is seen: turned as EXIF says, at 8 bits a channel. Needs no torch.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

ORIENTATION = 0x0112  # EXIF


def upright_size(opened: Image.Image) -> tuple[int, int]:
    """The size of an image held upright, from its header."""
    return _stored_size(opened)[::-1] if _lies(opened) else opened.size


def upright(opened: Image.Image, at_least: tuple[int, int] | None = None) -> Image.Image:
    """The image of an opened file held upright, of 8 bits a channel, the first of several frames.

    A JPEG is decoded smaller where that is quick, but not smaller than `at_least`.
    """
    if at_least is not None:
        opened.draft("RGB", at_least[::-1] if _lies(opened) else at_least)
    if isinstance(opened, TiffImageFile):
        opened.load()  # turns it; Pillow before 10 then keeps the orientation, and exif_transpose would turn it again
        return eight_bit(opened.copy())
    return eight_bit(ImageOps.exif_transpose(opened))


def has_alpha(image: Image.Image) -> bool:
    """Whether it may be transparent somewhere."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def eight_bit(image: Image.Image) -> Image.Image:
    """Greys of 16 bits, and those between 0 and 1, brought to 8: Pillow itself would cut them off at 255."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    pixels = np.asarray(image)
    scale = 1 / 257 if image.mode != "F" else 255 if pixels.max() <= 1 else 1
    grey = Image.fromarray((pixels * scale).clip(0, 255).astype(np.uint8))
    if isinstance(see_through := image.info.get("transparency"), int):  # the grey that is
        alpha = Image.fromarray(np.where(pixels == see_through, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha))
    return grey


def _lies(opened: Image.Image) -> bool:
    """Whether it has to be turned by a quarter. Pillow's own getexif for PNG would decode the whole image for it."""
    return Image.Image.getexif(opened).get(ORIENTATION, 1) >= 5


def _stored_size(opened: Image.Image) -> tuple[int, int]:
    """The size before it is turned. That of a TIFF is given upright: by Pillow 11 always, before that once it is loaded."""
    if isinstance(opened, TiffImageFile):
        return opened.tag_v2[IMAGEWIDTH], opened.tag_v2[IMAGELENGTH]
    return opened.size
