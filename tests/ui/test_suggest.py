"""The part of the Create panel that suggests an initialization text, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from fakes import TinyHost
from PIL import Image

from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.suggest import suggest


def test_the_best_text_is_filled_in(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (90, 20, 200)).save(tmp_path / "a.png")
    ranking, text = suggest(Page(TinyHost(tmp_path), Job()), str(tmp_path), "wooden toy, <b>")
    assert "1 image" in ranking
    assert "<b>" not in ranking
    assert f"Suggested initial text: {text['value']}" in ranking.replace("&lt;b&gt;", "<b>")


@pytest.mark.parametrize(("folder", "answer"), [("", "Dataset directory: empty"), ("nowhere", "does not exist")])
def test_a_wrong_folder_is_refused(tmp_path: Path, folder: str, answer: str) -> None:
    ranking, text = suggest(Page(TinyHost(tmp_path), Job()), folder and str(tmp_path / folder), "")
    assert answer in ranking
    assert "value" not in text


def test_a_run_is_not_disturbed(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    ranking, _ = suggest(Page(TinyHost(tmp_path), Job(Snapshot("training", "x-word"))), str(tmp_path), "")
    assert "while a training run is active" in ranking
