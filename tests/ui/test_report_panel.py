"""Report a problem: what the page measures for an issue, and that it waits for nothing and says nothing private."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio")

from fakes import TinyHost, TinyModel

from ti_trainer.errors import ModelError
from ti_trainer.runs.job import Job
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.report import measure
from ti_trainer.workbench import diagnosis


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setattr(diagnosis, "STEPS", 1)
    monkeypatch.setattr(diagnosis, "STEPS_OF_PRECISION", 2)
    return Page(TinyHost(tmp_path), Job())


def reported(page: Page) -> str:
    *_, (button, _, _, text) = measure(page)
    assert button["interactive"]
    return text["value"]


def test_it_measures_the_open_model_and_names_no_folder(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, folder = TinyModel.fit_memory, page.host.embeddings_dir

    def fails(model: TinyModel, latent_pixels: int, decoded: int = 0, mode: str = "auto") -> str:
        if mode == "checkpointing":
            message = f"cannot read {folder}/secret.bin or 'C:\\Users\\someone\\x.pt'"
            raise OSError(message)
        return fit(model, latent_pixels, decoded, mode)

    monkeypatch.setattr(TinyModel, "fit_memory", fails)
    text = reported(page)
    lines = text.splitlines()
    assert lines[0] == lines[-1] == "```"
    assert "model: tiny (tiny, epsilon prediction), 16 px, batch size 1, float32" in lines
    assert any(line.startswith("  none") and "ms a step" in line for line in lines)
    assert "  checkpointing failed: cannot read secret.bin or 'x.pt'" in lines
    assert any(line.startswith("learning: finite, loss ") and "not moved" not in line for line in lines)
    assert str(folder) not in text
    assert not page.host.model.in_training


def test_it_says_so_if_there_is_no_model(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> TinyModel:
        message = "No checkpoint is loaded."
        raise ModelError(message)

    monkeypatch.setattr(TinyHost, "open_model", nothing)
    text = reported(page)
    assert "model: No checkpoint is loaded." in text
    assert "TI Trainer" in text


def test_interrupt_ends_it(page: Page) -> None:
    page.host.interrupt.set()
    assert reported(page).splitlines()[-2] == "Interrupted: the rest was not measured."


def test_it_is_refused_during_a_run(page: Page) -> None:
    page.job.update(status="training", name="x-word")
    ((_, _, message, text),) = measure(page)
    assert "is being trained" in message
    assert "value" not in text
