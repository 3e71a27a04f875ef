"""Load an image for training: upright, fitted to a frame, with the weights of its pixels.

H, W in pixels; sizes are (width, height).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ti_trainer.config.training import TrainConfig
from ti_trainer.data.buckets import STEP, bucket_size, bucket_sizes
from ti_trainer.data.mask_names import ATTENTION
from ti_trainer.data.masks import read_mask
from ti_trainer.data.open_image import on_white, opened_image
from ti_trainer.data.upright import has_alpha, upright, upright_size
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.functional.mask_weight import attention

MULTIPLE = 8  # the VAE works on blocks of 8 px


@dataclass(frozen=True)
class Frame:
    """How images are fitted: to a size, or, if it is None, not resized but cropped to multiples of 8 px.

    With `buckets` an image is fitted to the closest bucket of about the pixels of `size`.
    """

    size: tuple[int, int] | None
    use_alpha: bool = False
    buckets: bool = False

    def __post_init__(self) -> None:
        """ConfigError if the size has room for no bucket."""
        if self.buckets and (self.size is None or not bucket_sizes(self.size[0] * self.size[1])):
            message = f"Use aspect-ratio buckets: found the size {self.size}, expected {STEP} x {STEP} px or more."
            raise ConfigError(message, "buckets")

    def size_for(self, image: tuple[int, int]) -> tuple[int, int] | None:
        """The size that an image of this one is fitted to; None if it is not resized."""
        if self.size is None or not self.buckets:
            return self.size
        return bucket_size(image, self.size[0] * self.size[1])


def frame_of(config: TrainConfig, default_size_px: int) -> Frame:
    """The frame of a run with these options; `default_size_px` is that of the model."""
    size = (config.width or default_size_px, config.height or default_size_px)
    return Frame(None if config.do_not_resize else size, config.use_alpha_weight, config.buckets)


class Loaded(NamedTuple):
    """Upright pixels (3, H, W) in [-1, 1], and their weights `counts` (1, H, W) from 0, or None if all are equal.

    `sizes` are original height and width, top and left of the crop in the resized image, height and width, in px.
    """

    pixels: Tensor
    counts: Tensor | None
    sizes: tuple[int, int, int, int, int, int]


def load_image(path: Path, frame: Frame, mask: Path | None = None) -> Loaded:
    """Load and fit an image. The weights of its pixels come from its mask, or else from its alpha channel, if that is used.

    Otherwise transparent pixels become white. An image of another aspect ratio is cropped to the centre with its mask, never
    stretched. DatasetError for a mask of another aspect ratio, and for a broken file.
    """
    with opened_image(path) as opened:
        original = upright_size(opened)
        size = frame.size_for(original)
        image = upright(opened, None if size is None else (2 * max(size), 2 * max(size)))
        with_alpha = frame.use_alpha and mask is None and has_alpha(image)
        image = image.convert("RGBA") if with_alpha else on_white(image)
    pixels = _tensor(_fitted(image, size))  # (3 or 4, H, W)
    counts = pixels[3:] if len(pixels) == 4 else None
    if mask is not None:
        grey = read_mask(mask, original)
        if grey.size != image.size:
            grey = grey.resize(image.size, Image.Resampling.BILINEAR)
        counts = _tensor(_fitted(grey, size))
    counts = None if counts is None else counts.float()
    return Loaded(
        pixels[:3].float() / 127.5 - 1,
        counts if counts is None else attention(counts) if mask and mask.stem.endswith(ATTENTION) else counts / 255,
        (original[1], original[0], *_crop(original, size), *pixels.shape[1:]),
    )


def _tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)  # (channels, H, W)


def _fitted(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    if size is not None:
        return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    width, height = (side // MULTIPLE * MULTIPLE for side in image.size)
    if not width or not height:
        message = f"the image is {_px(image.size)}; at least {MULTIPLE} x {MULTIPLE} are needed"
        raise DatasetError(message)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _crop(original: tuple[int, int], size: tuple[int, int] | None) -> tuple[int, int]:
    """Top and left of what `_fitted` keeps, in px of the resized image."""
    width, height = size or (side // MULTIPLE * MULTIPLE for side in original)
    scale = 1 if size is None else max(width / original[0], height / original[1])
    return max(0, round(original[1] * scale - height)) // 2, max(0, round(original[0] * scale - width)) // 2


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"
