"""Masks: grey images that say how much each place of another image counts. Where they lie, and their pixels.

Knows no tensors: workers load this. What greys mean is in mask_weight.py.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ti_trainer.data.caption_files import composed
from ti_trainer.data.image_files import files_in, is_image, upright
from ti_trainer.data.mask_names import MASKS
from ti_trainer.data.open_image import on_black, opened_image
from ti_trainer.errors import DatasetError

SAME_SHAPE = 0.02  # how much the shapes of an image and its mask may differ, as a fraction


def find_masks(folder: Path) -> dict[str, Path]:
    """The images of a folder of masks, by the stems of those that they belong to; DatasetError if there is no folder."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        message = f"The mask directory {folder} {what}: name a folder with a grey image for each image."
        raise DatasetError(message)
    return {path.stem: path for path in reversed(files_in(folder)) if is_image(path)}


def masks_beside(folder: Path) -> dict[str, Path]:
    """The masks among the images of a folder, a_att.png and a-masklabel.png, by the stems of those that they belong to."""
    if not folder.is_dir():
        return {}
    files = [path for path in files_in(folder) if is_image(path)]
    named = [(path, mask) for mask in reversed(MASKS) for path in files if path.stem.endswith(mask)]
    found = {composed(path.stem.removesuffix(mask)): path for path, mask in named}
    return {path.stem: found[stem] for path in files if (stem := composed(path.stem)) in found}


def read_mask(path: Path, of: tuple[int, int]) -> Image.Image:
    """The mask of an image of this size, (width, height) in px: grey, upright, as large as it is.

    What is transparent marks nothing. DatasetError for one of another shape, or a broken file.
    """
    try:
        with opened_image(path) as opened:
            mask = on_black(upright(opened))
    except DatasetError as error:
        message = f"its mask {path.name} cannot be read: {error}"
        raise DatasetError(message) from error
    if abs(mask.width * of[1] / (mask.height * of[0]) - 1) > SAME_SHAPE:
        size = f"{mask.width} x {mask.height} px"
        message = f"its mask {path.name} has {size}, expected the shape of {of[0]} x {of[1]} px"
        raise DatasetError(message)
    return mask
