"""Draw the losses and learning rates of a run, as SVG with tooltips for the page and as PNG for the run folder.

Both are made from the same shapes, so they show the same curve. Pure functions of values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[float, float]]
Others = Sequence[tuple[str, Points]]

MAX_COMPARED = 4  # other runs in one plot; each has a color in style.css
MAX_POINTS = 300  # more cannot be told apart at this width
TOOLTIPS = 60  # columns
WIDTH, HEIGHT = 600, 330
LEFT, RIGHT = 58, WIDTH - 8
QUANTILE, HEADROOM = 0.98, 1.3
STEPS = (1, 2, 2.5, 5, 10)  # ticks are multiples of one of these times a power of ten
SCALE, SUPERSAMPLING = 1.5, 2  # of the PNG
COLORS = {  # of the PNG; those of the SVG are in style.css
    "grid": "#dddddd",
    "raw": "#9bb3d1",
    "smooth": "#1f4e8c",
    "validation": "#c0392b",
    "rate": "#b5651d",
    "text": "#333333",
}
LABELS = {"raw": "loss", "smooth": "smoothed", "validation": "validation", "rate": "learning rate"}


@dataclass(frozen=True)
class Line:
    """A polyline; `kind` is its color and, with the prefix ti-, its CSS class."""

    kind: str
    points: Sequence[tuple[float, float]]
    width: float = 2


@dataclass(frozen=True)
class Dots:
    """Filled circles."""

    kind: str
    points: Sequence[tuple[float, float]]
    radius: float


@dataclass(frozen=True)
class Text:
    """A line of text; `y` is its baseline, `align` the part of its width that is left of `x`."""

    x: float
    y: float
    text: str
    align: float = 0.0


Shape = Line | Dots | Text


@dataclass(frozen=True)
class Axes:
    """A rectangle of the image and the ranges that it shows, both from 0."""

    top: float
    bottom: float
    x_max: float
    y_max: float

    def x(self, step: float) -> float:
        """Where a step is."""
        return LEFT + (RIGHT - LEFT) * step / self.x_max

    def y(self, value: float) -> float:
        """Where a value is; one outside the axis is at its end."""
        return self.bottom - (self.bottom - self.top) * min(1.0, max(0.0, value / self.y_max))

    def place(self, points: Points | np.ndarray) -> list[tuple[float, float]]:
        """Where points of (step, value) are."""
        return [(self.x(step), self.y(value)) for step, value in points]


class _Plot:
    """The values of a plot, ready to be drawn: finite, sorted by step, and long runs reduced to means of equal parts."""

    def __init__(self, losses: Points, validation: Points, rates: Points, others: Others = ()) -> None:
        all_losses, self.validation, self.rates = (_finite(each) for each in (losses, validation, rates))
        compared = [(name, _finite(points)) for name, points in others[:MAX_COMPARED]]
        series = [each for each in (all_losses, self.validation, self.rates, *(each for _, each in compared)) if len(each)]
        x_max = max((float(each[-1, 0]) for each in series), default=1.0) or 1.0
        rate_max = float(self.rates[:, 1].max()) * 1.15 if len(self.rates) else 0.0
        y_max = _y_limit(np.concatenate([all_losses, *(each for _, each in compared)]), self.validation)
        self.above, self.below = axes(x_max, y_max, rate_max)
        self.losses = _means(all_losses)
        self.smooth = smoothed([float(value) for value in self.losses[:, 1]])
        self.others = [(name, _means(points)) for name, points in compared if len(points)]

    def shapes(self) -> Iterator[Shape]:
        kinds = ["raw", "smooth", *(["validation"] if len(self.validation) else [])]
        yield from grid(self.above, self.below if len(self.rates) else None)
        yield Dots("raw", self.above.place(self.losses), 2)
        yield Line("smooth", self.above.place(list(zip(self.losses[:, 0], self.smooth, strict=True))))
        yield Line("validation", self.above.place(_means(self.validation)))
        yield Dots("validation", self.above.place(_means(self.validation, TOOLTIPS)), 3)
        for number, (_, points) in enumerate(self.others, 1):
            values = smoothed([float(value) for value in points[:, 1]])
            yield Line(f"other{number}", self.above.place(list(zip(points[:, 0], values, strict=True))))
        yield Line("rate", self.below.place(_stairs(self.rates)))
        yield from legend(kinds)
        for number, (name, _) in enumerate(self.others, 1):  # below each other, in the plot's upper right corner
            y = 20 + 18 * number
            yield Line(f"other{number}", [(RIGHT - 24, y), (RIGHT - 6, y)])
            yield Text(RIGHT - 30, y + 4, name, 1)
        if not len(self.losses):
            yield Text((LEFT + RIGHT) / 2, 130, "no losses yet", 0.5)

    def tooltips(self) -> Iterator[tuple[int, str]]:
        """The number of each column and its text."""
        for number in range(TOOLTIPS if len(self.losses) else 0):
            middle = self.above.x_max * (number + 0.5) / TOOLTIPS
            row = nearest(self.losses, middle)
            step, loss = self.losses[row]
            near = [each[nearest(each, middle), 1] if len(each) else None for each in (self.validation, self.rates)]
            yield number, tip(step, loss, self.smooth[row], *near)


def axes(x_max: float, y_max: float, rate_max: float) -> tuple[Axes, Axes]:
    """The axes of the losses, and those of the learning rates below."""
    return Axes(26, 232, x_max, y_max), Axes(248, 300, x_max, rate_max if rate_max > 0 else 1.0)


def grid(above: Axes, below: Axes | None) -> Iterator[Shape]:
    """Grid lines and their numbers; both axes share the steps. `below` is None without learning rates."""
    for axis, most in ((above, 5), (below, 2)) if below else ((above, 5),):
        for value in ticks(axis.y_max, most):
            y = axis.y(value)
            yield Line("grid", [(LEFT, y), (RIGHT, y)], 1)
            yield Text(LEFT - 6, y + 4, short(value), 1)
    bottom = (below or above).bottom + 18
    for value in ticks(above.x_max, 6):
        x = above.x(value)
        yield Text(x, bottom, short(value), 0.5 if x < RIGHT - 14 else 1)  # the last one must not be cut off
    if below:
        yield Text(LEFT + 6, below.top + 2, LABELS["rate"])


def legend(kinds: Sequence[str]) -> Iterator[Shape]:
    """Above the curves, where it hides none."""
    for number, kind in enumerate(kinds):
        x, length = LEFT + 6 + 130 * number, 0 if kind == "raw" else 18
        yield Line(kind, [(x, 12), (x + length, 12)]) if length else Dots(kind, [(x, 12)], 2)
        yield Text(x + length + 8, 16, LABELS[kind])


def tip(step: float, loss: float, smooth: float, validation: float | None, rate: float | None) -> str:
    """The text that resting the mouse on a column shows."""
    values = (("loss", loss), ("smoothed", smooth), ("validation", validation), ("learning rate", rate))
    return f"step {step:.0f}, " + ", ".join(f"{name} {short(value)}" for name, value in values if value is not None)


def column(axis: Axes, lowest: float, number: int, text: str) -> str:
    """A column of the plot that shows a text where the mouse rests on it."""
    width = (RIGHT - LEFT) / TOOLTIPS
    box = f'x="{LEFT + number * width:.1f}" y="{axis.top}" width="{width:.1f}" height="{lowest - axis.top}"'
    return f'<rect class="ti-tip" {box}><title>{escape(text)}</title></rect>'


def element(*content: str) -> str:
    """The curve's SVG element with this content."""
    label = 'role="img" aria-label="Loss and learning rate by step"'
    return f'<svg class="ti-curve" viewBox="0 0 {WIDTH} {HEIGHT}" {label}>{"".join(content)}</svg>'


