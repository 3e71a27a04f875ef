"""Labels, notes and the bin of the Runs panel, and previews side by side, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from fakes import TinyHost
from PIL import Image

from ti_trainer.errors import ConfigError
from ti_trainer.runs import locks, notes
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import run_notes, run_previews, runs


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(TinyHost(tmp_path), Job())


def made(page: Page, name: str, *steps: int) -> Run:
    """A run with previews of these steps."""
    run = Run.create(page.host.log_dir, name, {"name": name, "train": {"max_steps": 9}})
    (run.path / "images").mkdir()
    for step in steps:
        Image.new("RGB", (16, 16), (step % 256, 0, 0)).save(run.path / "images" / f"{name}-{step}.png")
    return run


@pytest.mark.parametrize("label", ["a label", "step 3 of (4) · <b>", "x (step 1 of 2) · y", " two\nlines "])
def test_a_label_is_in_the_list_and_the_run_is_found_by_it(page: Page, label: str) -> None:
    run = made(page, "x-word")
    message, update = run_notes.save(page, run_notes.label_of(run), label, "line 1\n<b>line 2</b>")
    assert str(run.path) in message
    in_list = update["value"]
    assert in_list == f"{run.id} (step 0 of 9) · {' '.join(label.split())}"
    assert update["choices"] == [in_list] == run_notes.labels(page)
    assert run_notes.find(page, in_list) == run == run_notes.find(page, run.id)
    shown = runs.details(page, in_list)
    assert (shown.label, shown.notes) == (" ".join(label.split()), "line 1\n<b>line 2</b>")
    assert "line 1\n&lt;b&gt;line 2" in shown.about
    run_notes.save(page, in_list, "", None)
    assert sorted(path.name for path in run.path.iterdir()) == ["images", "settings.json"]


def test_texts_that_are_too_long_are_refused_and_nothing_is_written(page: Page) -> None:
    run = made(page, "x-word")
    for label, text in (("x" * 81, ""), ("fine", "x" * 20_001)):
        assert "expected at most" in run_notes.save(page, run.id, label, text)[0]
    assert notes.read_label(run) == ""
    assert "no longer exists" in run_notes.save(page, "../../etc", "x", "x")[0]
    (run.path / notes.LABEL).write_bytes(b"\xff\xfe" + b"y" * 100_000)
    assert len(notes.read_label(run)) <= notes.LONGEST_LABEL


def test_a_run_goes_to_the_bin_and_comes_back(page: Page) -> None:
    run, other = made(page, "x-word", 1), made(page, "y-word")
    notes.save(run, "mine", "")
    before = sorted(path.name for path in run.path.rglob("*"))
    message, listed, in_bin = run_notes.remove(page, run_notes.label_of(run))
    assert str(page.host.log_dir / "bin" / run.id) in message
    assert listed["choices"] == [listed["value"]] == [run_notes.label_of(other)]
    assert in_bin["choices"] == [in_bin["value"]] == [f"{run.id} (step 0 of 9) · mine"]
    again = made(page, "x-word")
    assert again == run, "its name is free"
    message, listed, binned = run_notes.restore(page, in_bin["value"])
    restored = run_notes.find(page, listed["value"])
    assert restored.path == run.path.with_name("x-word-2")
    assert str(restored.path) in message
    assert binned["choices"] == []
    assert sorted(path.name for path in restored.path.rglob("*")) == before
    assert "Choose a run" in run_notes.restore(page, None)[0]


def test_a_run_in_use_stays(page: Page) -> None:
    run = made(page, "x-word")
    page.job._now = Snapshot("training", "x-word", run=run)
    assert "is being trained" in run_notes.remove(page, run.id)[0]
    page.job._now = Snapshot("done", "x-word", run=run)
    with locks.held(locks.of_run(run.path), "it", print):
        assert "by another process" in run_notes.remove(page, run.id)[0]
    assert run.path.is_dir()
    assert page.job.snapshot().run == run
    assert "Moved to" in run_notes.remove(page, run.id)[0]
    assert page.job.snapshot().previews == (), "the page of the run that has ended can still be shown"
    with pytest.raises(ConfigError):
        run_notes.find(page, run.id)


def test_previews_of_two_runs_are_side_by_side(page: Page) -> None:
    first, second = made(page, "x-word", 0, 100, 200), made(page, "y<word", 0, 200, 400)
    notes.save(second, "other", "")
    label = run_notes.label_of(first)
    assert runs.details(page, label).side_by_side == "", "one run has its gallery"
    assert runs.ITSELF in runs.details(page, label, [label]).side_by_side
    table = runs.details(page, label, [run_notes.label_of(second), label]).side_by_side
    assert [f"<th>Step {step}</th>" in table for step in (0, 100, 200, 400)] == [True] * 4
    assert table.count("<img src=") == 6
    assert table.count("<td>–</td>") == 2
    assert "y&lt;word: other" in table
    next(iter(second.previews()))[1].write_bytes(b"damaged")
    assert run_previews.table({"a": first, "b": second}).count("<td>") == 8


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([[0, 100], [0, 50]], [0, 50, 100]),
        ([range(0, 1000, 100), range(0, 2000, 100)], [0, 100, 300, 400, 600, 700, 800, 1900]),
        ([range(0, 1000, 10), range(5, 1000, 10)], [0, 140, 280, 425, 565, 710, 850, 995]),
    ],
)
def test_steps_that_both_runs_have_come_first(steps: list[range], found: list[int]) -> None:
    chosen = run_previews.columns(list(map(list, steps)))
    assert len(chosen) <= run_previews.MAX_COLUMNS
    assert (chosen[0], chosen[-1]) == (found[0], found[-1])
    shared = set(steps[0]) & set(steps[1])
    if len(shared) >= run_previews.MAX_COLUMNS:
        assert set(chosen[:-1]) <= shared
    elif len(found) < run_previews.MAX_COLUMNS:
        assert chosen == found
