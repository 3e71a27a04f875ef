"""Find the focal point of an image, around which to crop, from its edges, faces and regions of high contrast.

The rules and their numbers are those of the WebUI's last autocrop, the parent of its commit 11d23e8c. Positions and sizes
are in pixels of the image given: the source image scaled until it covers the crop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from ti_trainer.preprocess.crops import Box, Size
from ti_trainer.preprocess.faces import Faces, missing

Point = tuple[float, float]

STRIDE = 4  # px between windows
COLOURS = {"Edge": "#00F", "Entropy": "#FF0", "Face": "#F00"}
FRAME = "#0F0"
LINE = 150  # of the shorter side, one is the width of a line: to be seen in a thumbnail too


@dataclass(frozen=True)
class Weights:
    """How much each kind of points counts, 0 to 1. Of those that are found the shares sum to 1."""

    face: float = 0.9
    entropy: float = 0.15
    edges: float = 0.5


@dataclass(frozen=True)
class Found:
    """The points of a kind, and its share in the focal point."""

    kind: str
    points: tuple[Point, ...]
    share: float

    @property
    def centroid(self) -> Point:
        """The mean of the points."""
        x, y = (sum(each) / len(self.points) for each in zip(*self.points, strict=True))
        return x, y


@dataclass(frozen=True)
class Focus:
    """The focal point, and what it comes from."""

    point: tuple[int, int]
    found: tuple[Found, ...]


def find(image: Image.Image, wanted: Size, weights: Weights, faces: Faces | None) -> Focus:
    """The focal point of an RGB image for a crop of size `wanted`; its centre if nothing is found."""
    looks: tuple[tuple[str, float, Callable[[], list[Point]]], ...] = (
        ("Edge", weights.edges, lambda: _corners(image)),
        ("Entropy", weights.entropy, lambda: _most_uneven(image, wanted)),
        ("Face", weights.face, lambda: _face_points(image, faces)),
    )
    points = {kind: (weight, found) for kind, weight, look in looks if weight > 0 and (found := look())}
    if not points:
        # The WebUI takes the corner at the upper left then.
        return Focus((image.width // 2, image.height // 2), ())
    total = sum(weight for weight, _ in points.values())
    kinds = tuple(Found(kind, tuple(found), weight / total) for kind, (weight, found) in points.items())
    x, y = (round(sum(each.centroid[axis] * each.share for each in kinds)) for axis in (0, 1))
    return Focus((x, y), kinds)


def annotate(image: Image.Image, focus: Focus, box: Box) -> Image.Image:
    """A copy that shows why: each kind's points, its centroid with its share, the focal point and the crop's frame."""
    drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    largest = min(image.size) * 0.07
    line = max(1, min(image.size) // LINE)
    for each in focus.found:
        colour = COLOURS[each.kind]
        around = _around(each.centroid, largest * each.share)
        label = (min(max(around[0], 0), image.width - 80), max(around[1] - 15, 0))  # within the image
        draw.text(label, f"{each.kind}: {each.share:.2f}", fill=colour)
        draw.ellipse(around, outline=colour, width=line)
        if len(each.points) > 1:
            for point in each.points:
                draw.rectangle(_around(point, 4 * line), outline=colour, width=line)
    draw.ellipse(_around(focus.point, largest), outline=FRAME, width=line)
    left, top, right, bottom = (round(each) for each in box)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=FRAME, width=line)
    return drawn


def _around(point: Point, size: float) -> Box:
    half = size // 2
    return (point[0] - half, point[1] - half, point[0] + half, point[1] + half)


def _corners(image: Image.Image) -> list[Point]:
    """Where the greys change in two directions (Shi and Tomasi 1994), up to 100 points."""
    if text := missing():
        _warn(text)
        return []
    import cv2

    grey = image.convert("L")
    # The lowest tenth is painted over: signatures and watermarks are there.
    ImageDraw.Draw(grey).rectangle((0, image.height * 0.9, *image.size), fill="#999")
    found = cv2.goodFeaturesToTrack(
        np.array(grey), maxCorners=100, qualityLevel=0.04, minDistance=min(image.size) * 0.06, useHarrisDetector=False
    )
    return [] if found is None else [(float(x), float(y)) for x, y in found.reshape(-1, 2)]


def _most_uneven(image: Image.Image, wanted: Size) -> list[Point]:
    """The middle of the window whose dithered black and white are least balanced, without being all of one.

    The WebUI calls it entropy and sums -log2 of both shares, which is largest where their product is smallest. Windows move
    along the axis in which there is room; the WebUI moves them along the longer one: the same, wherever it crops well.
    """
    along = 0 if image.width > wanted[0] else 1
    grey = _dithered_grey(image)
    best, least = None, wanted[0] * wanted[1] * wanted[0] * wanted[1]
    for start in range(0, image.size[along] - wanted[along], STRIDE):
        left, top = (start, 0) if along == 0 else (0, start)
        counts = grey.crop((left, top, left + wanted[0], top + wanted[1])).convert("1").histogram()
        product = counts[0] * counts[255]
        if 0 < product < least:
            best, least = (left + wanted[0] // 2, top + wanted[1] // 2), product
    # Of an even image the WebUI takes the end, by a list that changes after it was chosen.
    return [best] if best else []


def _dithered_grey(image: Image.Image) -> Image.Image:
    """The greys that Pillow makes of an image when it dithers it: rounded down, other than those of convert("L")."""
    sums = np.asarray(image).astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    return Image.fromarray((sums // 1000).astype(np.uint8))


def _face_points(image: Image.Image, faces: Faces | None) -> list[Point]:
    """A point in the upper half of each face, about between its eyes."""
    if faces is None:
        return []
    return [(int(left + width * 0.5), int(top + height * 0.33)) for left, top, width, height in faces(image)]


@lru_cache
def _warn(text: str) -> None:
    """Say it once."""
    logging.getLogger(__name__).warning("Edges are not looked for. %s", text)