def svg(losses: Points, validation: Points = (), rates: Points = (), others: Others = ()) -> str:
    """Draw (step, loss) raw and smoothed, (step, validation loss), and (step, learning rate) below them.

    `others` are the losses of up to MAX_COMPARED other runs by name, which are drawn smoothed. Non-finite values are left
    out, and values far above the 98th percentile are drawn at the upper edge. Resting the mouse
    on the curve shows its values.
    """
    plot = _Plot(losses, validation, rates, others)
    columns = (column(plot.above, plot.below.bottom, *each) for each in plot.tooltips())
    return element(*map(as_svg, plot.shapes()), *columns)


def png(losses: Points, validation: Points = (), rates: Points = ()) -> Image.Image:
    """Draw the same curve as an RGB image of 900 x 495 px."""
    plot, scale = _Plot(losses, validation, rates), SCALE * SUPERSAMPLING
    size = round(WIDTH * SCALE), round(HEIGHT * SCALE)
    large = Image.new("RGB", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), "white")
    draw, texts = ImageDraw.Draw(large), []
    for shape in plot.shapes():
        if isinstance(shape, Text):
            texts.append(shape)
        elif isinstance(shape, Dots):
            for x, y in shape.points:
                box = [scale * (at + by) for by in (-shape.radius, shape.radius) for at in (x, y)]
                draw.ellipse(box, fill=COLORS[shape.kind])
        elif len(shape.points) > 1:
            points = [(scale * x, scale * y) for x, y in shape.points]
            draw.line(points, COLORS[shape.kind], round(scale * shape.width), joint="curve")
    image = large.reduce(SUPERSAMPLING)
    draw, font = ImageDraw.Draw(image), _font(12 * SCALE)
    baseline = font.getbbox("0")[3]
    for each in texts:
        left = SCALE * each.x - each.align * font.getlength(each.text)
        draw.text((left, SCALE * each.y - baseline), each.text, COLORS["text"], font)
    return image


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction, as in Adam."""
    average, smooth = 0.0, []
    for number, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smooth.append(average / (1 - weight**number))
    return smooth


def ticks(limit: float, most: int) -> list[float]:
    """Round numbers from 0 to `limit`: 0 and at most `most` others."""
    if not (math.isfinite(limit) and limit > 0):
        return [0.0]
    power = 10.0 ** math.floor(math.log10(limit / most))
    step = next(each * power for each in STEPS if limit / (each * power) <= most * (1 + 1e-9))
    return [number * step for number in range(math.floor(limit / step + 1e-9) + 1)]


def short(value: float) -> str:
    """Format as 0.005, 2e-06, 1500, 20k or 1.5M."""
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


def as_svg(shape: Shape) -> str:
    """The SVG element of a shape; "" for a line without a length."""
    if isinstance(shape, Text):
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[shape.align]
        return f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{anchor}">{escape(shape.text)}</text>'
    if isinstance(shape, Dots):  # as one path: 300 circles would be 15 kB
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in shape.points)
        return f'<path class="ti-{shape.kind} ti-dots" stroke-width="{2 * shape.radius}" d="{path}"/>' if path else ""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in shape.points)
    width = f' stroke-width="{shape.width}"'
    return f'<path class="ti-{shape.kind}"{width} d="M{path}"/>' if len(shape.points) > 1 else ""


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow < 10.1 has only a bitmap font
        return ImageFont.load_default()


def _finite(points: Points) -> np.ndarray:
    """(N, 2), sorted by step."""
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[np.argsort(array[:, 0], kind="stable")]


def _means(array: np.ndarray, most: int = MAX_POINTS) -> np.ndarray:
    """(N, 2) -> (at most `most`, 2): the means of equal parts."""
    if len(array) <= most:
        return array
    starts = np.linspace(0, len(array), most, endpoint=False).astype(int)
    sizes = np.diff(np.append(starts, len(array)))
    return np.add.reduceat(array, starts, axis=0) / sizes[:, None]


def _y_limit(losses: np.ndarray, validation: np.ndarray) -> float:
    """The upper end of the loss axis: a few outliers must not flatten all other losses."""
    usual = float(np.quantile(losses[:, 1], QUANTILE)) * HEADROOM if len(losses) else 0.0
    highest = float(validation[:, 1].max()) * 1.05 if len(validation) else 0.0
    return max(usual, highest) or 1.0


def _stairs(rates: np.ndarray) -> list[tuple[float, float]]:
    """Each rate up to its step, as in the table of losses; corners only where it changes."""
    if not len(rates):
        return []
    changes = np.flatnonzero(np.diff(rates[:, 1])) + 1  # the first row of each new rate
    if len(changes) > MAX_POINTS:
        changes = changes[np.linspace(0, len(changes) - 1, MAX_POINTS).astype(int)]
    corners, now = [(0.0, float(rates[0, 1]))], float(rates[0, 1])
    for row in changes:
        corners += [(float(rates[row - 1, 0]), now), (float(rates[row - 1, 0]), float(rates[row, 1]))]
        now = float(rates[row, 1])
    return [*corners, (float(rates[-1, 0]), now)]


def nearest(array: np.ndarray, step: float) -> int:
    """The row with the nearest step."""
    after = min(int(np.searchsorted(array[:, 0], step)), len(array) - 1)
    return after - 1 if after and step - array[after - 1, 0] < array[after, 0] - step else after
