"""The exponential moving average of trained vectors, which is steadier than the vectors of any single step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class MovingAverage:
    """After each update, average <- rate * average + (1 - rate) * vectors, starting at the vectors, as in DreamArtist.

    With `every`, the vectors are replaced by their average every that many updates; the optimizer's state is kept.
    """

    def __init__(self, vectors: Mapping[str, Tensor], rate: float, every: int = 0) -> None:
        """Start at the vectors, each (V, D). The tensors are kept and read again at each update."""
        self._sources, self._rate, self._every = dict(vectors), rate, every
        self.vectors = {key: each.detach().clone() for key, each in vectors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the vectors after the update that completed step `step`."""
        for key, each in self._sources.items():
            self.vectors[key].lerp_(each, 1 - self._rate)
            if self._every and step % self._every == 0:
                each.copy_(self.vectors[key])

    def restore(self, vectors: Mapping[str, Tensor]) -> None:
        """Continue from a saved average; a key that was not saved starts at its vectors."""
        for key, each in self._sources.items():
            self.vectors[key].copy_(vectors.get(key, each.detach()))
