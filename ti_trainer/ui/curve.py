"""The losses and learning rates of a run as an SVG. Pure: knows no Gradio, no files and no run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ti_trainer.runs.plots import smoothed

Points = Sequence[tuple[float, float]]

MOST_POINTS = 300  # more than that are not told apart at this width
COLUMNS = 60  # of tooltips
WIDTH, HEIGHT = 600, 330
LEFT, RIGHT = 58, WIDTH - 8
QUANTILE, HEADROOM = 0.98, 1.3
STEPS = (1, 2, 2.5, 5, 10)  # a tick is one of these times a power of ten


@dataclass(frozen=True)
class _Panel:
    """Where values go: a rectangle of the image with the ranges that it shows, both from 0."""

    top: float
    bottom: float
    x_max: float
    y_max: float

    def x(self, step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / self.x_max

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * min(1.0, max(0.0, value / self.y_max))

    def at(self, step: float, value: float) -> str:
        return f"{self.x(step):.1f} {self.y(value):.1f}"


def curve(points: Points, validation: Points = (), rates: Points = ()) -> str:
    """Draw (step, loss) raw and smoothed, validation losses if there are any, and (step, learning rate) below.

    What is not finite is left out, long runs are drawn as means of parts, and what is above the 98th percentile by far is
    drawn at the upper edge.
    """
    losses, fixed, rate = (_finite(each) for each in (points, validation, rates))
    x_max = max((float(each[-1, 0]) for each in (losses, fixed, rate) if len(each)), default=1.0) or 1.0
    above = _Panel(26, 232, x_max, _limit(losses, fixed))
    below = _Panel(248, 300, x_max, float(rate[:, 1].max()) * 1.15 if len(rate) and rate[:, 1].max() > 0 else 1.0)
    means = _means(losses)
    smooth = smoothed([float(value) for value in means[:, 1]])
    parts = [
        _axes(above, below, bool(len(rate))),
        _path("ti-raw", "".join(f"M{above.at(*point)}h0" for point in means)),
        _line("ti-smooth", above, list(zip(means[:, 0], smooth, strict=True))),
        _line("ti-fixed", above, _means(fixed)),
        *(
            f'<circle class="ti-fixed" cx="{above.x(step):.1f}" cy="{above.y(loss):.1f}" r="3"/>'
            for step, loss in _means(fixed, COLUMNS)
        ),
        _path("ti-rate", _stairs(below, rate)),
        _legend(bool(len(fixed))),
        _tooltips(above, below, means, smooth, fixed, rate),
    ]
    if not len(losses):
        parts.append(_text((LEFT + RIGHT) / 2, 130, "no losses yet", "middle"))
    return (
        f'<svg class="ti-curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss and learning rate by step">'
        + "".join(parts)
        + "</svg>"
    )


def ticks(limit: float, most: int) -> list[float]:
    """Round numbers from 0 to `limit`, at most so many and 0 itself."""
    if not (math.isfinite(limit) and limit > 0):
        return [0.0]
    power = 10.0 ** math.floor(math.log10(limit / most))
    step = next(each * power for each in STEPS if limit / (each * power) <= most * (1 + 1e-9))
    return [number * step for number in range(math.floor(limit / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short: 0.005, 2e-06, 1500, 20k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def _finite(points: Points) -> np.ndarray:
    """(N, 2), ordered by step."""
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[np.argsort(array[:, 0], kind="stable")]


def _means(array: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """(N, 2) -> (at most `most`, 2): the means of equal parts."""
    if len(array) <= most:
        return array
    starts = np.linspace(0, len(array), most, endpoint=False).astype(int)
    sizes = np.diff(np.append(starts, len(array)))
    return np.add.reduceat(array, starts, axis=0) / sizes[:, None]


def _limit(losses: np.ndarray, fixed: np.ndarray) -> float:
    """The upper end of the losses' axis: a few high ones shall not flatten all others."""
    usual = float(np.quantile(losses[:, 1], QUANTILE)) * HEADROOM if len(losses) else 0.0
    highest = float(fixed[:, 1].max()) * 1.05 if len(fixed) else 0.0
    return max(usual, highest) or 1.0


