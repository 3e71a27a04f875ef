"""Masks that are painted on the page: their size, their encoding as text, saving and deleting.

Sizes are (width, height) in pixels of the upright image.
"""

from __future__ import annotations

import base64
import binascii
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ti_trainer.data.caption_files import composed
from ti_trainer.data.image_files import find_images
from ti_trainer.data.listing import LEFT_OUT, files_in, is_image, unspread_of
from ti_trainer.data.mask_names import ATTENTION, MASKS, mark_of
from ti_trainer.data.masks import masks_beside, read_mask
from ti_trainer.data.open_image import on_white, opened_image
from ti_trainer.data.upright import upright, upright_size
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.files import atomic

LONGEST_PX = 1024  # of a mask: training looks at its mean over 8 x 8 px of an image that is seldom larger
KEPT = "masks"  # within "left out": from there they are not brought back as if they were images


def image_of(folder: Path, name: str) -> Path:
    """The image of that name in a folder; DatasetError if there is none: a name is looked up, and never made a path."""
    found = next((path for path in find_images(folder) if path.name == name), None)
    if found is None:
        message = f"There is no image {name} in {folder} any more: open the folder again."
        raise DatasetError(message)
    return found


def mask_of(image: Path) -> Path | None:
    """The mask next to an image, if there is one."""
    return masks_beside(image.parent).get(image.stem)


def spec_of(mask: Path | None) -> str:
    """How its name ends, one of MASKS, which says what its greys mean; that of a new one if there is none yet."""
    return mark_of(mask.stem if mask else "") or ATTENTION


def size_of_mask(image: Path) -> tuple[int, int]:
    """How large an image's mask is painted: as large as itself, or smaller and of its shape."""
    with opened_image(image) as opened:
        return _capped(upright_size(opened))


def to_paint_on(image: Path) -> Image.Image:
    """The image, RGB, upright, as large as its mask; DatasetError for a broken file."""
    with opened_image(image) as opened:
        size = _capped(upright_size(opened))
        seen = on_white(upright(opened, size))
    return seen if seen.size == size else seen.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def to_edit(mask: Path, image: Path) -> Image.Image:
    """An image's mask as it is, grey, of the size to be painted at; DatasetError if it is damaged or of another shape."""
    with opened_image(image) as opened:
        original = upright_size(opened)
    grey = read_mask(mask, original)
    size = _capped(original)
    return grey if grey.size == size else grey.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def packed(mask: Image.Image) -> str:
    """Its greys, row by row, deflated, in base64: a browser that guards against fingerprints alters what PNGs say."""
    return base64.b64encode(zlib.compress(mask.convert("L").tobytes())).decode()


def unpacked(text: str, size: tuple[int, int]) -> Image.Image:
    """What `packed` made, of this size; ConfigError for anything else, however large it would become."""
    count = size[0] * size[1]
    try:
        unpacking = zlib.decompressobj()
        greys = unpacking.decompress(base64.b64decode(text, validate=True), count + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        message = f"Mask: found something else than deflated greys ({error}); open the image again."
        raise ConfigError(message) from error
    if len(greys) != count:
        found = len(greys) if len(greys) < count else "more"
        message = f"Mask: found {found} greys, expected {size[0]} x {size[1]}: was the image changed? Open it again."
        raise ConfigError(message)
    return Image.frombytes("L", size, greys)


def save_mask(image: Path, mask: Image.Image, kind: str, *, anew: bool = False) -> Path:
    """Write it beside its image, its greys being those of this kind, one of MASKS; where it lies.

    Masks of another kind or in another format are taken away, or they would count instead. So is what masks were before
    they were spread, unless this is one of those, retouched: not painted `anew`, nor where there was none of its kind.
    ConfigError for an unknown kind, and for a mask that marks nothing.
    """
    if kind not in MASKS:
        message = f"Mask: found the kind {kind!r}, expected one of {', '.join(MASKS)}: reload the page."
        raise ConfigError(message)
    if not mask.getbbox():
        message = "The mask is empty: paint the areas to train on. To train on the whole image, delete its mask."
        raise ConfigError(message)
    before = _masks(image)
    path = image.with_name(f"{image.stem}{kind}.png")
    with atomic(path) as new:
        mask.convert("L").save(new, "PNG")
    _keep(each for each in before if each != path)
    retouched = not anew and path.stem in {each.stem for each in before}
    _keep(each for each in _unspread(image) if not (retouched and each.stem.startswith(path.stem)))
    return path


def take_away(image: Path) -> list[Path]:
    """Move all masks of an image to the subfolder "left out/masks", where nothing is overwritten; where they are now.

    What they were before they were spread goes with them, or a new mask would be taken for one that was.
    """
    return _keep(_masks(image) + _unspread(image))


def _capped(image: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, LONGEST_PX / max(image))
    return max(1, round(image[0] * scale)), max(1, round(image[1] * scale))


def _masks(image: Path) -> list[Path]:
    stems = {composed(image.stem + kind) for kind in MASKS}
    return [path for path in files_in(image.parent) if composed(path.stem) in stems and is_image(path)]


def _unspread(image: Path) -> list[Path]:
    """a_att.unspread, a_att-2.unspread, ..."""
    stems = {image.stem + kind for kind in MASKS}
    return [path for path in files_in(image.parent) if unspread_of(path) in stems]


def _keep(masks: Iterable[Path]) -> list[Path]:
    moved = []
    for mask in masks:
        folder = mask.parent / LEFT_OUT / KEPT
        folder.mkdir(parents=True, exist_ok=True)
        target, number = folder / mask.name, 1
        while os.path.lexists(target):
            number += 1
            target = folder / f"{mask.stem} ({number}){mask.suffix}"
        mask.rename(target)
        moved.append(target)
    return moved
