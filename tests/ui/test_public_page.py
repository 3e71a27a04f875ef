"""On a page that others can reach, visitors make new embeddings and destroy nothing that is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from fakes import TinyHost

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import Run
from ti_trainer.runs.session import Session
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import create, merge, run_actions, run_notes, runs, share

REFUSED = "other people can reach", "people other than"
OPTIONS = {"max_steps": 2, "preview_every": 0, "save_every": 1, "width": 16, "height": 16}


@pytest.fixture
def page(tmp_path: Path) -> Page:
    host = TinyHost(tmp_path / "host", is_public=True)
    embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "red cat", 2)
    return Page(host, Job())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_embeddings_and_shared_files_are_made_but_not_overwritten(page: Page) -> None:
    files = page.host.embeddings_dir.parent
    assert "Saved new" in merge.saved(page, '2 * "x-word"', "new", False)
    assert "Created made" in create.outcome_of(page, "made", "cat", 1, False, 0, "*")[0]
    assert "Wrote" in share._write(page, "x-word", "", 0, "", False, False)[0]
    assert "choose another name." in create.check_name(page, "x-word", False)
    before = contents(files)
    for said in (
        merge.saved(page, '2 * "x-word"', "x-word", True),
        create.outcome_of(page, "x-word", "cat", 1, True, 0, "*")[0],
        share._write(page, "x-word", "", 0, "", False, True)[0],
    ):
        assert any(each in said for each in REFUSED), said
    assert contents(files) == before


def test_runs_are_continued_but_neither_removed_nor_relabelled(page: Page, images: Callable[..., Path]) -> None:
    before = formats.read(page.host.embeddings_dir / "x-word.safetensors")
    run = Session(page.host, "x-word", images((16, 16)), TrainConfig(**OPTIONS)).train().run
    (kept,) = (run.path / "replaced").iterdir()
    assert formats.read(kept).arrays["clip_l"].tolist() == before.arrays["clip_l"].tolist()
    label = runs.label_of(run)
    assert "Copied to" in run_actions.promote_copy(page, label, "1", "x-word-1", False)
    for said in (
        run_actions.promote_copy(page, label, "1", "x-word", True),
        run_actions.continued_message(page, label, 4, True),
        run_notes.save(page, label, "mine", "")[0],
        run_notes.remove(page, label)[0],
        run_notes.restore(page, label)[0],
    ):
        assert any(each in said for each in REFUSED), said
    assert Run.all(page.host.log_dir) == [run]
    assert run_notes.labels_in_bin(page) == []
