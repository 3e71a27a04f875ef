"""The Quick train panel: images, a name and what it is; one button prepares the images, creates the embedding and trains."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.errors import BusyError, ConfigError, DatasetError, TITrainerError
from ti_trainer.files import entered_path
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import name_warnings
from ti_trainer.runs.queue_file import TWICE
from ti_trainer.runs.quick import KINDS, QuickTraining
from ti_trainer.runs.suggestions import free_name, is_trained
from ti_trainer.runs.uploads import Uploads
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import queue, quick_progress
from ti_trainer.ui.panels.preprocess import Preprocess
from ti_trainer.ui.panels.quick_images import about_folder, look_at_files, look_at_folder, paths_of
from ti_trainer.ui.panels.train import TrainForm, Values, trainable
from ti_trainer.ui.render import STOP, notice, refusal, ways_out

ABOUT = (
    '<div class="ti-subdued">Teach the model a new word from 5 to 20 images: drop them, choose a name, and press the button.'
    "</div>"
)
WELCOME = (
    "Everything is filled in for a first run: press the button to teach the tiny model a new word from eight images. It "
    "takes about a minute."
)
PREFIX = "ti_trainer_quick_"
ASK = PREFIX + "ask"  # a hidden text box: what a button of a refusal asks for
QUEUED, REPLACE, RENAME = "queue", "replace", "rename"
SHOW_STAGES = (
    "() => { window.tiTrainerRefresh(); (document.querySelector('gradio-app')?.shadowRoot ?? document)"
    ".querySelector('#ti_trainer_quick_stages')?.scrollIntoView({ behavior: 'smooth', block: 'nearest' }); }"
)


@dataclass
class QuickTrain:
    """The components of the panel; `live` are those that `train_progress.refresh` keeps up to date."""

    page: Page
    files: Any
    folder: Any
    name: Any
    kind: Any
    init_text: Any
    overwrite: Any
    about_images: Any
    about_name: Any
    message: Any
    start: Any
    add: Any
    ask: Any
    live: dict[str, Any]

    @property
    def inputs(self) -> set[Any]:
        """The components whose values `begin` gets."""
        return {self.files, self.folder, self.name, self.kind, self.init_text, self.overwrite}

    def begin(self, values: Values, wanted: Collection[str] = ()) -> QuickTraining:
        """Start what the form describes, or QUEUED add it to the queue; what it is.

        REPLACE an existing embedding, or RENAME the new one.
        """
        page, start = self.page, self.page.prefilled
        uploads = Uploads.of(paths_of(values[self.files]))
        work = QuickTraining(
            page.host,
            self._name(values, wanted),
            entered_path(values[self.folder]),
            str(values[self.kind]).lower(),
            values[self.init_text] or "",
            start.config.to_dict() if start else {},
            self.page.overwrite(values[self.overwrite] or REPLACE in wanted),
        )
        if not uploads.images and not uploads.refused and work.images == Path():
            message = "There are no images yet: drop some into the box, or enter the path of a folder."
            raise DatasetError(message)
        if QUEUED not in wanted:
            page.quick.refuse_if_busy(page.job, page.preprocessing)
        work.check_name()
        if uploads.images or uploads.refused:
            work = work.on(uploads.keep(page.host, work.name))
        if QUEUED not in wanted:
            page.quick.start(work, page.job, page.preprocessing)
        return work

    def _name(self, values: Values, wanted: Collection[str]) -> str:
        name = (values[self.name] or "").strip()
        return self.free_name(name) if RENAME in wanted else name

    def free_name(self, name: str) -> str:
        """The name, with a number if an embedding has it or if one in the queue will."""
        return free_name(self.page.host, name, self.page.queue.new_names)


def panel(page: Page) -> QuickTrain:
    """Add the form on the left; on the right the button, in view without scrolling, and the stages."""
    start = page.prefilled
    name = free_name(page.host, start.name) if start else ""
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            about = gr.HTML(notice("info", WELCOME) if start else ABOUT)
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
            kind = gr.Radio(kinds, value="Object", label="What is it?", elem_id=PREFIX + "kind")
        with gr.Column(elem_classes=["ti-results"]):
            with gr.Row(elem_classes=["ti-side-by-side"]):
                add = gr.Button("Add to queue", elem_id=PREFIX + "queue")
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
    fields = (files, folder, name_field, kind, init_text, overwrite)
    made = QuickTrain(page, *fields, about_images, about_name, message, button, add, ask, live)
    for each in made.inputs:
        unsaved(each)
    listen(live["quick_stop"].click, page.quick.stop)
    listen(name_field.change, partial(check_name, page), [name_field], [about_name, overwrite])
    dropped = [about_images, folder, init_text, message]
    listen(files.change, partial(look_at_files, page), [files, folder, init_text], dropped, show_progress="minimal")
    listen(files.change, lambda: ABOUT, [], [about])  # nothing is filled in any more
    for event in (folder.blur, folder.submit):
        listen(event, partial(look_at_folder, page), [folder, init_text], [about_images, files, init_text, message])
    return made


def wire(quick: QuickTrain, form: TrainForm, preprocess: Preprocess, folders: Any) -> None:
    """Start when the button is clicked, and fill in the forms where a stage can be changed by hand.

    `folders` is the `SharedFolder`, which gets the dataset's folder.
    """
    widgets = form.form.widgets
    sources = (preprocess.widgets["source"], preprocess.widgets["destination"])

    def start(values: Values, wanted: Collection[str] = ()) -> dict[Any, Any]:
        said = ""
        try:
            work = quick.begin(values, wanted)
            if QUEUED in wanted:
                said = notice("good", queue.add(quick.page, work)) + ways_out(queue.SHOW)
        except (TITrainerError, OSError) as error:
            exists = isinstance(error, ConfigError) and error.option == "overwrite"
            offered = {quick.overwrite: gr.update(visible=True)} if exists else {}
            return {quick.message: _refused(quick, error, quick._name(values, ()), wanted), **offered}
        shown = {
            quick.message: said,
            quick.overwrite: gr.update(value=False, visible=False),
            quick.about_name: "",
            **({quick.name: work.name} if RENAME in wanted else {}),
        }
        return shown if QUEUED in wanted else {**shown, **by_hand(values, work)}

    def by_hand(values: Values, work: QuickTraining) -> dict[Any, Any]:
        config = work.config(captions=work.preprocessing().captioning is not None or work.is_captioned).to_dict()
        return {
            **folders.filled(values, str(work.dataset)),
            form.images: str(work.dataset),
            sources[0]: str(work.images),
            sources[1]: str(work.dataset),
            form.name: gr.update(choices=trainable(quick.page), value=work.name),
            **{widget: config[name] for name, widget in widgets.items()},
        }

    def asked(values: Values) -> dict[Any, Any]:
        wanted = (values[quick.ask] or "").split()
        return start(values, wanted) if wanted else {quick.message: gr.update()}  # gradio 6 clears a new text box

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
    given, outputs = {*quick.inputs, *folders.given}, list(dict.fromkeys(outputs))
    for event, handler, inputs, js in (
        (quick.start.click, start, given, SHOW_STAGES),
        (quick.add.click, partial(start, wanted=[QUEUED]), given, queue.REFRESH),
        (quick.ask.change, asked, {*given, quick.ask}, SHOW_STAGES),
    ):
        listen(listen(event, handler, inputs, outputs).then, None, js=js)


def check_name(page: Page, name: str) -> list[Any]:
    """Whether the name is valid and free, and whether to offer to replace the embedding."""
    name, hidden = (name or "").strip(), gr.update(visible=False, value=False)
    if not name:
        return ["", hidden]
    try:
        embeddings_dir.checked_new_name(name)
        warnings = name_warnings(page.host.open_model(), page.host.embeddings_dir, name)
        if is_trained(page.host, name):
            free = free_name(page.host, name, page.queue.new_names)
            message = f"{name} exists already. Choose another name, such as {free}, or replace it."
            return [notice("warning", message), gr.update(visible=True)]
    except TITrainerError as error:
        return [notice("error", str(error)), hidden]
    return ["".join(notice("warning", each) for each in warnings), hidden]


def _refused(quick: QuickTrain, error: Exception, name: str, wanted: Collection[str]) -> str:
    """Why nothing was started, with ways out; the refusal of a second press is no error."""
    page = quick.page

    def ask(*more: str) -> str:
        return f"ask:{ASK} {' '.join(sorted({*wanted, *more}))}"

    if isinstance(error, BusyError):
        if page.quick.preparing and page.quick.snapshot().name == name:
            return notice("info", str(error)) + ways_out(STOP)
        return refusal(error, {"Add to queue": ask(QUEUED)})
    if not isinstance(error, ConfigError) or error.option not in ("overwrite", TWICE):
        return refusal(error)
    free = quick.free_name(name)
    ways = {f"Add as {free}" if QUEUED in wanted else f"Train as {free}": ask(RENAME)}
    if error.option == TWICE:
        return notice("info", str(error)) + ways_out({**ways, **queue.SHOW})
    if not page.is_public:
        ways["Replace the existing embedding"] = ask(REPLACE)
    return refusal(error, ways)
