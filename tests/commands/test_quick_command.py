"""quick: from a folder of images to an embedding in one command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")  # the standalone host needs it; the WebUI does without

from ti_trainer.commands import quick
from ti_trainer.runs.run_folder import Run


def test_one_command_prepares_creates_and_trains(
    cli: Callable, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quick, "CONFIG", replace(quick.CONFIG, max_steps=2, batch_size=1, preview_every=0))
    done = cli("quick", "moon", "--images", images, "--what", "red star")
    assert done.code == 0, done.err
    for expected in (
        "Images: 3 images",
        "Dataset: 3 images at 64 x 64 px",
        "2 vectors, starting from 'red star'",
        "Done after",
    ):
        assert expected in done.out
    assert (done.err + caplog.text).count("contains the word moon") == 1
    (run,) = Run.all(tmp_path / "textual_inversion")
    assert run.options()["template"] == "subject_filewords"
    assert len(list((tmp_path / "textual_inversion" / "datasets" / "moon").glob("*.png"))) == 3
    again = cli("quick", "moon", "--images", images)
    assert again.code == 1
    assert again.errors == [
        "Error: An embedding 'moon' exists already: choose another name, such as moon-2, or replace it (--overwrite)."
    ]
    assert Run.all(tmp_path / "textual_inversion") == [run]
