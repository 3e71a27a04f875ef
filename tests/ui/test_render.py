from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from ti_trainer.ui import render
from ti_trainer.ui.curve import MOST_POINTS, curve, number, ticks

EVIL = """<script>alert("x")</script>'&"""


def _svg(*args: object) -> ET.Element:
    return ET.fromstring(curve(*args))  # noqa: S314  # our own


def _path(svg: ET.Element, kind: str) -> str:
    """The longest of a kind: others are the legend's."""
    return max((each.get("d") for each in svg.iter("path") if each.get("class") == kind), key=len, default="")


def _heights(path: str) -> list[float]:
    return [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45, "45 s"),
        (59.6, "1 min"),
        (180, "3 min"),
        (3599, "1 h"),
        (4800, "1 h 20 min"),
        (7200, "2 h"),
        (-3, "0 s"),
        (None, ""),
        (math.inf, ""),
        (math.nan, ""),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert render.duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(3.14, "3.1 it/s"), (25.2, "25 it/s"), (0.25, "4.0 s/it"), (0, ""), (None, "")])
def test_speeds(rate: float | None, text: str) -> None:
    assert render.speed(rate) == text


def test_progress_says_it_all() -> None:
    html = render.progress("training", "cat", 420, 1000, 53, 3.1, 187.0, "a photo of cat")
    assert "420 / 1000 · epoch 53 · 3.1 it/s · 3 min left" in html
    assert 'data-status="training"' in html
    assert "width:42.00%" in html


@pytest.mark.parametrize("status", render.SAYS)
def test_progress_is_as_high_whatever_it_says(status: render.Status) -> None:
    assert render.progress(status).count("ti-line") == render.progress(status, "x", 1, 2, 3, 4.0, 5.0, "6").count("ti-line")


def test_progress_stays_within_its_bar() -> None:
    assert "width:100.00%" in render.progress("done", "cat", 1200, 1000)
    assert "width:0.00%" in render.progress("idle")


@pytest.mark.parametrize(
    "html",
    [
        render.progress("failed", EVIL, message=EVIL),
        render.notice("error", EVIL),
        render.field_error(EVIL),
        render.facts([(EVIL, EVIL)]),
        render.images([(EVIL, f'x" onerror="{EVIL}')]),
        render.prompt_table([(EVIL, [[(1, EVIL)]])]),
    ],
)
def test_what_others_wrote_is_escaped(html: str) -> None:
    assert "<script" not in html
    assert 'onerror="' not in html
    assert "&lt;script&gt;" in html


def test_nothing_is_nothing() -> None:
    assert [render.notice("info", ""), render.field_error(None), render.facts([]), render.images([])] == [""] * 4
    assert render.prompt_table([]) == ""


def test_prompts_show_ids_the_embedding_and_where_chunks_end() -> None:
    html = render.prompt_table([("a cat", [[(320, "a"), (0, None)], [(9, "x")]])])
    assert "320" in html
    assert html.count("ti-embedding") == 1
    assert html.count("<hr") == 1


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
    assert number(value) == text


@pytest.mark.parametrize("points", [[], [(1, 0.1)], [(0, 0.0)], [(1, math.nan)], [(1, 0.1), (2, math.inf), (3, 0.2)]])
def test_a_curve_of_little_or_of_nonsense_is_drawn(points: list[tuple[int, float]]) -> None:
    svg = curve(points, points, points)
    assert "nan" not in svg
    assert "inf" not in svg
    assert ("no losses yet" in svg) is (not any(math.isfinite(loss) for _, loss in points))


def test_a_few_high_losses_do_not_flatten_the_others() -> None:
    points = [(step, 0.1) for step in range(1, 100)] + [(100, 50.0)]
    heights = _heights(_path(_svg(points), "ti-raw"))
    assert heights[0] > heights[-1] == min(heights)
    assert heights[0] < 100, "0.1 stands high up, at 1 / 1.3 of the axis"


def test_long_runs_become_means() -> None:
    points = [(step, 0.1 if step % 2 else 0.3) for step in range(100_000)]
    text = curve(points, [], [(step, 1 / (step + 1)) for step in range(100_000)])
    assert len(text) < 60_000
    heights = _heights(_path(ET.fromstring(text), "ti-raw"))  # noqa: S314
    assert len(heights) == MOST_POINTS
    assert max(heights) - min(heights) < 2, "each part's mean is 0.2"


def test_the_rate_is_drawn_where_it_changes_and_validation_losses_where_they_are() -> None:
    svg = _svg(
        [(1, 0.1), (2, 0.1)], [(1, 0.1), (2, 0.09)], [(step, 0.005 if step < 50 else 0.001) for step in range(1, 101)]
    )
    assert _path(svg, "ti-rate").count("V") == 1
    assert sum(each.tag == "circle" for each in svg.iter()) == 2
    assert "validation" not in curve([(1, 0.1)])


def test_resting_the_mouse_says_what_stands_there() -> None:
    titles = [each.text for each in _svg([(10, 0.125)], [(10, 0.1)], [(10, 0.005)]).iter("title")]
    assert titles[0] == "step 10, loss 0.125, smoothed 0.125, validation 0.1, learning rate 0.005"
