"""The part Edit captions: a folder's images with their captions, changed in many at once or one by one.

Knows how things look and which images are meant; what a change does, `data.captions` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import gradio as gr

from ti_trainer.data.caption_edits import Captions
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.caption_handlers import (
    ALL,
    ONE,
    EditorState,
    acted,
    applied,
    changed,
    clicked,
    entered_tags,
    large,
    looked,
    opened,
    redone,
    renamed,
    replaced,
    saved,
    sifted,
    summary,
    ticked_tags,
    ticks,
    undone,
    went,
)

ADVICE = """<p>What a caption says, the prompt learns; what it leaves out, your word learns. So:</p><ul>
<li><b>leave out</b> what describes the thing to be learned: its kind, its colours, its face. Such words are better in the
<b>initialization text</b>, when you create the embedding;</li>
<li><b>say</b> everything else: the place, the light, the pose, what is worn or held, other things in the image.</li></ul>
<p>Tags that stand in nearly all images usually describe the thing itself.</p>"""


@dataclass(frozen=True)
class CaptionEditor:
    """What other panels need of this one: to fill in a folder, and to press Load."""

    folder: Any
    load: Any


def panel(page: Page) -> CaptionEditor:
    """Put it here: images on the left, what can be done with their captions on the right."""
    ui = SimpleNamespace(editor=gr.State(EditorState()))
    with gr.Row(elem_classes=["ti-lined-up"]):
        ui.folder = _text(
            "Dataset directory",
            "captions_folder",
            info="The folder with your images. Nothing in it changes until you press Save.",
            value=str(page.prefilled.images) if page.prefilled else "",
        )
        ui.load = gr.Button("Load", variant="primary", elem_id="ti_trainer_captions_load", elem_classes=["ti-beside"])
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-results"]):
            _images(ui)
        with gr.Column(elem_classes=["ti-form"]):
            _one(ui)
            _tags(ui)
            with gr.Accordion("Search and replace", open=False):
                _search(ui, regex=not page.is_public)
            with gr.Accordion("What belongs into captions? Tags in nearly all images", open=False):
                _common(ui)
    for each in vars(ui).values():
        unsaved(each)
    _wire(page, ui)
    return CaptionEditor(ui.folder, ui.load)


def _images(ui: SimpleNamespace) -> None:
    with gr.Row():
        filters = {"label": "Show those with all of", "multiselect": True, "elem_id": "ti_trainer_captions_with"}
        ui.all_of = gr.Dropdown([], **filters)
        filters |= {"label": "and with none of", "elem_id": "ti_trainer_captions_without"}
        ui.none_of = gr.Dropdown([], **filters)
    ui.bare = gr.Checkbox(label="Only images without a caption", value=False, elem_id="ti_trainer_captions_bare")
    ui.gallery = gr.Gallery(
        label="Images",
        show_label=False,
        columns=4,
        height=860,
        object_fit="contain",
        allow_preview=False,
        elem_id="ti_trainer_captions_gallery",
        elem_classes=["ti-captioned"],
    )
    with gr.Row(elem_classes=["ti-buttons", "ti-pager"]):
        ui.back = gr.Button("◀", elem_id="ti_trainer_captions_back")
        ui.place = gr.HTML(elem_id="ti_trainer_captions_place")
        ui.forth = gr.Button("▶", elem_id="ti_trainer_captions_forth")


def _one(ui: SimpleNamespace) -> None:
    ui.summary = gr.HTML(summary(EditorState()), elem_id="ti_trainer_captions_summary")
    with gr.Row(elem_classes=["ti-buttons"]):
        ui.undo = gr.Button("Undo", elem_id="ti_trainer_captions_undo")
        ui.redo = gr.Button("Redo", elem_id="ti_trainer_captions_redo")
        ui.save = gr.Button("Save", variant="primary", elem_id="ti_trainer_captions_save")
    ui.said = gr.HTML(elem_id="ti_trainer_captions_said")
    ui.large = gr.HTML(large(EditorState()), elem_id="ti_trainer_captions_large")
    ui.text = _text("Caption of the image clicked", "captions_text", lines=3, max_lines=8)
    with gr.Row(elem_classes=["ti-hidden"]):
        ui.sent = _text("Which caption that is", "captions_sent", value="0")
    with gr.Row(elem_classes=["ti-buttons"]):
        ui.previous = gr.Button("◀ Previous", elem_id="ti_trainer_captions_previous")
        ui.apply = gr.Button("Apply", elem_id="ti_trainer_captions_apply")
        ui.next = gr.Button("Next ▶", elem_id="ti_trainer_captions_next")


def _tags(ui: SimpleNamespace) -> None:
    ui.target = gr.Radio([ALL, ONE], value=ALL, label="Change the captions of", elem_id="ti_trainer_captions_target")
    with gr.Row(elem_classes=["ti-lined-up"]):
        ui.new = _text("New tags", "captions_new", placeholder="outdoors, grass", scale=2)
        ui.add = gr.Button("Add at the end", elem_id="ti_trainer_captions_add", elem_classes=["ti-beside"])
        ui.add_front = gr.Button("Add in front", elem_id="ti_trainer_captions_add_front", elem_classes=["ti-beside"])
    ui.ticked = gr.CheckboxGroup(
        [],
        label="Tags of what is shown, and in how many images: tick those you mean",
        elem_id="ti_trainer_captions_tags",
        elem_classes=["ti-tags"],
    )
    ui.find = _text("Find a tag", "captions_find", placeholder="a part of it")
    with gr.Row(elem_classes=["ti-buttons"]):
        ui.remove = gr.Button("Remove ticked", elem_id="ti_trainer_captions_remove")
        ui.to_front = gr.Button("Move ticked to front", elem_id="ti_trainer_captions_to_front")
    with gr.Row(elem_classes=["ti-lined-up"]):
        ui.name = _text("New name", "captions_name", scale=2)
        ui.rename = gr.Button("Rename ticked", elem_id="ti_trainer_captions_rename", elem_classes=["ti-beside"])
    ui.told = gr.HTML(elem_id="ti_trainer_captions_told")


def _search(ui: SimpleNamespace, *, regex: bool) -> None:
    with gr.Row():
        ui.search = _text("Search", "captions_search")
        ui.by = _text("Replace by", "captions_by")
    info = r"Such as (\w+) hair; in the replacement, \1 is what the first ( ) found."
    ui.regex = gr.Checkbox(
        label="Regular expression", info=info, value=False, visible=regex, elem_id="ti_trainer_captions_regex"
    )
    with gr.Row(elem_classes=["ti-buttons"]):
        ui.replace = gr.Button("Replace", elem_id="ti_trainer_captions_replace")
        ui.names = gr.Button("Take file names where there is no caption", elem_id="ti_trainer_captions_names")


def _common(ui: SimpleNamespace) -> None:
    gr.HTML(f'<div class="ti-advice">{ADVICE}</div>')
    ui.look = gr.Button("Find tags in nearly all images", elem_id="ti_trainer_captions_look")
    ui.common = gr.CheckboxGroup([], label="Tags in nearly all images", elem_id="ti_trainer_captions_common", visible=False)
    ui.drop = gr.Button("Remove these from all images", elem_id="ti_trainer_captions_drop", visible=False)


def _text(label: str, name: str, **given: Any) -> gr.Textbox:
    return gr.Textbox(label=label, elem_id=f"ti_trainer_{name}", **{"max_lines": 1, **given})


def _wire(page: Page, ui: SimpleNamespace) -> None:
    filters = [ui.all_of, ui.none_of, ui.bare]
    given = [ui.editor, ui.text, ui.sent, ui.find, ui.ticked, *filters]  # what nearly every handler is given
    view = [ui.editor, ui.said, ui.gallery, ui.place, ui.summary, ui.large, ui.text, ui.save, ui.ticked, ui.sent, ui.told]
    outputs = [*view, ui.all_of, ui.none_of]

    def act(button: Any, change: Callable[..., Captions], *more: Any, target: Any = ui.target) -> Any:
        """`change` is given the captions, the images that are meant, the ticked tags, and the values of `more`."""
        return listen(button.click, partial(acted, change), [*given, target, *more], outputs)

    for event in (ui.load.click, ui.folder.submit):
        listen(event, partial(opened, page), [*given, ui.folder], outputs)
    listen(ui.gallery.select, clicked, given[:5], view)
    listen(ui.find.change, ticks, [ui.editor, ui.find, ui.ticked], [ui.ticked])
    for each in filters:
        listen(each.change, sifted, given, view)
    for button, by, pages in ((ui.back, -1, True), (ui.forth, 1, True), (ui.previous, -1, False), (ui.next, 1, False)):
        listen(button.click, partial(went, by, pages), given[:5], view)
    for button, change in ((ui.apply, applied), (ui.undo, undone), (ui.redo, redone), (ui.save, saved)):
        listen(button.click, partial(changed, change), given, outputs)
    act(ui.add, lambda captions, chosen, _, tags: captions.add(chosen, entered_tags(tags)), ui.new)
    act(ui.add_front, lambda captions, chosen, _, tags: captions.add(chosen, entered_tags(tags), front=True), ui.new)
    act(ui.remove, lambda captions, chosen, ticked: captions.remove(chosen, ticked_tags(ticked)))
    act(ui.to_front, lambda captions, chosen, ticked: captions.to_front(chosen, ticked_tags(ticked)))
    act(ui.rename, renamed, ui.name)
    act(ui.replace, partial(replaced, page), ui.search, ui.by, ui.regex)
    act(ui.names, lambda captions, chosen, _: captions.take_names(chosen))
    dropped = act(
        ui.drop,
        lambda captions, _chosen, _, common: captions.remove(captions.images, ticked_tags(common)),
        ui.common,
        target=gr.State(ALL),
    )
    listen(dropped.then, lambda editor: looked(editor)[1:], [ui.editor], [ui.common, ui.drop])
    listen(ui.look.click, looked, [ui.editor], [ui.told, ui.common, ui.drop])
