"""The Quick train panel: images, a name and what it is; one button prepares the images, creates the embedding and trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.data.caption_files import captions_among
from ti_trainer.data.image_files import list_images
from ti_trainer.errors import BusyError, ConfigError, DatasetError, TITrainerError
from ti_trainer.files import entered_path, is_within, upload_folders
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import name_warnings
from ti_trainer.runs.quick import KINDS, QuickTraining
from ti_trainer.runs.suggestions import free_name, is_trained, read_captions, suggested_text
from ti_trainer.runs.uploads import Uploads
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import quick_progress
from ti_trainer.ui.panels.preprocess import Preprocess
from ti_trainer.ui.panels.train import TrainForm, Values, trainable
from ti_trainer.ui.render import STOP, notice, refusal, ways_out
from ti_trainer.ui.thumbnails import thumbnail_uri
from ti_trainer.wording import counted

ABOUT = "Teach the model a new word from 5 to 20 images: drop them, choose a name, and press the button."
WELCOME = (
    "Everything is filled in for a first run: press the button to teach the tiny model a new word from eight images. It "
    "takes about a minute."
)
PREFIX = "ti_trainer_quick_"
ASK = PREFIX + "ask"  # a hidden text box: what a button of a refusal asks for
REPLACE, RENAME = "replace", "rename"
THUMBNAILS, THUMBNAIL_PX = 12, 96
SHOW_STAGES = (
    "() => { window.tiTrainerRefresh(); (document.querySelector('gradio-app')?.shadowRoot ?? document)"
    ".querySelector('#ti_trainer_quick_stages')?.scrollIntoView({ behavior: 'smooth', block: 'nearest' }); }"
)
FAVOR_LABELS = {"Follows prompts better": "prompts", "Closer to the images": "images"}


@dataclass
class QuickTrain:
    """The components of the panel; `live` are those that `train_progress.refresh` keeps up to date."""

    page: Page
    files: Any
    folder: Any
    name: Any
    kind: Any
    favor: Any
    init_text: Any
    overwrite: Any
    about_images: Any
    about_name: Any
    message: Any
    start: Any
    ask: Any
    live: dict[str, Any]

    @property
    def inputs(self) -> set[Any]:
        """The components whose values `begin` gets."""
        return {self.files, self.folder, self.name, self.kind, self.favor, self.init_text, self.overwrite}

    def begin(self, values: Values, wanted: str = "") -> QuickTraining:
        """Start what the form describes; what was started. REPLACE an existing embedding, or RENAME the new one."""
        page, start = self.page, self.page.prefilled
        uploads = Uploads.of(paths_of(values[self.files]))
        work = QuickTraining(
            page.host,
            self._name(values, wanted),
            entered_path(values[self.folder]),
            str(values[self.kind]).lower(),
            values[self.init_text] or "",
            start.config.to_dict() if start else {},
            self.page.overwrite(values[self.overwrite] or wanted == REPLACE),
            FAVOR_LABELS.get(values[self.favor], ""),
        )
        if not uploads.images and not uploads.refused and work.images == Path():
            message = "There are no images yet: drop some into the box, or enter the path of a folder."
            raise DatasetError(message)
        page.quick.refuse_if_busy(page.job, page.preprocessing)
        work.check_name()
        if uploads.images or uploads.refused:
            work = work.on(uploads.keep(page.host, work.name))
        page.quick.start(work, page.job, page.preprocessing)
        return work

    def _name(self, values: Values, wanted: str) -> str:
        name = (values[self.name] or "").strip()
        return free_name(self.page.host, name) if wanted == RENAME else name


def panel(page: Page) -> QuickTrain:
    """Add the form on the left; on the right the button, in view without scrolling, and the stages."""
    start = page.prefilled
    name = free_name(page.host, start.name) if start else ""
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            gr.HTML(notice("info", WELCOME) if start else f'<div class="ti-subdued">{ABOUT}</div>')
            files = gr.File(label="Images", file_count="multiple", height=126, elem_id=PREFIX + "files")
            folder = gr.Textbox(
                label="Or a folder with images",
                info="Its path on the computer that runs this page. Images are copied, never changed.",
                value=str(start.images) if start else "",
                max_lines=1,
                elem_id=PREFIX + "folder",
            )
            about_images = gr.HTML(about_folder(page, str(start.images)) if start else "", elem_id=PREFIX + "about_images")
            with gr.Row():
                name_field = gr.Textbox(
                    label="Name",
                    info="The new word for your prompts; one that is not used otherwise.",
                    placeholder="my-cat",
                    value=name,
                    max_lines=1,
                    elem_id=PREFIX + "name",
                )
                init_text = gr.Textbox(
                    label="What it looks like",
                    info="In a word or two: woman, teapot, watercolor. Training starts there.",
                    value=start.init_text if start else "",
                    max_lines=1,
                    elem_id=PREFIX + "init_text",
                )
            about_name = gr.HTML(elem_id=PREFIX + "about_name")
            overwrite = gr.Checkbox(
                label="Replace the existing embedding",
                info="Its training is lost.",
                value=False,
                visible=False,
                elem_id=PREFIX + "overwrite",
            )
            kinds = [each.capitalize() for each in KINDS]
            with gr.Row():
                kind = gr.Radio(kinds, value="Object", label="What is it?", elem_id=PREFIX + "kind")
                favors = list(FAVOR_LABELS)
                favor = gr.Radio(favors, value=favors[0], label="What matters more?", elem_id=PREFIX + "favor")
        with gr.Column(elem_classes=["ti-results"]):
            button = gr.Button("Train", variant="primary", elem_id=PREFIX + "start")
            message = gr.HTML(elem_id=PREFIX + "message")
            with gr.Row(elem_classes=["ti-hidden"]):
                ask = unsaved(gr.Textbox(value="", elem_id=ASK))
            live: dict[str, Any] = {}
            with gr.Row(elem_classes=["ti-buttons"]):
                live["quick_stop"] = gr.Button("Stop", interactive=False, size="sm", elem_id=PREFIX + "stop")
                label = "Use in txt2img" if page.txt2img else "Generate with it"
                live["quick_use"] = gr.Button(label, interactive=False, size="sm", elem_id=PREFIX + "use")
                live["quick_compare"] = gr.Button("Compare copies", interactive=False, size="sm", elem_id=PREFIX + "compare")
            # Last, since it grows: the buttons stay where they are, and in view.
            live["quick_stages"] = gr.HTML(quick_progress.stages(page.quick.snapshot()), elem_id=PREFIX + "stages")
    fields = (files, folder, name_field, kind, favor, init_text, overwrite)
    made = QuickTrain(page, *fields, about_images, about_name, message, button, ask, live)
    for each in made.inputs:
        unsaved(each)
    listen(live["quick_stop"].click, page.quick.stop)
    listen(name_field.change, partial(check_name, page), [name_field], [about_name, overwrite])
    dropped = [about_images, folder, init_text, message]
    listen(files.change, partial(look_at_files, page), [files, folder, init_text], dropped, show_progress="minimal")
    for event in (folder.blur, folder.submit):
        listen(event, partial(look_at_folder, page), [folder, init_text], [about_images, files, init_text, message])
    return made


def wire(quick: QuickTrain, form: TrainForm, preprocess: Preprocess, folders: Any) -> None:
    """Start when the button is clicked, and fill in the forms where a stage can be changed by hand.

    `folders` is the `SharedFolder`, which gets the dataset's folder.
    """
    widgets = form.form.widgets
    sources = (preprocess.widgets["source"], preprocess.widgets["destination"])

    def start(values: Values) -> dict[Any, Any]:
        wanted = (values.get(quick.ask) or "").partition(" ")[0]
        if quick.ask in values and not wanted:  # gradio 6 clears a text box soon after creating it
            return {quick.message: gr.update()}
        try:
            work = quick.begin(values, wanted)
        except (TITrainerError, OSError) as error:
            exists = isinstance(error, ConfigError) and error.option == "overwrite"
            offered = {quick.overwrite: gr.update(visible=True)} if exists else {}
            return {quick.message: _refused(quick.page, error, quick._name(values, "")), **offered}
        config = work.config(captions=work.preprocessing().captioning is not None or work.is_captioned).to_dict()
        by_hand = {**folders.filled(values, str(work.dataset)), form.images: str(work.dataset)}
        by_hand |= {sources[0]: str(work.images), sources[1]: str(work.dataset)}
        return {
            quick.message: "",
            quick.overwrite: gr.update(value=False, visible=False),
            quick.about_name: "",
            **({quick.name: work.name} if wanted == RENAME else {}),
            **by_hand,
            form.name: gr.update(choices=trainable(quick.page), value=work.name),
            **{widget: config[name] for name, widget in widgets.items()},
        }

    outputs = [
        quick.message,
        quick.overwrite,
        quick.about_name,
        quick.name,
        *sources,
        *folders.outputs,
        form.name,
        *widgets.values(),
    ]
    given = {*quick.inputs, *folders.given}
    for event, inputs in ((quick.start.click, given), (quick.ask.change, {*given, quick.ask})):
        listen(listen(event, start, inputs, list(dict.fromkeys(outputs))).then, None, js=SHOW_STAGES)


def paths_of(files: Any) -> list[Path]:
    """The paths of uploaded files, as each gradio passes them; ConfigError for one that was not uploaded."""
    found = []
    for each in files or ():
        # gradio 3 copies any file that a request names; orig_name is what it named.
        named, path = Path(getattr(each, "orig_name", None) or each), Path(getattr(each, "name", each))
        if named.is_absolute() and not any(is_within(named, folder) for folder in upload_folders()):
            message = f"{named.name} is not an uploaded file: drop the images again."
            raise ConfigError(message)
        found.append(path)
    return found


def look_at_files(page: Page, files: Any, folder: str, text: str) -> list[Any]:
    """Show what was dropped, which is used instead of a folder; suggests an init text from captions, clears the message."""
    if not files:  # removed, or a folder was entered
        return [about_folder(page, folder), gr.update(), gr.update(), gr.update()]
    try:
        uploads = Uploads.of(paths_of(files))
    except TITrainerError as error:
        return [refusal(error), gr.update(), gr.update(), ""]
    shown = _thumbnails(uploads.images) + notice("warning", uploads.about_refused)
    was_prefilled = page.prefilled is not None and folder == str(page.prefilled.images)
    if was_prefilled and page.prefilled is not None and text == page.prefilled.init_text:
        text = ""
    return [shown, "", text or suggested_text(read_captions(uploads.captions)), ""]


def look_at_folder(page: Page, folder: str, text: str) -> list[Any]:
    """Show the images of a folder, which is used instead of what was dropped; suggests an init text from captions."""
    if not (folder or "").strip():
        return [gr.update()] * 4
    try:
        path = page.dataset_dir(folder)
        listing = list_images(path)
    except (TITrainerError, OSError) as error:
        return [refusal(error), None, gr.update(), ""]
    captions = captions_among(listing.files, listing.images)
    return [_thumbnails(listing.images), None, text or suggested_text(read_captions(captions.values())), ""]


def about_folder(page: Page, folder: str) -> str:
    """The first images of a folder; "" if there is none that can be read."""
    try:
        return _thumbnails(list_images(page.dataset_dir(folder)).images)
    except (TITrainerError, OSError):
        return ""


def check_name(page: Page, name: str) -> list[Any]:
    """Whether the name is valid and free, and whether to offer to replace the embedding."""
    name, hidden = (name or "").strip(), gr.update(visible=False, value=False)
    if not name:
        return ["", hidden]
    try:
        embeddings_dir.checked_new_name(name)
        warnings = name_warnings(page.host.open_model(), page.host.embeddings_dir, name)
        if is_trained(page.host, name):
            message = f"{name} exists already. Choose another name, such as {free_name(page.host, name)}, or replace it."
            return [notice("warning", message), gr.update(visible=True)]
    except TITrainerError as error:
        return [notice("error", str(error)), hidden]
    return ["".join(notice("warning", each) for each in warnings), hidden]


def _refused(page: Page, error: Exception, name: str) -> str:
    """Why nothing was started, with ways out; the refusal of a second press is no error."""
    if isinstance(error, BusyError):
        is_second = page.quick.preparing
        return notice("info", str(error)) + ways_out(STOP) if is_second else refusal(error)
    if not isinstance(error, ConfigError) or error.option != "overwrite":
        return refusal(error)
    replacing = {} if page.is_public else {"Replace the existing embedding": f"ask:{ASK} {REPLACE}"}
    return refusal(error, {f"Train as {free_name(page.host, name)}": f"ask:{ASK} {RENAME}", **replacing})


def _thumbnails(images: Sequence[Path]) -> str:
    """The number of images, and the first of them."""
    uris = [(path.name, thumbnail_uri(path, THUMBNAIL_PX)) for path in images[:THUMBNAILS]]
    shown = "".join(f'<img src="{uri}" alt="{escape(name)}" title="{escape(name)}">' for name, uri in uris if uri)
    more = f"<span>and {len(images) - THUMBNAILS} more</span>" if len(images) > THUMBNAILS else ""
    return f'<div class="ti-subdued">{counted(len(images), "image")}</div><div class="ti-thumbs">{shown}{more}</div>'
