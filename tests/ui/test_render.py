from __future__ import annotations

import math

import pytest

from ti_trainer.ui import render

EVIL = """<script>alert("x")</script>'&"""


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
    assert "420 / 1000 · <span>epoch</span> 53 · 3.1 it/s · <span>time left</span> 3 min" in html
    assert 'data-status="training"' in html
    assert "width:42.00%" in html


@pytest.mark.parametrize("status", render.STATUS_LABELS)
def test_progress_is_as_high_whatever_it_says(status: str) -> None:
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
