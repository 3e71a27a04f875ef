"""How an embedding moved during a run: each copy's similarity to the first one, and its norm.

V vectors, D width of a text encoder's token embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.errors import EmbeddingFormatError, explained
from ti_trainer.runs.run_folder import Run
from ti_trainer.workbench.inspect import normalized

MOST = 200  # copies: more cannot be told apart in a curve


@dataclass(frozen=True)
class Point:
    """One copy: means over its vectors, by text encoder."""

    step: int
    similarity: dict[str, float]
    norm: dict[str, float]


@dataclass(frozen=True)
class Drift:
    """The copies of a run by step; `skipped` are copies that cannot be compared, with reasons."""

    points: tuple[Point, ...]
    skipped: tuple[str, ...] = ()
    left_out: int = 0  # copies between those that were read

    def series(self, what: str) -> dict[str, list[tuple[float, float]]]:
        """(step, value) by text encoder; `what` is similarity or norm."""
        encoders = self.points[0].similarity if self.points else {}
        return {each: [(point.step, getattr(point, what)[each]) for point in self.points] for each in encoders}


def drift_of(run: Run, most: int = MOST) -> Drift:
    """Read a run's copies, or evenly spaced ones of many, and compare each with the first."""
    copies = run.copies()
    chosen = copies
    if len(copies) > most:
        chosen = [copies[place] for place in np.linspace(0, len(copies) - 1, most).round().astype(int)]
    first, points, skipped = None, [], []
    for step, path in chosen:
        try:
            copy = formats.read(path)
        except (EmbeddingFormatError, OSError) as error:
            skipped.append(explained(error))
            continue
        first = first or copy
        if _shapes(copy) != _shapes(first):
            skipped.append(f"{path.name} has other vectors than {first.name}: it cannot be compared.")
            continue
        points.append(_compared(first, copy, step))
    return Drift(tuple(points), tuple(skipped), len(copies) - len(chosen))


def _compared(first: Embedding, copy: Embedding, step: int) -> Point:
    similarity, norm = {}, {}
    for encoder, vectors in copy.arrays.items():
        unit, norms = normalized(vectors)  # (V, D), (V,)
        similarity[encoder] = float((unit * normalized(first.arrays[encoder])[0]).sum(1).mean())
        norm[encoder] = float(norms.mean())
    return Point(step, similarity, norm)


def _shapes(embedding: Embedding) -> Sequence[tuple[str, tuple[int, ...]]]:
    return sorted((encoder, each.shape) for encoder, each in embedding.arrays.items())
