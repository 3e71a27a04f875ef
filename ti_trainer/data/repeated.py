"""The samples with a phrase: few, and used again and again, since their targets are expensive (`training.preservation`).

Each image has its own, so that every image is used as often as without them. Chance would not cover the timesteps with so
few, so these are spread evenly among them, as the phrases are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

AT_LEAST = 32  # of them at a time; with more images than that, one for each image
OF_ONE_IMAGE = 256  # divided by the number of images: few images are soon overfitted with the same noise
SAMPLES_FOR_EACH = 32  # samples of a run after which others take their place, for each of them


@dataclass(frozen=True)
class RepeatedSamples:
    """Those of a dataset with so many images. They are numbered through: by period of the run, then by image."""

    num_images: int

    @property
    def of_an_image(self) -> int:
        """How many each image has in a period."""
        images = max(1, self.num_images)
        return -(-max(AT_LEAST, OF_ONE_IMAGE // images) // images)

    @property
    def in_a_period(self) -> int:
        """How many there are in a period."""
        return self.of_an_image * max(1, self.num_images)

    @property
    def period(self) -> int:
        """How many samples of a run a period has."""
        return SAMPLES_FOR_EACH * self.in_a_period

    def number_for(self, sample: int, image: int, rng: np.random.Generator) -> int:
        """The number of one of an image's, for a sample by its number in the run; rng chooses."""
        own = image * self.of_an_image + int(rng.integers(self.of_an_image))
        return sample // self.period * self.in_a_period + own

    def timestep_of(self, number: int, drawn: int, num_timesteps: int, seed: tuple[int, ...]) -> int:
        """The timestep of the one with this number: a random one, within one of as many equal parts of all timesteps."""
        period, own = divmod(number, self.in_a_period)
        part = _order(self.in_a_period, (*seed, period))[own]
        return (part * num_timesteps + drawn) // self.in_a_period


@lru_cache(maxsize=256)
def _order(count: int, seed: tuple[int, ...]) -> Sequence[int]:
    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order
