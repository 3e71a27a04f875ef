"""Picture files: which there are, how large they are held upright, and their pixels. Knows no tensors: workers load this.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from ti_trainer.errors import DatasetError

ORIENTATION = 0x0112  # EXIF
FLIPPED = "-flipped"  # how the names of mirrored copies end
LEFT_OUT = "left out"  # the sub-folder for pictures that somebody took out of a data set
ATTENTION = "_att"  # how DreamArtist's masks are named, which lie beside their pictures
MASKS = (ATTENTION, "-masklabel")  # all that lie there: OneTrainer's, too
UNSPREAD = ".unspread"  # the ending of what a spread mask was before; no picture's, so nothing trains on it


@lru_cache
def image_endings() -> frozenset[str]:
    """The endings of picture files that can be opened here, in lower case and with their dots."""
    readable = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(readable - {".pdf", ".eps", ".ps", ".mpg", ".mpeg"})


def is_image(path: Path) -> bool:
    """Whether a file's name says that it is a picture, and not a hidden one."""
    return path.suffix.lower() in image_endings() and not path.name.startswith(".")


def unspread_of(path: Path) -> str:
    """The stem of the mask whose earlier state a file keeps, "a_att" of a_att.unspread and a_att-2.unspread; "" if none."""
    return re.sub(r"-\d+$", "", path.stem) if path.suffix == UNSPREAD else ""


def pictures_among(paths: Iterable[Path]) -> list[Path]:
    """Those of the files, of one folder or of several, whose names say that they are pictures; by name, without masks."""
    return without_masks(sorted(path for path in paths if is_image(path)))


def without_masks(pictures: Iterable[Path]) -> list[Path]:
    """The pictures that are no mask of another one beside them: of a.jpg, a_att.png and a-masklabel.png are."""
    pictures = list(pictures)
    masks = {path.parent / (path.stem + mask) for path in pictures for mask in MASKS}
    return [path for path in pictures if path.with_suffix("") not in masks]


def find_images(folder: Path) -> list[Path]:
    """Every picture of the folder by name, whatever its format, but no masks; DatasetError if there is none."""
    if not folder.is_dir():
        message = f"The data set directory {folder} does not exist: name a folder with pictures."
        raise DatasetError(message)
    found = pictures_among(folder.iterdir())
    if not found:
        message = f"There are no pictures in {folder}: put some there (.png, .jpg, .webp, ...), 5 to 30 of the same thing."
        raise DatasetError(message)
    return found


def upright_size(opened: Image.Image) -> tuple[int, int]:
    """The size of a picture held upright, from its header."""
    return _stored_size(opened)[::-1] if _lies(opened) else opened.size


def upright(opened: Image.Image, at_least: tuple[int, int] | None = None) -> Image.Image:
    """The picture of an opened file held upright, of 8 bits a channel, the first of several frames.

    A JPEG is decoded smaller where that is quick, but not smaller than `at_least`.
    """
    if at_least is not None:
        opened.draft("RGB", at_least[::-1] if _lies(opened) else at_least)
    if isinstance(opened, TiffImageFile):
        opened.load()  # turns it; Pillow before 10 then keeps the orientation, and exif_transpose would turn it again
        return eight_bit(opened.copy())
    return eight_bit(ImageOps.exif_transpose(opened))


def has_alpha(picture: Image.Image) -> bool:
    """Whether it may be transparent somewhere."""
    return picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info


def eight_bit(picture: Image.Image) -> Image.Image:
    """Greys of 16 bits brought to 8: Pillow itself would cut them off at 255."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))


def _lies(opened: Image.Image) -> bool:
    """Whether it has to be turned by a quarter. Pillow's own getexif for PNG would decode the whole picture for it."""
    return Image.Image.getexif(opened).get(ORIENTATION, 1) >= 5


def _stored_size(opened: Image.Image) -> tuple[int, int]:
    """The size before it is turned. That of a TIFF is given upright: by Pillow 11 always, before that once it is loaded."""
    if isinstance(opened, TiffImageFile):
        return opened.tag_v2[IMAGEWIDTH], opened.tag_v2[IMAGELENGTH]
    return opened.size
