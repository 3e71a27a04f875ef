"""The geometry of crops: which part of an image is resized to which size.

Sizes are (width, height), boxes (left, top, right, bottom), in pixels of the upright image. The rules are those of the
WebUI's last Preprocess tab, the parent of its commit 11d23e8c.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from ti_trainer.data.buckets import bucket_size
from ti_trainer.errors import DatasetError

Size = tuple[int, int]
Box = tuple[float, float, float, float]
LONGEST = 16  # times as long as wide; longer images would become gigantic, or thousands of parts
STEP = 64  # px between sizes of an auto-sized crop
DRAFT_RESERVE = 1.4  # a decoder reduces coarsely; this factor is left to the filter, which hides it (40 dB)


@dataclass(frozen=True)
class Cut:
    """The part of an image within `box`, resized to `size`."""

    box: Box
    size: Size


def whole(source: Size) -> Cut:
    """The whole image, not resized."""
    return Cut((0, 0, *source), source)


def centre(source: Size, wanted: Size) -> Cut:
    """The middle: resized until one side fits and the other is at least as long, then cut. As 'crop and resize'."""
    scaled = _scaled(source, wanted)
    left, top = (each // 2 - side // 2 for each, side in zip(scaled, wanted, strict=True))
    return _cut(source, scaled, (left, top), wanted)


def bucket(source: Size, budget: int) -> Cut:
    """The middle, in the bucket of about `budget` pixels whose shape is nearest."""
    return _exact_centre(source, bucket_size(source, budget))


def focal(source: Size, wanted: Size, focus: tuple[float, float]) -> Cut:
    """A crop around a point, within the image; the point is in the image scaled to `covering(source, wanted)`.

    DatasetError as for that.
    """
    scaled = covering(source, wanted)
    left, top = (min(max(int(at) - side // 2, 0), each - side) for at, side, each in zip(focus, wanted, scaled, strict=True))
    return _cut(source, scaled, (left, top), wanted)


def covering(source: Size, wanted: Size) -> Size:
    """The smallest size with the image's aspect ratio that covers the wanted one; the longer side is rounded down.

    DatasetError for an image more than 16 times as long as wide.
    """
    if max(source) > LONGEST * min(source):
        message = (
            f"the image is {source[0]} x {source[1]} px; focal crops and splitting need an aspect ratio of at most "
            f"{LONGEST}:1: crop it first, or use a center crop without splitting"
        )
        raise DatasetError(message)
    return _scaled(source, wanted)


def _scaled(source: Size, wanted: Size) -> Size:
    (width, height), (across, down) = source, wanted
    # Whole numbers: in floating point the WebUI's focal crop misses a pixel now and then, and has a black line there.
    return (across, height * across // width) if across * height > down * width else (width * down // height, down)


def parts(source: Size, wanted: Size, threshold: float, overlap: float) -> list[Cut]:
    """The parts of a long image, of which one part shows at most `threshold`; they overlap by at least `overlap`.

    Empty for other images; DatasetError as for `covering`.
    """
    width, height = source
    upright = height > width
    ratio = (width * wanted[1]) / (height * wanted[0]) if upright else (height * wanted[0]) / (width * wanted[1])
    if ratio >= 1 or ratio > threshold:
        return []
    scaled = covering(source, wanted)
    along = 1 if upright else 0
    length, part = scaled[along], wanted[along]
    # Rounded, and the starts in whole numbers: floating point gives the WebUI a part too many at times, or stops 1 px early.
    count = math.ceil(round((length - part * overlap) / (part * (1 - overlap)), 9))
    if count < 2:  # too long by less than a pixel; the WebUI divides by zero
        return []
    starts = ((length - part) * number // (count - 1) for number in range(count))
    return [_cut(source, scaled, (0, start) if upright else (start, 0), wanted) for start in starts]


def auto_sized(
    source: Size, *, min_side: int, max_side: int, min_area: int, max_area: int, objective: str, max_error: float
) -> Cut | None:
    """The centre crop to the best size within the limits, in steps of 64 px from `min_side`; None if no size fits.

    The error of a size is the difference between its aspect ratio and the image's. The other objective breaks ties.
    """

    def error(size: Size) -> float:
        ratio = source[0] / source[1] / (size[0] / size[1])
        return 1 - min(ratio, 1 / ratio)

    def merit(size: Size) -> tuple[float, float]:
        area, accuracy = size[0] * size[1], -error(size)
        return (area, accuracy) if objective == "maximize area" else (accuracy, area)

    sides = range(min_side, max_side + 1, STEP)
    sizes = ((width, height) for width in sides for height in sides if min_area <= width * height <= max_area)
    best = max((each for each in sizes if error(each) <= max_error), key=merit, default=None)
    return best and _exact_centre(source, best)


def render(
    image: Image.Image, cut: Cut, source: Size, resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Crop and resize. `image` may have been decoded at a smaller size than `source`."""
    across, down = image.width / source[0], image.height / source[1]
    left, top, right, bottom = cut.box
    box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    if box == (0, 0, *cut.size) == (0, 0, *image.size):
        return image
    return image.resize(cut.size, resampling, box)


def draft_size(source: Size, cuts: Iterable[Cut]) -> Size:
    """The smallest size to decode an image at, so that none of its cuts is enlarged."""
    largest = max(cut.size[0] / (cut.box[2] - cut.box[0]) for cut in cuts)  # a cut keeps its shape: height says the same
    scale = min(1.0, DRAFT_RESERVE * largest)
    return (math.ceil(source[0] * scale), math.ceil(source[1] * scale))


def _cut(source: Size, scaled: Size, at: tuple[int, int], wanted: Size) -> Cut:
    """The crop at the point `at` of the image scaled to `scaled`."""
    across, down = source[0] / scaled[0], source[1] / scaled[1]
    return Cut((at[0] * across, at[1] * down, (at[0] + wanted[0]) * across, (at[1] + wanted[1]) * down), wanted)


def _exact_centre(source: Size, wanted: Size) -> Cut:
    """The middle to a fraction of a pixel, of exactly the wanted shape."""
    width = min(source[0], wanted[0] * source[1] / wanted[1])
    height = min(source[1], wanted[1] * source[0] / wanted[0])
    left, top = (source[0] - width) / 2, (source[1] - height) / 2
    return Cut((left, top, source[0] - left, source[1] - top), wanted)
