"""Captions by a model in the caption editor, without a browser; one caption in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from fakes import TinyHost
from PIL import Image

from ti_trainer.captioning.captioner import HostCaptioner
from ti_trainer.data import caption_edits
from ti_trainer.errors import ConfigError
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import caption_handlers, caption_models
from ti_trainer.ui.panels.caption_models import ACTIONS, Captioning, Found
from ti_trainer.ui.panels.caption_view import ONE, EditorState, Inputs

APPEND, REPLACE, MISSING = ACTIONS
LABEL = "Colors"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_models, "PROGRESS_S", 0.01)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """Three images, of which two have captions; the host's captioner says how red they are."""

    @contextmanager
    def opened(_config: object) -> Iterator[object]:
        yield lambda image: f"red {image.getpixel((0, 0))[0]}"

    for number, text in enumerate(("cat, grass", "cat", None)):
        Image.new("RGB", (30, 20), (60 * number, 9, 9)).save(tmp_path / f"{number}.png")
        if text:
            (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    return Page(TinyHost(tmp_path, captioners={"colors": HostCaptioner(LABEL, opened, lambda: True)}), Job())


@pytest.fixture
def state(tmp_path: Path) -> EditorState:
    captions = caption_edits.load(tmp_path)
    return EditorState(captions, captions.images, selected=captions.images[1])


def captioned(page: Page, state: EditorState, action: str, **inputs: object) -> tuple[str, Found]:
    """The last that the page is sent."""
    return list(Captioning(page).run(state, Inputs(**inputs), [LABEL], action, {"tagger": "", "blip_model": BLIP}))[-1]


BLIP = "Salesforce/blip-image-captioning-base"


def texts(state: EditorState) -> list[str | None]:
    return [state.captions.text(image) for image in state.captions.images]


@pytest.mark.parametrize(
    ("action", "inputs", "after"),
    [
        (APPEND, {}, ["cat, grass, red 0", "cat, red 60", "red 120"]),
        (REPLACE, {"target": ONE}, ["cat, grass", "red 60", None]),
        (MISSING, {}, ["cat, grass", "cat", "red 120"]),
    ],
)
def test_captions_are_one_edit_that_can_be_undone_and_is_not_written(
    page: Page, state: EditorState, tmp_path: Path, action: str, inputs: dict[str, object], after: list[str | None]
) -> None:
    _, found = captioned(page, state, action, **inputs)
    before = texts(state)
    updates = caption_models.apply(state, Inputs(), found)
    assert texts(updates["state"]) == after
    changed = sum(old != new for old, new in zip(before, after, strict=True))
    assert f"{changed} caption{'s' * (changed > 1)} changed." in updates["caption_message"]
    undone = caption_handlers.run(caption_handlers.undo, updates["state"], Inputs())["state"]
    assert texts(undone) == before
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["0.txt", "1.txt"]


def test_edits_during_captioning_are_kept(page: Page, state: EditorState, tmp_path: Path) -> None:
    _, found = captioned(page, state, APPEND)
    meanwhile = EditorState(state.captions.edit(state.captions.images[0], "dog"), state.shown)
    assert texts(caption_models.apply(meanwhile, Inputs(), found)["state"])[0] == "dog, red 0"
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (9, 9)).save(other / "0.png")
    moved = EditorState(caption_edits.load(other))
    updates = caption_models.apply(moved, Inputs(), found)
    assert texts(updates["state"]) == [None]
    assert "Another folder was loaded" in updates["caption_message"]
    assert caption_models.apply(moved, Inputs(), Found()) == {"state": moved}


def test_a_damaged_image_is_named_and_the_others_are_captioned(page: Page, state: EditorState, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no image")
    message, found = captioned(page, state, REPLACE)
    assert "1 image could not be read" in message
    assert "1.png" in message
    assert sorted(path.name for path in found.texts) == ["0.png", "2.png"]


def test_stopping_keeps_what_is_captioned(page: Page, state: EditorState) -> None:
    captioning = Captioning(page)

    @contextmanager
    def opened(_config: object) -> Iterator[object]:
        yield lambda image: captioning.stop() or "one"

    page.host.captioners = {"colors": HostCaptioner(LABEL, opened)}
    message, found = list(captioning.run(state, Inputs(), [LABEL], REPLACE, {}))[-1]
    assert list(found.texts.values()) == ["one"]
    assert "Stopped after 1 of 3 images." in message


def test_what_cannot_be_done_is_said(page: Page, state: EditorState, tmp_path: Path) -> None:
    def said(state: EditorState, labels: list[str], **models: str) -> str:
        message, found = list(Captioning(page).run(state, Inputs(), labels, MISSING, models))[-1]
        assert not found.texts
        return message

    assert "Choose a captioner." in said(state, [])
    assert "Load a folder first" in said(EditorState(), [LABEL])
    assert "There is no image to caption" in said(EditorState(state.captions, state.shown[:2]), [LABEL])
    wd14 = caption_models.captioners.labels()["wd14"]
    assert "SmilingWolf" in said(state, [wd14], tagger="")
    page.host.is_public = True
    blip = caption_models.captioners.labels()["blip"]
    assert "no downloads on a public page" in said(state, [blip], blip_model="some/model")
    forbidden = tmp_path / "forbidden"
    assert "not for the page" in said(state, [wd14], tagger=str(forbidden))
    page.job._now = Snapshot("training", "x-word")
    assert "while a training run is active" in said(state, [LABEL])
    page.job._now = Snapshot()
    first = Captioning(page)
    going = first.run(state, Inputs(), [LABEL], REPLACE, {})
    next(going)
    assert "already" in list(first.run(state, Inputs(), [LABEL], REPLACE, {}))[-1][0]
    going.close()
    assert len(list(first.run(state, Inputs(), [LABEL], REPLACE, {}))[-1][1].texts) == 3, "free again"


def test_an_unexpected_error_keeps_what_was_captioned(page: Page, state: EditorState) -> None:
    answers = iter(["first"])

    @contextmanager
    def opened(_config: object) -> Iterator[object]:
        yield lambda image: next(answers)

    page.host.captioners = {"colors": HostCaptioner(LABEL, opened)}
    message, found = captioned(page, state, REPLACE)
    assert "Unexpected" in message
    assert list(found.texts.values()) == ["first"]
    with pytest.raises(ConfigError):
        caption_handlers.loaded(EditorState())
