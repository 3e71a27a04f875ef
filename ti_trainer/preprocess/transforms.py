"""Crop, resize and flip a source image and its mask.

Sizes are (width, height) in pixels of the upright image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.data.listing import FLIPPED
from ti_trainer.data.masks import read_mask
from ti_trainer.data.open_image import on_white, opened_image
from ti_trainer.data.upright import has_alpha, upright, upright_size
from ti_trainer.errors import DatasetError
from ti_trainer.preprocess import crops, focal
from ti_trainer.preprocess.faces import Faces

DEBUG = "-debug"
SAVING: dict[str, dict[str, Any]] = {  # PNG level 1 is several times faster than the default
    "png": {"format": "PNG", "compress_level": 1},
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "quality": 95},
}


@dataclass(frozen=True)
class Result:
    """An image that was made, and the suffix of its file name: "", "-2", "-flipped" or "-2-flipped".

    `mask` is grey and has the size of the image.
    """

    suffix: str
    image: Image.Image
    mask: Image.Image | None = None

    @property
    def flipped(self) -> bool:
        """Whether it is the mirrored copy of the result before."""
        return self.suffix.endswith(FLIPPED)

    @property
    def is_debug(self) -> bool:
        """Whether it only shows how the crop was found, and is not part of the dataset."""
        return self.suffix.endswith(DEBUG)


def results(path: Path, config: PreprocessConfig, faces: Faces | None, mask: Path | None = None) -> list[Result]:
    """All results of a source image, each with its part of the mask.

    DatasetError if no size fits, the mask has another aspect ratio, or a file is broken.
    """
    with opened_image(path) as opened:
        size = upright_size(opened)
        wanted = (config.width, config.height)
        parts = crops.parts(size, wanted, config.split_threshold, config.overlap_ratio) if config.split else []
        by_focus = config.resize == "focal" and not parts and size[0] != size[1]
        cuts = parts or [crops.centre(size, wanted) if by_focus else _cut(size, config)]
        image = _without_alpha(upright(opened, crops.draft_size(size, cuts)), keep=config.keep_alpha)
    grey = read_mask(mask, size) if mask else None
    made: list[Result] = []
    if by_focus:
        scaled = on_white(image).resize(crops.covering(size, wanted), Image.Resampling.BICUBIC)
        weights = focal.Weights(config.face_weight, config.entropy_weight, config.edges_weight)
        focus = focal.find(scaled, wanted, weights, faces)
        cuts = [crops.focal(size, wanted, focus.point)]
        if config.debug_image:
            made.append(Result(DEBUG, focal.annotate(scaled, focus, _within(cuts[0], size, scaled.size))))
    for number, cut in enumerate(cuts, start=1):
        suffix = f"-{number}" if len(cuts) > 1 else ""
        part = crops.render(grey, cut, size, Image.Resampling.BILINEAR) if grey else None  # Lanczos would ring
        made += _with_mirrored(Result(suffix, crops.render(image, cut, size), part), flip=config.flip)
    return made


def _cut(size: crops.Size, config: PreprocessConfig) -> crops.Cut:
    """The crop, for modes in which it depends only on the size of the image."""
    wanted = (config.width, config.height)
    if config.resize == "keep":
        return crops.whole(size)
    if config.resize == "buckets":
        return crops.bucket(size, wanted[0] * wanted[1])
    if config.resize != "auto-size":
        return crops.centre(size, wanted)
    cut = crops.auto_sized(
        size,
        min_side=config.min_side,
        max_side=config.max_side,
        min_area=config.min_area,
        max_area=config.max_area,
        objective=config.objective,
        max_error=config.max_error,
    )
    if cut is None:
        message = f"no size within the limits fits {size[0]} x {size[1]}: raise the error threshold, or widen the limits"
        raise DatasetError(message)
    return cut


def _with_mirrored(made: Result, *, flip: bool) -> Iterator[Result]:
    yield made
    if flip:
        yield Result(made.suffix + FLIPPED, ImageOps.mirror(made.image), ImageOps.mirror(made.mask) if made.mask else None)


def _within(cut: crops.Cut, size: crops.Size, scaled: crops.Size) -> crops.Box:
    """The cut's box in an image scaled from `size`."""
    across, down = scaled[0] / size[0], scaled[1] / size[1]
    left, top, right, bottom = cut.box
    return (left * across, top * down, right * across, bottom * down)


def _without_alpha(image: Image.Image, *, keep: bool) -> Image.Image:
    """RGB on white; or RGBA, if transparency is kept and the image has any."""
    return image.convert("RGBA") if keep and has_alpha(image) else on_white(image)
