"""A run that something damaged: the page is built all the same, and says which one it is and why."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from fakes import TinyHost

from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import LARGEST_SETTINGS_BYTES, Run
from ti_trainer.ui.layout import build
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import run_actions, runs


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(LARGEST_SETTINGS_BYTES + 1)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (written(b""), "is not JSON"),
    "cut off": (written(b'{"name": "w", "train": {"max'), "is not JSON"),
    "binary": (written(bytes(range(256))), "is not JSON"),
    "a list": (written(b"[1, 2]"), "does not hold the settings"),
    "a number": (written(b"3"), "does not hold the settings"),
    "no object": (written(b"{}"), "is empty"),
    "options in a list": (written(b'{"name": "w", "train": []}'), "does not hold the settings"),
    "options in a text": (written(b'{"name": "w", "train": "x"}'), "does not hold the settings"),
    "no options": (written(b'{"name": "w", "train": null}'), "does not hold the settings"),
    "a name that is none": (written(b'{"name": {"a": 1}, "train": {}}'), "does not hold the settings"),
    "nested without end": (written(b"[" * 200_000), "is not JSON"),
    "huge": (huge, "is larger than"),
    "a folder": (lambda path: path.mkdir(), "is not a file"),
    "a pipe": (lambda path: os.mkfifo(path), "is not a file"),
}
if sys.platform == "win32":
    del DAMAGES["a pipe"]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(TinyHost(tmp_path / "host"), Job())


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_with_the_reason_beside_those_that_can_be_read(page: Page, damage: str) -> None:
    good, bad = (Run.create(page.host.log_dir, name, {"name": name, "train": {"max_steps": 7}}) for name in ("good", "bad"))
    settings = bad.path / "settings.json"
    settings.unlink()
    make, reason = DAMAGES[damage]
    make(settings)
    labels = runs.labels(page)
    assert f"{good.id} (step 0 of 7)" in labels
    (label,) = [each for each in labels if each.startswith(f"{bad.id} ")]
    assert label.endswith("(unreadable)")
    about = runs.details(page, label).about
    assert "ti-error" in about
    assert str(bad.path) in about
    assert reason in about
    assert "ti-error" in run_actions.continued_message(page, label, 0, False)
    assert Run.all(page.host.log_dir)


@pytest.mark.parametrize(
    "content",
    [
        b'{"name": "w"}',
        b'{"name": "w", "train": {"max_steps": null, "no such option": [1]}, "images": 5, "num_images": {}, "model": []}',
    ],
)
def test_odd_values_are_shown_as_they_are(page: Page, content: bytes) -> None:
    run = Run.create(page.host.log_dir, "w", {})
    (run.path / "settings.json").write_bytes(content)
    (label,) = runs.labels(page)
    assert run.id in label
    assert str(run.path) in runs.details(page, label).about
    assert "ti-error" in run_actions.continued_message(page, label, 0, False)


def test_the_page_is_built_with_all_of_them(page: Page) -> None:
    for number, (make, _) in enumerate(DAMAGES.values()):
        run = Run.create(page.host.log_dir, f"w-{number}", {})
        (run.path / "settings.json").unlink()
        make(run.path / "settings.json")
    assert build(page)
