"""The exponential moving average of trained vectors, kept beside them: steadier than where a last step happened to end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class MovingAverage:
    """After each update, average <- rate * average + (1 - rate) * vectors; it begins as they do, as DreamArtist's.

    With `every`, the vectors themselves go on from it each so many updates; the optimizer's moments stay.
    """

    def __init__(self, vectors: Mapping[str, Tensor], rate: float, every: int = 0) -> None:
        """Begin at the vectors, which are followed from now on."""
        self._followed, self._rate, self._every = dict(vectors), rate, every
        self.vectors = {key: each.detach().clone() for key, each in vectors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow an update, the `step`th."""
        for key, each in self._followed.items():
            self.vectors[key].lerp_(each, 1 - self._rate)
            if self._every and step % self._every == 0:
                each.copy_(self.vectors[key])

    def restore(self, vectors: Mapping[str, Tensor]) -> None:
        """Go on from an average that was kept, or begin anew if there is none."""
        for key, each in self._followed.items():
            self.vectors[key].copy_(vectors.get(key, each.detach()))
