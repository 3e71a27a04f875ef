"""Spread painted masks over the whole object, by the attention of a VAE: DreamArtist's "Process Att-Map".

C latent channels, H W latent height and width; sizes are (width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ti_trainer.data.image_files import find_images
from ti_trainer.data.listing import UNSPREAD
from ti_trainer.data.masks import masks_beside, read_mask
from ti_trainer.data.open_image import on_white, opened_image
from ti_trainer.data.upright import upright
from ti_trainer.errors import DatasetError
from ti_trainer.files import atomic, write_bytes
from ti_trainer.model import DiffusionModel

LONGEST_PX = 512  # of the image that the VAE is shown: its attention takes the fourth power of that in memory
PER_PLACE_PX = 8


def spread(mask: Tensor, attention: Tensor) -> Tensor:
    """Spread a mask (1, H, W) in [0, 1]: each position gets its attention (H W, H W) to the marked ones, less the mean.

    clamp(v A^T - mean(v) + v, 0, 1), as DreamArtist-sd-webui-extension has it.
    """
    marked = mask.flatten()
    return (attention @ marked - marked.mean() + marked).clamp(0, 1).view_as(mask)


def spread_mask(model: DiffusionModel, image: Image.Image, mask: Image.Image) -> Image.Image:
    """The mask of an image, spread: grey, of the image's size. Of the mask's size only the shape matters."""
    scale = min(1.0, LONGEST_PX / max(image.size)) / PER_PLACE_PX
    width, height = (max(1, round(side * scale)) for side in image.size)
    seen = image.convert("RGB").resize((width * PER_PLACE_PX, height * PER_PLACE_PX), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].float() / 127.5 - 1  # (1, 3, 8 H, 8 W)
    small = mask.convert("L").convert("F").resize((width, height), Image.Resampling.BOX)
    marked = torch.from_numpy(np.array(small))[None] / 255  # (1, H, W)
    found = spread(marked, model.image_attention(pixels).cpu())
    large = Image.fromarray(found[0].numpy() * 255).resize(image.size, Image.Resampling.BICUBIC)
    return Image.fromarray(np.asarray(large).round().clip(0, 255).astype(np.uint8))


def spread_folder(
    folder: Path, open_model: Callable[[], DiffusionModel], tell: Callable[[str], None], *, again: bool = False
) -> Iterator[Path]:
    """Spread the masks beside the images of a folder, a_att.png and a-masklabel.png, and yield each that was.

    What a mask was before is kept as a_att.unspread. One that was spread is passed over, unless `again`: then what it is now
    is kept besides, as a_att-2.unspread. `tell` gets a sentence for each skipped mask. The model is opened only if
    it is needed. DatasetError if there is no mask, ModelError if the model's VAE cannot.
    """
    images = find_images(folder)
    masks = masks_beside(folder)
    if not masks:
        message = f"There are no masks in {folder}: paint at least one, a grey image named a_att.png for a.png or a.jpg."
        raise DatasetError(message)
    opened = cache(open_model)
    for stem, mask in masks.items():
        if mask.with_suffix(UNSPREAD).exists() and not again:
            tell(f"{mask.name} was spread before: {mask.stem}{UNSPREAD} is what it was.")
            continue
        try:
            upright_image, painted = _read(next(each for each in images if each.stem == stem), mask)
        except Exception as error:  # a damaged file provokes anything
            tell(f"{mask.name} stays as it is: {error}")
        else:
            yield _replaced(mask, spread_mask(opened(), upright_image, painted))


def _read(image: Path, mask: Path) -> tuple[Image.Image, Image.Image]:
    if _spread_name(mask) != mask and _spread_name(mask).exists():
        message = f"{_spread_name(mask).name} is there besides: take one of them away."
        raise DatasetError(message)
    with opened_image(image) as opened:
        shown = on_white(upright(opened))
    return shown, read_mask(mask, shown.size)


def _replaced(mask: Path, made: Image.Image) -> Path:
    """Replace a mask, after a backup of its file; returns the new path."""
    kept, number = mask.with_suffix(UNSPREAD), 1
    while kept.exists():
        number += 1
        kept = mask.with_name(f"{mask.stem}-{number}{UNSPREAD}")
    write_bytes(kept, mask.read_bytes())
    name = _spread_name(mask)
    with atomic(name) as new:
        made.save(new)
    if name != mask:
        mask.unlink()
    return name


def _spread_name(mask: Path) -> Path:
    """Whatever its format was: a spread mask loses nothing."""
    return mask if mask.suffix.lower() == ".png" else mask.with_suffix(".png")
