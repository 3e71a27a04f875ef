"""The caption editor's state, its inputs, and what it shows of them: updates by component name."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ti_trainer.data.caption_edits import Captions
from ti_trainer.ui.thumbnails import data_uri, thumbnail_or_grey
from ti_trainer.wording import counted

PAGE_SIZE = 60  # images shown at once
MAX_TAGS = 100  # to tick; rarer ones are found by typing
LARGE_PX = 448
ALL, ONE = "All images shown", "The selected image"
Updates = dict[str, Any]  # by component name


@dataclass(frozen=True, eq=False)
class EditorState:
    """What one visitor works on.

    `warned`: loading again discards unsaved changes. `revision` counts how often the caption box was filled.
    """

    captions: Captions | None = None
    shown: tuple[Path, ...] = ()
    page: int = 0
    selected: Path | None = None
    warned: bool = False
    revision: int = 0


@dataclass(frozen=True)
class Inputs:
    """The values of the editor's components."""

    folder: str = ""
    all_of: Sequence[str] = ()
    none_of: Sequence[str] = ()
    uncaptioned: bool = False
    text: str = ""
    revision: str = ""
    target: str = ALL
    new_tags: str = ""
    find_tag: str = ""
    ticked: Sequence[str] = ()
    new_name: str = ""
    search: str = ""
    replacement: str = ""
    regex: bool = False
    common: Sequence[str] = ()


def view(state: EditorState, before: EditorState, inputs: Inputs, message: str = "") -> Updates:
    """Updates of whatever shows captions; the gallery, which is large to send, only if it has changed."""
    state = replace(state, revision=before.revision + 1)
    first = state.page * PAGE_SIZE
    images = state.shown[first : first + PAGE_SIZE]
    place = f"{first + 1} to {first + len(images)} of {len(state.shown)}" if len(state.shown) > PAGE_SIZE else ""
    unsaved = len(state.captions.unsaved) if state.captions else 0
    text = (state.captions.text(state.selected) or "") if state.captions and state.selected else ""
    updates = {
        "state": state,
        "message": message,
        "place": f'<div class="ti-line ti-subdued">{place}</div>',
        "summary": summary(state),
        "large": large(state),
        "text": gr.update(value=text),
        "save": gr.update(value=f"Save {counted(unsaved, 'change')}" if unsaved else "Save"),
        "revision": str(state.revision),
        "edit_message": "",
    }
    if before.captions is not state.captions or (before.shown, before.page) != (state.shown, state.page):
        items = _gallery_items(state.captions, images) if state.captions else []
        updates |= {"gallery": gr.update(value=items), **tag_choices(state, inputs)}
    return updates


def tag_choices(state: EditorState, inputs: Inputs) -> Updates:
    """The tags of the images shown, with their counts; ticked ones stay ticked as long as they exist."""
    ticked = inputs.ticked or ()
    counts = state.captions.counts(state.shown) if state.captions else []
    part = (inputs.find_tag or "").strip().lower()
    listed = [each for each in counts if part in each[0].lower() or each[0] in ticked][:MAX_TAGS]
    choices = [(f"{tag} ({count})", tag) for tag, count in listed]
    return {"ticked": gr.update(choices=choices, value=[tag for tag, _ in listed if tag in ticked])}


def summary(state: EditorState) -> str:
    """How many images and unsaved changes there are."""
    if state.captions is None:
        return '<div class="ti-line ti-subdued">No folder is loaded.</div>'
    captions, count = state.captions, len(state.captions.unsaved)
    uncaptioned = sum(captions.text(image) is None for image in captions.images)
    parts = [
        f"<b>{counted(count, 'unsaved change')}</b>" if count else "no unsaved changes",
        counted(len(captions.images), "image"),
        f"{len(state.shown)} shown" if len(state.shown) < len(captions.images) else "",
        f"{uncaptioned} without a caption" if uncaptioned else "",
    ]
    return f'<div class="ti-line ti-numbers">{" · ".join(filter(None, parts))}</div>'


def large(state: EditorState) -> str:
    """The selected image in large, with its name."""
    if state.captions is None or state.selected is None:
        return '<div class="ti-large ti-subdued">Select an image to edit its caption.</div>'
    image = state.selected
    note = ""
    if state.captions.text(image) is None:
        words = escape(state.captions.names[image.stem])
        note = " · no caption" + (f"; its file name says “{words}”" if words else "")
    uri = data_uri(thumbnail_or_grey(image, LARGE_PX))
    line = f'<div class="ti-line ti-subdued" title="{escape(str(image))}">{escape(image.name)}{note}</div>'
    return f'<div class="ti-large"><img src="{uri}" alt="{escape(image.name)}"></div>{line}'


def _gallery_items(captions: Captions, images: Sequence[Path]) -> list[tuple[Image.Image, str]]:
    with ThreadPoolExecutor(4) as pool:
        return list(zip(pool.map(thumbnail_or_grey, images), (_label(captions, each) for each in images), strict=True))


def _label(captions: Captions, image: Path) -> str:
    text = captions.text(image)
    if text is not None:
        return text or "[empty]"
    words = captions.names[image.stem]
    return f"[file name] {words}" if words else "[no caption]"
