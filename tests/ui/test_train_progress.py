"""What a page is sent of a run, without a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import torch
from fakes import TinyHost
from PIL import Image

from ti_trainer.embedding import Embedding
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Result
from ti_trainer.training.selection import TrialResult
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import train_progress


def test_the_last_previews_are_sent_twice_and_then_no_more(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "logs", "x-word", {})
    (run.path / "images").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(run.path / "images" / "x-word-4.png")
    page = Page(TinyHost(tmp_path), Job(Snapshot("training", "x-word", step=4, max_steps=4, run=run)))

    def refresh(state: str) -> tuple[str, bool]:
        state, _, previews = train_progress.refresh(page, state, ["bar", "previews"])
        return state, "value" in previews

    state, previews = refresh("")
    assert previews
    state, previews = refresh(state)
    assert not previews, "the run continues"
    page.job.update(status="done")
    sent = []
    for _ in range(4):
        state, previews = refresh(state)
        sent.append(previews)
    assert sent == [False, True, False, False]


def test_the_selected_trial_is_shown(tmp_path: Path) -> None:
    trials = tuple(
        TrialResult(number, "0.005", "cat", 1, f"seed 0, trial {number}", 4, loss, loss is None, number == 2)
        for number, loss in ((1, 0.25), (2, 0.125), (3, None))
    )
    run = Run.create(tmp_path / "logs", "x-word", {"name": "x-word"})
    embedding = Embedding("x-word", {"clip_l": torch.zeros(1, 8)}, 4)
    result = Result(embedding, tmp_path / "x-word.safetensors", run, "done", 3, (), trials=trials)
    page = Page(TinyHost(tmp_path), Job())
    shown = train_progress.parts_of(page, Snapshot("done", "x-word", step=4, run=run, result=result))["details"][1]()
    kept = "trial 2 of 3, validation loss 0.12500; trial 1 validation loss 0.25000, trial 3 was stopped after step 4"
    assert kept in shown
    alone = replace(result, trials=())
    assert (
        "Selected trial"
        not in train_progress.parts_of(page, Snapshot("done", "x-word", step=4, run=run, result=alone))["details"][1]()
    )
