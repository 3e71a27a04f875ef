"""The samples with a phrase: a small number that is reused, since their targets are expensive (`training.preservation`).

Each image has samples of its own, so it is used as often as without phrases. Timesteps are stratified,
since a few random ones would leave gaps; phrases are used in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

AT_LEAST = 32  # samples in a period; with more images than that, one for each image
OF_ONE_IMAGE = 256  # samples in a period, divided by the number of images: few images overfit if the noise is reused
SAMPLES_FOR_EACH = 32  # length of a period in samples of the run, per sample with a phrase; then they are replaced


@dataclass(frozen=True)
class RepeatedSamples:
    """The samples with a phrase of a dataset of `num_images` images, numbered by period of the run, then by image."""

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
        """The number of a random one of an image, to replace the sample with this number in the run."""
        own = image * self.of_an_image + int(rng.integers(self.of_an_image))
        return sample // self.period * self.in_a_period + own

    def timestep_of(self, number: int, drawn: int, num_timesteps: int, seed: tuple[int, ...]) -> int:
        """The timestep of the sample with this number: `drawn` (0 to num_timesteps) scaled into the sample's stratum."""
        period, own = divmod(number, self.in_a_period)
        part = _order(self.in_a_period, (*seed, period))[own]
        return (part * num_timesteps + drawn) // self.in_a_period


@lru_cache(maxsize=256)
def _order(count: int, seed: tuple[int, ...]) -> Sequence[int]:
    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order
