"""Aspect-ratio buckets: sizes of about the same number of pixels, from which each image gets the closest one."""

from __future__ import annotations

import math
from functools import lru_cache

STEP = 64  # px
LONGEST = 2  # times the side of the square of the same pixels; more extreme images are cropped


@lru_cache
def bucket_sizes(budget: int) -> tuple[tuple[int, int], ...]:
    """Every (width, height) in steps of 64 px that has no more than `budget` pixels and could not be higher."""
    side = math.sqrt(budget)
    sides = range(STEP, int(LONGEST * side) + 1, STEP)
    lying = {(width, min(budget // width, int(LONGEST * side)) // STEP * STEP) for width in sides}
    both = lying | {(height, width) for width, height in lying}
    return tuple(sorted(each for each in both if min(each) >= max(STEP, side / LONGEST // STEP * STEP)))


def bucket_size(size: tuple[int, int], budget: int) -> tuple[int, int]:
    """The bucket whose shape is nearest to an image of this (width, height); of equally near ones the largest."""
    shape = math.log(size[0] / size[1])
    # Rounded, so that an image and itself on its side get the same bucket whatever floating point says.
    return min(
        bucket_sizes(budget), key=lambda each: (round(abs(math.log(each[0] / each[1]) - shape), 9), -each[0] * each[1])
    )
