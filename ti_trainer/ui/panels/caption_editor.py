"""The Edit captions panel: layout and wiring. `caption_handlers` has the handlers, and `data.caption_edits` the changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import caption_handlers as handlers
from ti_trainer.ui.panels import caption_models
from ti_trainer.ui.panels.caption_handlers import require_tags, require_ticked
from ti_trainer.ui.panels.caption_view import ALL, ONE, EditorState, Inputs, Updates, large, summary, tag_choices

ADVICE = """<p>The prompt learns what a caption describes, and the embedding learns what it leaves out. So:</p><ul>
<li><b>leave out</b> what belongs to the concept: its kind, its colors, its face. These words are better used as the
<b>initialization text</b> when you create the embedding;</li>
<li><b>describe</b> everything else: place, lighting, pose, clothes, and other objects.</li></ul>
<p>Tags of nearly all images usually describe the concept itself.</p>"""
UPDATED = (  # the components that handlers may update
    *("state", "message", "gallery", "place", "summary", "large", "text", "save", "ticked", "revision", "edit_message"),
    *("all_of", "none_of", "common", "remove_common"),
)
Components = dict[str, Any]
Handler = Callable[[EditorState, Inputs], Updates]


@dataclass(frozen=True)
class CaptionEditor:
    """What other panels need: the field for the folder, and functions that load it at an event of theirs."""

    folder: Any
    opens_at: Callable[[Any], None]
    opens_first_at: Callable[[Any], None]  # only if nothing is loaded


def panel(page: Page) -> CaptionEditor:
    """Add the editor: images on the left, editing on the right."""
    ui: Components = {"state": gr.State(EditorState())}
    with gr.Row(elem_classes=["ti-lined-up"]):
        ui["folder"] = _text(
            "Dataset directory",
            "folder",
            info="The folder with your images. Nothing is written until you click Save.",
            value=str(page.prefilled.images) if page.prefilled else "",
        )
        ui["load"] = _button("Load", "load", variant="primary", elem_classes=["ti-beside"])
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-results"]):
            ui |= _images()
        with gr.Column(elem_classes=["ti-form"]):
            ui |= _one()
            ui |= _tags()
            with gr.Accordion("Caption with a model", open=False):
                models = caption_models.section(page)
            with gr.Accordion("Search and replace", open=False):
                ui |= _search(regex=not page.is_public)
            with gr.Accordion("What to write in captions; tags in nearly all images", open=False):
                ui |= _common()
    for each in (*ui.values(), *models.values()):
        unsaved(each)
    on = _wire(page, ui)
    _wire_models(page, ui, models)
    opens, opens_first = (partial(each, page) for each in (handlers.open_folder, handlers.open_first))
    return CaptionEditor(ui["folder"], lambda event: on(event, opens), lambda event: on(event, opens_first))


def _images() -> Components:
    ui: Components = {}
    with gr.Row():
        ui["all_of"] = gr.Dropdown([], label="With all of these tags", multiselect=True, elem_id=_id("with"))
        ui["none_of"] = gr.Dropdown([], label="With none of these tags", multiselect=True, elem_id=_id("without"))
    ui["uncaptioned"] = gr.Checkbox(label="Only images without a caption", value=False, elem_id=_id("uncaptioned"))
    ui["gallery"] = gr.Gallery(
        label="Images",
        show_label=False,
        columns=4,
        height=860,
        object_fit="contain",
        allow_preview=False,
        elem_id=_id("gallery"),
        elem_classes=["ti-captioned"],
    )
    with gr.Row(elem_classes=["ti-buttons", "ti-pager"]):
        ui["previous_page"] = _button("◀", "previous_page")
        ui["place"] = gr.HTML(elem_id=_id("place"))
        ui["next_page"] = _button("▶", "next_page")
    return ui


def _one() -> Components:
    """The summary, the buttons that concern all changes, and the selected image with its caption."""
    ui: Components = {"summary": gr.HTML(summary(EditorState()), elem_id=_id("summary"))}
    with gr.Row(elem_classes=["ti-buttons"]):
        ui["undo"] = _button("Undo", "undo")
        ui["redo"] = _button("Redo", "redo")
        ui["save"] = _button("Save", "save", variant="primary")
    ui["message"] = gr.HTML(elem_id=_id("message"))
    ui["large"] = gr.HTML(large(EditorState()), elem_id=_id("large"))
    ui["text"] = _text("Caption of the selected image", "text", lines=3, max_lines=8)
    with gr.Row(elem_classes=["ti-hidden"]):
        ui["revision"] = _text("Revision of the caption", "revision", value="0")
    with gr.Row(elem_classes=["ti-buttons"]):
        ui["previous"] = _button("◀ Previous", "previous")
        ui["apply"] = _button("Apply", "apply")
        ui["next"] = _button("Next ▶", "next")
    return ui


def _tags() -> Components:
    ui: Components = {"target": gr.Radio([ALL, ONE], value=ALL, label="Edit the captions of", elem_id=_id("target"))}
    with gr.Row(elem_classes=["ti-lined-up"]):
        ui["new_tags"] = _text("New tags", "new_tags", placeholder="outdoors, grass", scale=2)
        ui["add"] = _button("Append", "add", elem_classes=["ti-beside"])
        ui["add_front"] = _button("Prepend", "add_front", elem_classes=["ti-beside"])
    ui["ticked"] = gr.CheckboxGroup(
        [],
        label="Tags of the images shown, with the number of images: tick those to edit",
        elem_id=_id("tags"),
        elem_classes=["ti-tags"],
    )
    ui["find_tag"] = _text("Find a tag", "find_tag", placeholder="part of a tag")
    with gr.Row(elem_classes=["ti-buttons"]):
        ui["remove"] = _button("Remove ticked", "remove")
        ui["to_front"] = _button("Move ticked to front", "to_front")
    with gr.Row(elem_classes=["ti-lined-up"]):
        ui["new_name"] = _text("New name", "new_name", scale=2)
        ui["rename"] = _button("Rename ticked", "rename", elem_classes=["ti-beside"])
    ui["edit_message"] = gr.HTML(elem_id=_id("edit_message"))
    return ui


def _search(*, regex: bool) -> Components:
    ui: Components = {}
    with gr.Row():
        ui["search"] = _text("Search for", "search")
        ui["replacement"] = _text("Replace with", "replacement")
    info = r"For example (\w+) hair; \1 in the replacement is what the first group ( ) matched."
    ui["regex"] = gr.Checkbox(label="Regular expression", info=info, value=False, visible=regex, elem_id=_id("regex"))
    with gr.Row(elem_classes=["ti-buttons"]):
        ui["replace"] = _button("Replace", "replace")
        ui["use_names"] = _button("Use file names as missing captions", "use_names")
    return ui


def _common() -> Components:
    gr.HTML(f'<div class="ti-advice">{ADVICE}</div>')
    return {
        "find_common": _button("Find tags in nearly all images", "find_common"),
        "common": gr.CheckboxGroup([], label="Tags in nearly all images", elem_id=_id("common"), visible=False),
        "remove_common": _button("Remove ticked from all images", "remove_common", visible=False),
    }


def _id(name: str) -> str:
    return f"ti_trainer_captions_{name}"


def _text(label: str, name: str, **options: Any) -> gr.Textbox:
    return gr.Textbox(label=label, elem_id=_id(name), **{"max_lines": 1, **options})


def _button(label: str, name: str, **options: Any) -> gr.Button:
    return gr.Button(label, elem_id=_id(name), **options)


def _inputs(ui: Components) -> Components:
    return {each.name: ui[each.name] for each in fields(Inputs)}


def _read(ui: Components, values: Mapping[Any, Any]) -> Inputs:
    return Inputs(**{name: values[component] for name, component in _inputs(ui).items()})


def _wire_models(page: Page, ui: Components, models: Components) -> None:
    """First caption, with progress; then edit what is in the editor by then, so that no edit in between is lost."""
    captioning, found = caption_models.Captioning(page), gr.State(caption_models.Found())
    asked = [models[name] for name in ("captioners", "caption_action", *caption_models.MODELS)]
    both = {**ui, **models}

    def caption(values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        labels, action, *paths = (values[component] for component in asked)
        folders = {name: path or "" for name, path in zip(caption_models.MODELS, paths, strict=True)}
        for html, texts in captioning.run(values[ui["state"]], _read(ui, values), labels, action, folders):
            yield {models["caption_message"]: html, found: texts}

    def apply(values: dict[Any, Any]) -> dict[Any, Any]:
        updates = caption_models.apply(values[ui["state"]], _read(ui, values), values[found])
        return {both[name]: update for name, update in updates.items()}

    given = {ui["state"], *_inputs(ui).values()}
    made = listen(models["caption"].click, caption, {*given, *asked}, [models["caption_message"], found], queue=True)
    outputs = [models["caption_message"], *(ui[name] for name in UPDATED)]
    listen(made.then, apply, {*given, found}, outputs)
    listen(models["caption_stop"].click, captioning.stop)


def _wire(page: Page, ui: Components) -> Callable[[Any, Handler], Any]:
    """Connect the components; returns the function that has a handler called at an event."""
    given, outputs = {ui["state"], *_inputs(ui).values()}, [ui[name] for name in UPDATED]

    def call(handler: Callable[..., Updates], values: dict[Any, Any], *args: Any) -> dict[Any, Any]:
        return {ui[name]: update for name, update in handler(values[ui["state"]], _read(ui, values), *args).items()}

    def on(event: Any, handler: Handler) -> Any:
        """Call `handler(state, inputs)` at an event, and apply the updates that it returns."""
        return listen(event, partial(call, handler), given, outputs)

    def on_edit(name: str, change: handlers.Edit) -> Any:
        return on(ui[name].click, partial(handlers.edit, change))

    def selected(values: dict[Any, Any], event: gr.SelectData) -> dict[Any, Any]:
        return call(handlers.select, values, event.index)

    for event in (ui["load"].click, ui["folder"].submit):
        on(event, partial(handlers.open_folder, page))
    listen(ui["gallery"].select, selected, given, outputs)
    on(ui["find_tag"].change, tag_choices)
    for name in ("all_of", "none_of", "uncaptioned"):
        on(ui[name].change, handlers.apply_filters)
    for name, by, pages in (
        ("previous_page", -1, True),
        ("next_page", 1, True),
        ("previous", -1, False),
        ("next", 1, False),
    ):
        on(ui[name].click, partial(handlers.step, by, pages))
    actions = {"apply": handlers.keep_typed, "undo": handlers.undo, "redo": handlers.redo, "save": handlers.save}
    for name, action in actions.items():
        on(ui[name].click, partial(handlers.run, action))
    on_edit("add", lambda captions, images, inputs: captions.add(images, require_tags(inputs.new_tags)))
    on_edit("add_front", lambda captions, images, inputs: captions.add(images, require_tags(inputs.new_tags), front=True))
    on_edit("remove", lambda captions, images, inputs: captions.remove(images, require_ticked(inputs.ticked)))
    on_edit("to_front", lambda captions, images, inputs: captions.to_front(images, require_ticked(inputs.ticked)))
    on_edit("rename", handlers.rename_tag)
    on_edit("replace", partial(handlers.replace_text, page))
    on_edit("use_names", lambda captions, images, _: captions.take_names(images))
    removed = on(ui["remove_common"].click, handlers.remove_common)
    on(removed.then, handlers.find_common_again)
    on(ui["find_common"].click, handlers.find_common)
    return on
