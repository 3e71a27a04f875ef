"""What a page is told of a run, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from fakes import TinyHost
from PIL import Image

from ti_trainer.training.job import Job, Snapshot
from ti_trainer.training.run import Run
from ti_trainer.ui import watch
from ti_trainer.ui.page import Page


def test_the_last_previews_are_told_twice_and_then_no_more(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "logs", "x-word", {})
    (run.path / "images").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(run.path / "images" / "x-word-4.png")
    page = Page(TinyHost(tmp_path), Job(Snapshot("training", "x-word", step=4, max_steps=4, run=run)))

    def told(seen: str) -> tuple[str, bool]:
        seen, _, previews = watch.news(page, seen, ["bar", "previews"])
        return seen, "value" in previews

    seen, previews = told("")
    assert previews
    seen, previews = told(seen)
    assert not previews, "a run that goes on has more to come"
    page.job.tell(status="done")
    heard = []
    for _ in range(4):
        seen, previews = told(seen)
        heard.append(previews)
    assert heard == [False, True, False, False]
