"""The loss curve: its values and shapes, as SVG and as PNG."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from ti_trainer.runs.loss_curve import COLORS, MAX_POINTS, png, short, smoothed, svg, ticks


def _svg(*args: object) -> ET.Element:
    return ET.fromstring(svg(*args))  # noqa: S314  # our own


def _path(root: ET.Element, kind: str) -> str:
    """The longest of a kind: others are the legend's."""
    return max((each.get("d") for each in root.iter("path") if each.get("class") == kind), key=len, default="")


def _heights(path: str) -> list[float]:
    return [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]


@pytest.mark.parametrize(
    ("limit", "most", "expected"),
    [
        (1000, 5, [0, 200, 400, 600, 800, 1000]),
        (0.13, 5, [0, 0.05, 0.1]),
        (0.005, 2, [0, 0.0025, 0.005]),
        (1, 6, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 5, [0]),
        (math.nan, 5, [0]),
    ],
)
def test_ticks_are_round(limit: float, most: int, expected: list[float]) -> None:
    assert ticks(limit, most) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"), [(0.005, "0.005"), (2e-6, "2e-06"), (1500, "1500"), (20000, "20k"), (1.5e6, "1.5M")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize("points", [[], [(1, 0.1)], [(0, 0.0)], [(1, math.nan)], [(1, 0.1), (2, math.inf), (3, 0.2)]])
def test_a_curve_of_little_or_of_nonsense_is_drawn(points: list[tuple[int, float]]) -> None:
    text = svg(points, points, points)
    assert "nan" not in text
    assert "inf" not in text
    assert ("no losses yet" in text) is (not any(math.isfinite(loss) for _, loss in points))


def test_a_few_high_losses_do_not_flatten_the_others() -> None:
    points = [(step, 0.1) for step in range(1, 100)] + [(100, 50.0)]
    heights = _heights(_path(_svg(points), "ti-raw ti-dots"))
    assert heights[0] > heights[-1] == min(heights)
    assert heights[0] < 100, "0.1 stands high up, at 1 / 1.3 of the axis"


def test_long_runs_become_means() -> None:
    points = [(step, 0.1 if step % 2 else 0.3) for step in range(100_000)]
    text = svg(points, [], [(step, 1 / (step + 1)) for step in range(100_000)])
    assert len(text) < 60_000
    heights = _heights(_path(ET.fromstring(text), "ti-raw ti-dots"))  # noqa: S314
    assert len(heights) == MAX_POINTS
    assert max(heights) - min(heights) < 2, "each part's mean is 0.2"


def test_the_rate_is_drawn_where_it_changes_and_validation_losses_where_they_are() -> None:
    root = _svg(
        [(1, 0.1), (2, 0.1)], [(1, 0.1), (2, 0.09)], [(step, 0.005 if step < 50 else 0.001) for step in range(1, 101)]
    )
    assert len(set(_heights(_path(root, "ti-rate")))) == 2
    assert _path(root, "ti-validation ti-dots").count("M") == 2
    assert "validation" not in svg([(1, 0.1)])


def test_resting_the_mouse_says_what_stands_there() -> None:
    titles = [each.text for each in _svg([(10, 0.125)], [(10, 0.1)], [(10, 0.005)]).iter("title")]
    assert titles[0] == "step 10, loss 0.125, smoothed 0.125, validation 0.1, learning rate 0.005"


def test_the_png_shows_the_same_lines() -> None:
    losses = [(step, 0.1 + 0.05 * (step % 3)) for step in range(1, 50)]
    image = png(losses, [(1, 0.2), (49, 0.1)], [(step, 0.005) for step in range(1, 50)])
    colors = {color for _, color in image.getcolors(1 << 20)}
    wanted = {tuple(bytes.fromhex(COLORS[kind][1:])) for kind in ("smooth", "validation", "rate")}
    assert (image.size, wanted <= colors) == ((900, 495), True)
    assert png([]).size == image.size


def test_the_smoothed_curve_starts_at_the_first_value_and_follows() -> None:
    assert smoothed([]) == []
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([1.0, 3.0], weight=0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])
    assert smoothed([0.0] * 50 + [1.0] * 200)[-1] == pytest.approx(1, abs=1e-3)