def _path(kind: str, path: str) -> str:
    return f'<path class="{kind}" d="{path}"/>' if path else ""


def _line(kind: str, panel: _Panel, points: Points | np.ndarray) -> str:
    return _path(kind, "M" + "L".join(panel.at(*point) for point in points) if len(points) > 1 else "")


def _stairs(panel: _Panel, rates: np.ndarray) -> str:
    """Each rate up to its step, as the table of losses means it; drawn where it changes, as often as can be seen."""
    if not len(rates):
        return ""
    changes = np.flatnonzero(np.diff(rates[:, 1])) + 1  # the first row of each new rate
    if len(changes) > MOST_POINTS:
        changes = changes[np.linspace(0, len(changes) - 1, MOST_POINTS).astype(int)]
    path = f"M{panel.at(0, rates[0, 1])}"
    for row in changes:
        path += f"H{panel.x(rates[row - 1, 0]):.1f}V{panel.y(rates[row, 1]):.1f}"
    return path + f"H{panel.x(rates[-1, 0]):.1f}"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _axes(above: _Panel, below: _Panel, with_rate: bool) -> str:
    """Lines and their numbers; the two panels share the steps' axis."""
    drawn = []
    for panel, most in ((above, 5), (below, 2)) if with_rate else ((above, 5),):
        for value in ticks(panel.y_max, most):
            y = panel.y(value)
            drawn += [_path("ti-grid", f"M{LEFT} {y:.1f}H{RIGHT}"), _text(LEFT - 6, y + 4, number(value), "end")]
    lowest = below.bottom if with_rate else above.bottom
    for value in ticks(above.x_max, 6):
        anchor = "middle" if above.x(value) < RIGHT - 14 else "end"  # or its end would be cut off
        drawn.append(_text(above.x(value), lowest + 18, number(value), anchor))
    if with_rate:
        drawn.append(_text(LEFT + 6, below.top + 2, "learning rate"))
    return "".join(drawn)


def _legend(with_fixed: bool) -> str:
    """Above the curves, so that it hides none."""
    entries = [("ti-raw", "loss"), ("ti-smooth", "smoothed")] + [("ti-fixed", "validation")] * with_fixed
    drawn = []
    for place, (kind, label) in enumerate(entries):
        x, length = LEFT + 6 + 130 * place, 0 if kind == "ti-raw" else 18
        drawn += [_path(kind, f"M{x} 12h{length}"), _text(x + length + 8, 16, label)]
    return "".join(drawn)


def _tooltips(
    above: _Panel, below: _Panel, means: np.ndarray, smooth: list[float], fixed: np.ndarray, rates: np.ndarray
) -> str:
    """Columns that cannot be seen and say what stands there when the mouse rests on them."""
    if not len(means):
        return ""
    width = (RIGHT - LEFT) / COLUMNS
    drawn = []
    for column in range(COLUMNS):
        middle = above.x_max * (column + 0.5) / COLUMNS
        row = _nearest(means, middle)
        words = [f"step {means[row, 0]:.0f}", f"loss {number(means[row, 1])}", f"smoothed {number(smooth[row])}"]
        if len(fixed):
            words.append(f"validation {number(fixed[_nearest(fixed, middle), 1])}")
        if len(rates):
            words.append(f"learning rate {number(rates[_nearest(rates, middle), 1])}")
        drawn.append(
            f'<rect class="ti-tip" x="{LEFT + column * width:.1f}" y="{above.top}" width="{width:.1f}"'
            f' height="{below.bottom - above.top}"><title>{", ".join(words)}</title></rect>'
        )
    return "".join(drawn)


def _nearest(array: np.ndarray, step: float) -> int:
    """The row whose step is the nearest."""
    after = min(int(np.searchsorted(array[:, 0], step)), len(array) - 1)
    return after - 1 if after and step - array[after - 1, 0] < array[after, 0] - step else after
