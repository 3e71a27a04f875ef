"""Draw what Inspect shows as SVG: similarities of vectors, norms beside those of the vocabulary, drift over steps.

Pure functions of values. V vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from ti_trainer.runs.loss_curve import Line, Shape, Text, as_svg, short, ticks

NUMBERED = 16  # vectors whose similarities are written into the matrix
SHADES = 20  # of the matrix, for each sign
CELL, MARGIN, EDGE = 24, 26, 8
WIDTH, HEIGHT = 600, 120
LEFT, RIGHT = 58, WIDTH - 8
BARS = 48
COLORS = ("smooth", "validation")  # of text encoders, by their order; classes in style.css


def matrix(similarities: NDArray[np.float32]) -> str:
    """Draw cosine similarities (V, V): blue is 1, white 0, red -1. Few vectors have the numbers in their cells."""
    count = len(similarities)
    cell = CELL if count <= NUMBERED else max(4.0, CELL * NUMBERED / count)
    side = MARGIN + cell * count + EDGE
    shades = np.rint(np.clip(np.nan_to_num(similarities), -1, 1) * SHADES).astype(int)  # (V, V)
    parts = [
        f'<path fill="{_shade(shade)}" shape-rendering="crispEdges" d="{_cells(shades == shade, cell)}"/>'
        for shade in np.unique(shades)
    ]
    every = max(1, -(-count // NUMBERED))
    for number in range(0, count, every):
        middle = MARGIN + cell * (number + 0.5)
        parts.append(f'<text x="{MARGIN - 5}" y="{middle + 4:.1f}" text-anchor="end">{number + 1}</text>')
        parts.append(f'<text x="{middle:.1f}" y="{MARGIN - 7}" text-anchor="middle">{number + 1}</text>')
    if count <= NUMBERED:
        parts += [
            _cell_text(float(similarities[row, column]), row, column, int(shades[row, column]))
            for row in range(count)
            for column in range(count)
        ]
    label = f"Cosine similarities of {count} vectors"
    size = f'viewBox="0 0 {side:.1f} {side:.1f}" style="max-width: {max(side, 60):.0f}px"'
    return f'<svg class="ti-matrix" {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _shade(shade: int) -> str:
    """A color from red over white to blue."""
    part = abs(shade) / SHADES
    red, green, blue = (37, 99, 235) if shade > 0 else (220, 38, 38)
    return "#{:02x}{:02x}{:02x}".format(*(round(255 + (end - 255) * part) for end in (red, green, blue)))


def _cells(marked: NDArray[np.bool_], cell: float) -> str:
    """The path of these cells, neighbours in a row as one rectangle."""
    path = []
    for row, line in enumerate(marked):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            x, width = MARGIN + cell * begin, cell * (end - begin)
            path.append(f"M{x:.4g} {MARGIN + cell * row:.4g}h{width:.4g}v{cell:.4g}h{-width:.4g}z")
    return "".join(path)


def _cell_text(value: float, row: int, column: int, shade: int) -> str:
    x, y = MARGIN + CELL * (column + 0.5), MARGIN + CELL * (row + 0.5) + 3
    color = "#fff" if abs(shade) > SHADES * 0.55 else "#111"
    text = "1" if row == column else f"{round(value, 2) + 0.0:.2f}".replace("0.", ".", 1)  # + 0.0: no -0
    return f'<text class="ti-number" x="{x:.4g}" y="{y:.4g}" text-anchor="middle" style="fill: {color}">{text}</text>'


def norms(of_vectors: NDArray[np.float64], vocabulary: NDArray[np.float64]) -> str:
    """Draw the distribution of the vocabulary's norms as bars, and each vector's norm as a line across them."""
    highest = max(float(of_vectors.max(initial=0)), float(vocabulary.max(initial=0))) * 1.03 or 1.0
    counts, edges = np.histogram(vocabulary, BARS, (0, float(vocabulary.max(initial=0)) or 1.0))
    top, bottom = 8, HEIGHT - 24
    scale = (RIGHT - LEFT) / highest
    bars = "".join(
        f"M{LEFT + scale * left:.1f} {bottom}v{-(bottom - top) * (count / counts.max()) ** 0.5:.1f}"
        f"h{scale * (right - left):.1f}V{bottom}z"
        for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        if count
    )
    shapes: list[Shape] = [Line("grid", [(LEFT, bottom), (RIGHT, bottom)], 1)]
    shapes += [Text(LEFT + scale * each, HEIGHT - 8, short(each), 0.5) for each in ticks(highest, 6)]
    lines = "".join(
        f'<path class="ti-smooth" stroke-width="2" d="M{LEFT + scale * float(norm):.1f} {top}V{bottom}">'
        f"<title>Vector {number}: {float(norm):.4g}</title></path>"
        for number, norm in enumerate(of_vectors, 1)
    )
    return _svg(f'<path class="ti-bars" d="{bars}"/>{lines}{"".join(map(as_svg, shapes))}', HEIGHT, "Norms of the vectors")


Series = Mapping[str, Sequence[tuple[float, float]]]


def drift(similarities: Series, lengths: Series) -> str:
    """Draw (step, similarity to the first copy) and, below, (step, norm): a line for each text encoder."""
    above = _axes(similarities, 24, 116, lowest_at_most=0.98, highest=1.0)
    below = _axes(lengths, 148, 240, from_zero=True)
    shapes = [
        *above,
        *below,
        Text(LEFT + 4, 16, "cosine similarity to the first copy"),
        Text(LEFT + 4, 140, "norm"),
    ]
    if len(similarities) > 1:
        for place, (name, kind) in enumerate(zip(similarities, COLORS, strict=False)):
            x = RIGHT - 150 + 80 * place
            shapes += [Line(kind, [(x, 12), (x + 18, 12)]), Text(x + 24, 16, name)]
    return _svg("".join(map(as_svg, shapes)), 264, "Drift over steps")


def _axes(
    series: Series,
    top: float,
    bottom: float,
    *,
    lowest_at_most: float = 0.0,
    highest: float | None = None,
    from_zero: bool = False,
) -> list[Shape]:
    """Lines with their grid, and the steps below them."""
    points = [point for each in series.values() for point in each]
    last = max((step for step, _ in points), default=1) or 1
    values = [value for _, value in points]
    low = 0.0 if from_zero else min([lowest_at_most, *values])
    high = highest if highest is not None else max(values, default=1.0) * 1.05 or 1.0

    def place(step: float, value: float) -> tuple[float, float]:
        return LEFT + (RIGHT - LEFT) * step / last, bottom - (bottom - top) * (value - low) / (high - low or 1)

    shapes: list[Shape] = []
    for part in (0.0, 0.5, 1.0):
        value = low + part * (high - low)
        _, y = place(0, value)
        shapes += [Line("grid", [(LEFT, y), (RIGHT, y)], 1), Text(LEFT - 6, y + 4, f"{value:.3g}", 1)]
    if from_zero:
        shapes += [
            Text(x, bottom + 18, short(step), 0.5 if x < RIGHT - 14 else 1)
            for step in ticks(last, 6)
            for x in [place(step, 0)[0]]
        ]
    for kind, each in zip(COLORS, series.values(), strict=False):
        shapes.append(Line(kind, [place(*point) for point in each]))
    return shapes


def _svg(content: str, height: float, label: str) -> str:
    return (
        f'<svg class="ti-curve ti-small-curve" viewBox="0 0 {WIDTH} {height}" style="aspect-ratio: {WIDTH} / {height}" '
        f'role="img" aria-label="{escape(label)}">{content}</svg>'
    )
