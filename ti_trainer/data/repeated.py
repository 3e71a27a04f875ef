"""The samples with a phrase: few, and used again and again, since their targets are expensive (`training.preservation`).

Chance would not cover images and timesteps with so few, so these are spread evenly among them, as the phrases are.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

IN_A_PERIOD, PERIOD = 32, 1024  # so many of them take the place of others during so many samples of a run, then others do


@dataclass(frozen=True)
class Repeated:
    """One of them: its number, the index of its item, and its timestep as a share of all timesteps."""

    number: int
    index: int
    timestep: float


@dataclass(frozen=True)
class RepeatedSamples:
    """Those of the items of one shape, by their indices: in a period of `total`, they are `count` from `first`."""

    indices: Sequence[int]
    first: int
    count: int
    total: int

    def one(self, number: int, seed: tuple[int, ...], rng: np.random.Generator) -> Repeated:
        """A random one, for a sample by its number in the run. What it has is a matter of the seed."""
        period, slot = number // PERIOD, int(rng.integers(self.count))
        own = period * self.total + self.first + slot
        index = self.indices[(period * self.count + slot) % len(self.indices)]
        stratum = _order(self.total, (*seed, period))[self.first + slot]
        return Repeated(own, index, (stratum + _share((*seed, own))) / self.total)


def repeated_samples(indices: Mapping[Hashable, Sequence[int]]) -> dict[Hashable, RepeatedSamples]:
    """Those of a dataset by the shape of latents, given the indices of each shape's items; a shape with more has more."""
    everything = sum(map(len, indices.values()))
    counts = {shape: max(1, round(IN_A_PERIOD * len(each) / everything)) for shape, each in indices.items()}
    firsts = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
    total = sum(counts.values())
    return {shape: RepeatedSamples(each, firsts[shape], counts[shape], total) for shape, each in indices.items()}


@lru_cache(maxsize=256)
def _order(count: int, seed: tuple[int, ...]) -> list[int]:
    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order


@lru_cache(maxsize=4096)
def _share(seed: tuple[int, ...]) -> float:
    return float(np.random.default_rng((*seed, 1)).random())
