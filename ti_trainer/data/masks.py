"""Find and read masks: grey images that weight the pixels of another image in the loss.

Needs no torch, because preprocessing workers import it. functional/mask_weight.py turns greys into weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ti_trainer.data.caption_files import composed
from ti_trainer.data.listing import files_in, is_image
from ti_trainer.data.mask_names import MASKS
from ti_trainer.data.open_image import on_black, opened_image
from ti_trainer.data.upright import upright
from ti_trainer.errors import DatasetError

SAME_SHAPE = 0.02  # by how much the aspect ratios of an image and its mask may differ, as a fraction


def find_masks(folder: Path) -> dict[str, Path]:
    """The masks in a folder of masks, by the stem of their image; DatasetError if the folder does not exist."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        message = f"The mask directory {folder} {what}. Choose a folder with a grey image for each image."
        raise DatasetError(message)
    return {path.stem: path for path in reversed(files_in(folder)) if is_image(path)}


def masks_beside(folder: Path) -> dict[str, Path]:
    """The masks in a folder of images, see `masks_among`; none if the folder does not exist."""
    return masks_among(files_in(folder)) if folder.is_dir() else {}


def masks_among(files: Iterable[Path]) -> dict[str, Path]:
    """The masks among the files of one folder, a_att.png and a-masklabel.png, by the stem of their image."""
    files = [path for path in files if is_image(path)]
    named = [(path, mask) for mask in reversed(MASKS) for path in files if path.stem.endswith(mask)]
    found = {composed(path.stem.removesuffix(mask)): path for path, mask in named}
    return {path.stem: found[stem] for path in files if (stem := composed(path.stem)) in found}


def read_mask(path: Path, of: tuple[int, int]) -> Image.Image:
    """Read the mask of an image of size `of`, (width, height) in px: grey, upright, in its own size.

    Transparent pixels become black. DatasetError if the aspect ratio differs from the image's, or the file is broken.
    """
    try:
        with opened_image(path) as opened:
            mask = on_black(upright(opened))
    except DatasetError as error:
        message = f"its mask {path.name} cannot be read: {error}"
        raise DatasetError(message) from error
    if abs(mask.width * of[1] / (mask.height * of[0]) - 1) > SAME_SHAPE:
        size = f"{mask.width} x {mask.height} px"
        message = f"its mask {path.name} is {size}, expected the aspect ratio of {of[0]} x {of[1]} px"
        raise DatasetError(message)
    return mask
