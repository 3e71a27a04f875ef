"""Pictures on disk: which there are, and what of them is trained on. Knows nothing of captions or latents.

H, W in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ti_trainer.errors import DatasetError

MULTIPLE = 8  # the VAE works on blocks of 8 px


@dataclass(frozen=True)
class Frame:
    """How pictures are fitted: to a size, or, where it is None, not resized but cut to multiples of 8 px."""

    size: tuple[int, int] | None
    use_alpha: bool = False


@lru_cache
def image_endings() -> frozenset[str]:
    """The endings of picture files that can be opened here, in lower case and with their dots."""
    readable = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(readable - {".pdf", ".eps", ".ps", ".mpg", ".mpeg"})


def find_images(folder: Path) -> list[Path]:
    """Every picture of the folder by name, whatever its format; DatasetError if there is none."""
    if not folder.is_dir():
        message = f"The data set directory {folder} does not exist: name a folder with pictures."
        raise DatasetError(message)
    found = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in image_endings() and not path.name.startswith(".")
    )
    if not found:
        message = f"There are no pictures in {folder}: put some there (.png, .jpg, .webp, ...), 5 to 30 of the same thing."
        raise DatasetError(message)
    return found


def load_image(path: Path, frame: Frame) -> tuple[Tensor, Tensor | None]:
    """Pixels (3, H, W) in [-1, 1], upright, and alpha (1, H, W) in [0, 1] if it is used and the picture has one.

    A picture of another shape is cropped at its middle, never squashed. Raises OSError and others that Pillow raises for a
    broken file.
    """
    with Image.open(path) as opened:
        if frame.size is not None:
            side = 2 * max(frame.size)  # of both sides: the picture may lie on one
            opened.draft("RGB", (side, side))
        picture = eight_bit(ImageOps.exif_transpose(opened))
        has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
        picture = picture.convert("RGBA" if has_alpha and frame.use_alpha else "RGB")
    picture = _fitted(picture, frame.size)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (3 or 4, H, W)
    alpha = pixels[3:].float() / 255 if len(pixels) == 4 else None
    return pixels[:3].float() / 127.5 - 1, alpha


def eight_bit(picture: Image.Image) -> Image.Image:
    """Greys of 16 bits brought to 8: Pillow itself would cut them off at 255."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))


def _fitted(picture: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    if size is not None:
        return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.BICUBIC)
    width, height = (side // MULTIPLE * MULTIPLE for side in picture.size)
    if not width or not height:
        message = f"the picture is {picture.width} x {picture.height} px; at least {MULTIPLE} x {MULTIPLE} are needed"
        raise DatasetError(message)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
