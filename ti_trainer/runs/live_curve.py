"""The loss curve of a run while it grows: pages append what is new to the SVG that they have.

The axes end at round numbers, so that most steps fit into the SVG that is shown: what they add to its paths is a short text.
A value that does not fit begins a new SVG. At the end of a run, the curve is that of `loss_curve.svg`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from ti_trainer.runs.loss_curve import (
    HEADROOM,
    MAX_POINTS,
    QUANTILE,
    TOOLTIPS,
    Axes,
    Points,
    as_svg,
    axes,
    column,
    element,
    grid,
    legend,
    nearest,
    svg,
    tip,
)

ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)  # an axis ends at one of these times a power of ten
ROOM = 1.05  # and at least this much above the values that it is made for
MIN_STEPS = 20
TOO_HIGH = 3.0  # an axis that ends this much above its values is made anew
SMOOTHING = 0.9
PATHS = {  # what grows, by the name that javascript/ti_trainer_live.js finds it by: its class and its width
    "raw": ("ti-raw ti-dots", 4),
    "smooth": ("ti-smooth", 2),
    "validation": ("ti-validation", 2),
    "dots": ("ti-validation ti-dots", 6),
    "rate": ("ti-rate", 2),
}
TIPS = "tips"


@dataclass(frozen=True)
class Series:
    """The losses of a run, its learning rates (one for each loss) and its validation losses, all by step.

    `steps` is the last step that is planned; 0 if unknown.
    """

    run: object
    losses: Points
    rates: Points
    validation: Points
    steps: int = 0


@dataclass
class LiveCurve:
    """The curve of one run at a time; safe to use from any thread. Losses are drawn as means of equally many steps."""

    _series: Series = field(default_factory=lambda: Series(None, (), (), ()))
    _frame: int = 0  # the number of the SVG
    _drawing: _Drawing | None = None
    _pieces: list[dict[str, str]] = field(default_factory=list)  # what the SVG consists of
    _whole: str = ""
    _lock: Lock = field(default_factory=Lock)

    def svg(self, series: Series, *, active: bool) -> str:
        """The curve of these values; exact if the run is not active."""
        with self._lock:
            self._update(series, active)
            if not self._whole and self._drawing:
                self._whole = self._drawing.svg(_joined(self._pieces))
            return self._whole

    def since(self, series: Series, position: str, *, active: bool) -> tuple[str, dict[str, Any]]:
        """The position now, and what a page lacks that has the curve of an earlier one.

        That is nothing, {"more": what to append by the name of the path} or {"svg": the curve}.
        """
        whole = self.svg(series, active=active)
        with self._lock:
            now = f"{self._frame}.{len(self._pieces)}"
            frame, _, drawn = position.partition(".")
            if frame != str(self._frame) or not drawn.isdecimal() or int(drawn) > len(self._pieces):
                return now, {"svg": whole}
            more = _joined(self._pieces[int(drawn) :])
            return now, {"more": more} if more else {}

    def _update(self, series: Series, active: bool) -> None:
        before, drawing = self._series, self._drawing
        changed = _size(series) != _size(before)
        if not active or not series.losses:
            if drawing or changed or not self._whole:
                self._begin(series, None, [], svg(series.losses, series.validation, series.rates))
            return
        same_run = drawing and series.run == before.run
        if same_run and _begins_with(before.losses, series.losses) and _begins_with(before.validation, series.validation):
            return  # the same, or older: seen by another thread
        if drawing and same_run and _begins_with(series.losses, before.losses) and drawing.fits(series):
            self._series = series
            if piece := drawing.grow(series):
                self._pieces.append(piece)
                self._whole = ""
        else:
            drawing = _Drawing.of(series)
            self._begin(series, drawing, [drawing.grow(series)])

    def _begin(self, series: Series, drawing: _Drawing | None, pieces: list[dict[str, str]], whole: str = "") -> None:
        self._frame += 1
        self._series, self._drawing, self._pieces, self._whole = series, drawing, pieces, whole


@dataclass
class _Drawing:
    """An SVG with fixed axes, and how far it is drawn."""

    with_validation: bool
    with_rates: bool
    every: int  # losses in a mean
    every_validation: int
    above: Axes = field(default_factory=lambda: axes(1, 1, 1)[0])
    below: Axes = field(default_factory=lambda: axes(1, 1, 1)[1])
    means: list[tuple[float, float]] = field(default_factory=list)  # drawn so far: losses,
    smooth: list[float] = field(default_factory=list)
    validation: list[tuple[float, float]] = field(default_factory=list)  # and validation losses
    read: int = 0  # losses
    read_validation: int = 0
    average: float = 0.0
    rate: float | None = None
    top_rate: float = 0.0
    tips: int = 0

    @classmethod
    def of(cls, series: Series) -> _Drawing:
        """An empty one, for these values and some more."""
        everies = _every(series.losses, MAX_POINTS), _every(series.validation, TOOLTIPS)
        empty = cls(bool(series.validation), bool(series.rates), *everies)
        last, loss, rate = empty._needed(series)
        x_max = _rounded(ROOM * max(last, MIN_STEPS))
        if last <= series.steps:
            x_max = min(x_max, float(series.steps))
        empty.above, empty.below = axes(x_max, _rounded(ROOM * loss), _rounded(rate))
        return empty

    def fits(self, series: Series) -> bool:
        """Whether these values can be added."""
        has = bool(series.validation), bool(series.rates)
        every = (
            max(self.every, _every(series.losses, MAX_POINTS)),
            max(self.every_validation, _every(series.validation, TOOLTIPS)),
        )
        last, loss, rate = self._needed(series)
        is_inside = last <= self.above.x_max and loss <= self.above.y_max and rate <= self.below.y_max
        same = has == (self.with_validation, self.with_rates) and every == (self.every, self.every_validation)
        return same and is_inside and loss >= self.above.y_max / TOO_HIGH

    def _needed(self, series: Series) -> tuple[float, float, float]:
        """The last step, and how far the axes of the losses and of the learning rate must reach."""
        last = max(points[-1][0] for points in (series.losses, series.validation) if points)
        new = (mean for rows in _parts(series.losses, self.read, self.every) if (mean := _mean(rows)))
        values = [value for _, value in (*self.means, *new)]
        usual = float(np.quantile(values, QUANTILE)) * HEADROOM if values else 0.0
        newer = [value for _, value in series.validation[self.read_validation :] if math.isfinite(value)]
        highest = max([*(value for _, value in self.validation), *newer], default=0.0) * 1.05
        rates = (value for _, value in series.rates[self.read :] if math.isfinite(value))
        self.top_rate = max(self.top_rate, *rates, 0.0)
        loss = max(usual, highest)
        return last, loss if loss > 0 else 1.0, 1.15 * self.top_rate or 1.0

    def grow(self, series: Series) -> dict[str, str]:
        """Draw what is new: what to append to each path."""
        grown: dict[str, list[str]] = {name: [] for name in (*PATHS, TIPS)}
        for rows in _parts(series.losses, self.read, self.every):
            self.read += self.every
            end = rows[-1][0]
            if series.rates:
                grown["rate"].append(self._rate_until(end, series.rates[min(self.read, len(series.rates)) - 1][1]))
            if (mean := _mean(rows)) is not None:
                self._add_loss(mean, grown)
        for rows in _parts(series.validation, self.read_validation, self.every_validation):
            self.read_validation += self.every_validation
            if (mean := _mean(rows)) is not None:
                at = _at(self.above, mean)
                grown["validation"].append(f"{'L' if self.validation else 'M'}{at}")
                grown["dots"].append(f"M{at}h0")
                self.validation.append(mean)
        grown[TIPS] += self._tips(self.means[-1][0] if self.means else 0.0)
        return {name: "".join(texts) for name, texts in grown.items() if texts}

    def _add_loss(self, mean: tuple[float, float], grown: dict[str, list[str]]) -> None:
        number = len(self.means) + 1
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * mean[1]
        smooth = self.average / (1 - SMOOTHING**number)  # as `loss_curve.smoothed` does
        grown["raw"].append(f"M{_at(self.above, mean)}h0")
        grown["smooth"].append(f"{'L' if self.means else 'M'}{_at(self.above, (mean[0], smooth))}")
        self.means.append(mean)
        self.smooth.append(smooth)

    def _rate_until(self, step: float, rate: float) -> str:
        """The line of the learning rate goes up or down where it changes."""
        y = f"{self.below.y(rate):.1f}"
        begin = f"M{self.below.x(0):.1f} {y}" if self.rate is None else f"V{y}" if rate != self.rate else ""
        self.rate = rate
        return f"{begin}H{self.below.x(step):.1f}"

    def _tips(self, until: float) -> Iterator[str]:
        """Columns that are complete."""
        width = self.above.x_max / TOOLTIPS
        losses, validation = np.array(self.means), np.array(self.validation)
        while self.tips < TOOLTIPS and (self.tips + 1) * width <= until:
            middle = (self.tips + 0.5) * width
            row = nearest(losses, middle)
            near = float(validation[nearest(validation, middle), 1]) if len(validation) else None
            text = tip(*self.means[row], self.smooth[row], near, self.rate)
            yield column(self.above, self.below.bottom, self.tips, text)
            self.tips += 1

    def svg(self, grown: dict[str, str]) -> str:
        """The SVG, with what was drawn until now."""
        kinds = ["raw", "smooth", *(["validation"] if self.with_validation else [])]
        shapes = [*grid(self.above, self.below if self.with_rates else None), *legend(kinds)]
        paths = (
            f'<path class="{look}" stroke-width="{width}" data-ti-grows="{name}" d="{grown.get(name, "")}"/>'
            for name, (look, width) in PATHS.items()
        )
        return element(*map(as_svg, shapes), *paths, f'<g data-ti-grows="{TIPS}">{grown.get(TIPS, "")}</g>')


def _joined(pieces: Sequence[dict[str, str]]) -> dict[str, str]:
    names = {name: None for piece in pieces for name in piece}
    return {name: "".join(piece.get(name, "") for piece in pieces) for name in names}


def _size(series: Series) -> tuple[object, int, int]:
    return series.run, len(series.losses), len(series.validation)


def _begins_with(points: Points, start: Points) -> bool:
    return len(points) >= len(start) and (not start or points[len(start) - 1] == start[-1])


def _every(points: Points, most: int) -> int:
    """The number of values in a mean, a power of two: at most `most` means."""
    return 2 ** max(0, math.ceil(math.log2(max(1, len(points)) / most)))


def _parts(points: Points, start: int, size: int) -> Iterator[Points]:
    """The complete parts of this size from `start` on."""
    for first in range(start, len(points) - size + 1, size):
        yield points[first : first + size]


def _mean(rows: Points) -> tuple[float, float] | None:
    """The mean step and the mean value of those that are finite."""
    finite = [row for row in rows if math.isfinite(row[1])]
    if not finite:
        return None
    return sum(step for step, _ in finite) / len(finite), sum(value for _, value in finite) / len(finite)


def _at(axis: Axes, point: tuple[float, float]) -> str:
    return f"{axis.x(point[0]):.1f} {axis.y(point[1]):.1f}"


def _rounded(value: float) -> float:
    """The next higher end of an axis."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((each * power for each in ROUND if value <= each * power), 10 * power)
