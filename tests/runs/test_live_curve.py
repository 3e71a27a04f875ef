"""The curve of a run while it grows: what is appended makes the SVG that a page would get anew."""

from __future__ import annotations

import math
import random
import re
import xml.etree.ElementTree as ET

import pytest

from ti_trainer.runs.live_curve import LiveCurve, Series
from ti_trainer.runs.loss_curve import MAX_POINTS, TOOLTIPS, svg


def _series(count: int, *, every: int = 20, steps: int = 100_000, run: str = "day/x-word") -> Series:
    made = random.Random(0)
    losses = [(step, 0.2 + 0.1 * made.random()) for step in range(1, count + 1)]
    rates = [(step, 0.005 if step % 100 < 50 else 0.004) for step, _ in losses]
    validation = [(step, 0.25 - 1e-6 * step) for step in range(0, count + 1, every)]
    return Series(run, losses, rates, validation, steps)


class _Page:
    """What javascript/ti_trainer_live.js does."""

    def __init__(self) -> None:
        self.position, self.svg, self.sent, self.wholes = "", ET.Element("svg"), 0, 0

    def ask(self, curve: LiveCurve, series: Series, *, active: bool = True) -> None:
        self.position, told = curve.since(series, self.position, active=active)
        self.sent = sum(map(len, told.get("more", {}).values())) + len(told.get("svg", ""))
        if "svg" in told:
            self.wholes += 1
            self.svg = ET.fromstring(told["svg"])  # noqa: S314  # our own
        for name, text in told.get("more", {}).items():
            place = next(each for each in self.svg.iter() if each.get("data-ti-grows") == name)
            if place.tag == "path":
                place.set("d", place.get("d") + text)
            else:
                place.extend(ET.fromstring(f"<g>{text}</g>"))  # noqa: S314

    @property
    def shown(self) -> str:
        return ET.tostring(self.svg, "unicode")


def test_what_is_appended_makes_the_whole_curve() -> None:
    curve, page = LiveCurve(), _Page()
    for count in (0, 1, 2, 7, 19, 40, 41, 300, 301, 330, 900, 2000, 2003, 2200):
        page.ask(curve, _series(count))
        assert page.shown == ET.tostring(ET.fromstring(curve.svg(_series(count), active=True)), "unicode"), count  # noqa: S314


def test_a_step_sends_a_short_text_and_the_whole_curve_rarely() -> None:
    curve, page = LiveCurve(), _Page()
    sent, count = [], 1500
    complete = _series(count)
    for number in range(1, count, 5):
        page.ask(curve, Series("a", complete.losses[:number], complete.rates[:number], complete.validation[: number // 20]))
        sent.append(page.sent)
    assert page.wholes < 30
    assert sorted(sent)[len(sent) // 2] < 300
    assert sum(sent) / len(sent) < 1500, "a whole one has 10 to 25 kB"


def test_another_page_gets_the_same_curve() -> None:
    curve, first, second = LiveCurve(), _Page(), _Page()
    first.ask(curve, _series(100))
    first.ask(curve, _series(110))
    second.ask(curve, _series(110))
    assert first.shown == second.shown
    assert first.wholes == second.wholes == 1
    first.ask(curve, _series(110))
    assert not first.sent, "nothing is new"


def test_values_beyond_the_axes_begin_a_new_curve() -> None:
    curve, page = LiveCurve(), _Page()
    series = _series(90)
    page.ask(curve, series)
    higher = Series(series.run, [*series.losses, (91, 5.0), (92, 5.0)], series.rates, [*series.validation, (92, 5.0)])
    page.ask(curve, higher)
    assert page.wholes == 2
    page.ask(curve, _series(92, run="another"))
    assert page.wholes == 3
    page.ask(curve, _series(20, run="another"))
    assert (page.wholes, page.sent) == (3, 0), "an older snapshot, seen by another thread"


def test_long_runs_and_nonsense_are_drawn() -> None:
    curve, page = LiveCurve(), _Page()
    page.ask(curve, _series(20_000))
    path = next(each.get("d") for each in page.svg.iter("path") if each.get("data-ti-grows") == "raw")
    assert MAX_POINTS / 2 <= path.count("M") <= MAX_POINTS
    for loss in (math.nan, math.inf, 0.0, -1.0):
        page.ask(curve, Series("nonsense", [(1, loss)] * 3, (), [(1, loss)]))
        assert not re.search(r"nan|inf", page.shown)


def test_the_curve_of_an_ended_run_is_exact() -> None:
    curve, page = LiveCurve(), _Page()
    series = _series(130)
    page.ask(curve, series)
    titles = len(list(page.svg.iter("title")))
    assert TOOLTIPS / 2 < titles < TOOLTIPS
    page.ask(curve, series, active=False)
    assert curve.svg(series, active=False) == svg(series.losses, series.validation, series.rates)
    assert page.wholes == 2
    page.ask(curve, series, active=False)
    assert page.wholes == 2


@pytest.mark.parametrize("position", ["", "x", "9.9", "1.-1", "1.x", "0.0", "1"])
def test_an_unknown_position_gets_the_whole_curve(position: str) -> None:
    _, told = LiveCurve().since(_series(30), position, active=True)
    assert list(told) == ["svg"]
