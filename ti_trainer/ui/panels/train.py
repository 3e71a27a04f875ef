"""The Train panel, left side: the embedding, the dataset, options, presets, and the buttons that check and start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.config.training import SECTIONS, problems
from ti_trainer.data.image_files import find_images
from ti_trainer.data.prompts import NAME, find_template, templates
from ti_trainer.embedding import negative_name
from ti_trainer.errors import ConfigError, DatasetError, TITrainerError
from ti_trainer.files import entered_path
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.datasets import subsets_of
from ti_trainer.runs.session import Session
from ti_trainer.ui.form import FIRST, Form, offered, starting_values, typed
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import folder_rows, preset_row, queue, train_refusals
from ti_trainer.ui.panels.train_refusals import NEW, Prepare
from ti_trainer.ui.render import notice, refusal, ways_out
from ti_trainer.ui.widgets import error_slot, error_update
from ti_trainer.wording import encodable

WELCOME = (
    "Everything is filled in for a first run: click Train Embedding to teach the tiny model a new word from eight images. "
    "It takes about a minute."
)
FROM_TXT2IMG = "Read parameters (prompt, etc...) from txt2img tab when making previews"  # A1111's label
ALL_OPTIONS = "All options"
HIGHLIGHTED = "Fix the highlighted fields first."
WAYS = {"name": (NEW, "show:Create embedding"), "images": ("Prepare images", "show:Preprocess")}  # by field
Values = Mapping[Any, Any]  # of components, as gradio passes them


@dataclass
class TrainForm:
    """The left side of the panel, for the handlers of its buttons."""

    page: Page
    form: Form
    name: Any
    name_error: Any
    images: Any
    images_error: Any
    from_txt2img: Any | None
    presets: preset_row.Row
    message: Any
    check: Any
    start: Any
    ways: dict[Any, Prepare]  # buttons that the refusals press, and what each does before the run is started
    queueing: dict[Any, Prepare | None]  # the same for buttons that add the run to the queue
    all_options: Any
    about_negative: Any

    @property
    def inputs(self) -> set[Any]:
        """The components whose values a handler gets, for `read`."""
        txt2img = {self.from_txt2img, *self.page.txt2img.values()} if self.from_txt2img is not None else set()
        return {self.name, self.images, *self.form.widgets.values(), *txt2img}

    @property
    def slots(self) -> dict[str, Any]:
        """The error slots by field."""
        return {"name": self.name_error, "images": self.images_error, **self.form.slots}

    @property
    def outputs(self) -> list[Any]:
        """What `start` updates."""
        return [self.message, self.all_options, self.about_negative, *self.slots.values()]

    def read(self, values: Values) -> tuple[str, Path, dict[str, Any]]:
        """The embedding, the dataset and the options; on request with the previews' options from txt2img."""
        entered = typed({name: values[widget] for name, widget in self.form.widgets.items()})
        if self.from_txt2img is not None and values[self.from_txt2img]:
            entered |= typed({name: values[component] for name, component in self.page.txt2img.items()})
            if "preview_prompt" in entered:  # one prompt there, whatever its lines
                entered["preview_prompt"] = " ".join(str(entered["preview_prompt"]).split())
            seed = str(entered.get("preview_seed"))  # a text box with some options of the WebUI
            entered["preview_seed"] = int(seed) if seed.isdecimal() else 0  # -1, a random seed: previews need a fixed one
        return values[self.name] or "", entered_path(values[self.images]), entered

    def session(self, name: str, images: Path, options: Mapping[str, Any]) -> Session:
        """The run that the form describes."""
        return Session(self.page.host, name, images, self.form.config(options))

    def wrong(self, name: str, images: Path, options: Mapping[str, Any]) -> dict[str, str]:
        """Everything that is wrong with the form, by field."""
        wrong = problems(options)
        host = self.page.host
        if not name:
            wrong["name"] = "Choose an embedding, or create one first."
        elif embeddings_dir.find(host.embeddings_dir, name) is None:
            wrong["name"] = f"The embedding {name!r} no longer exists: refresh the list."
        try:
            if images == Path():
                message = "Enter the path of the folder with the training images."
                raise DatasetError(message)
            for subset in subsets_of(host, images):
                find_images(subset.folder)
        except (TITrainerError, OSError) as error:
            wrong["images"] = str(error)
        if find_template(options.get("template", ""), host.template_dirs) is None:
            wrong["template"] = "Choose one of the templates in the list."
        return wrong

    def errors(self, wrong: Mapping[str, str]) -> dict[Any, Any]:
        """Updates of all error slots: shows each message beside its field, and hides the other slots."""
        return {slot: error_update(wrong.get(name)) for name, slot in self.slots.items()}

    def in_accordions(self, wrong: Mapping[str, str]) -> list[str]:
        """The errors of fields that may be folded away, each with where it is."""
        titles = {
            each.name: f"{ALL_OPTIONS}, {SECTIONS[each.section]}"
            for each in offered(self.page.host)
            if each.name not in FIRST
        }
        return [f"{titles[name]}: {message}" for name, message in wrong.items() if name in titles]


def panel(page: Page) -> TrainForm:
    """Add the form; what a first run needs is visible without scrolling."""
    host, start = page.host, page.prefilled
    choices = {"template": list(templates(host.template_dirs)), "preview_sampler": ["", *host.samplers]}
    form = Form(host, starting_values(host, start.config if start else None), choices)
    with gr.Row(elem_classes=["ti-pairs", "ti-compact"]):
        with gr.Column(min_width=160, elem_classes=["ti-field"]):
            with gr.Row(elem_classes=["ti-tight"]):
                name = gr.Dropdown(
                    trainable(page),
                    value=start.name if start else None,
                    label="Embedding",
                    elem_id="ti_trainer_train_name",
                    allow_custom_value=True,  # the folder may have newer files than the list; the value is checked
                )
                refresh = gr.Button("↻", elem_id="ti_trainer_train_refresh", elem_classes=["ti-icon"])
            name_error = error_slot()
        with gr.Column(min_width=160, elem_classes=["ti-field"]):
            images = gr.Textbox(
                label="Dataset directory",
                info="The folder with the training images, with optional captions in .txt or .caption files of the same "
                "names. Or a .toml file that lists several folders.",
                placeholder="Path to directory with input images",
                value=str(start.images) if start else "",
                max_lines=1,
                elem_id="ti_trainer_train_images",
            )
            images_error = error_slot()
        form.put(FIRST[0])
        row = preset_row.put(page)
        negative = train_refusals.put_negative()
    with gr.Row(elem_classes=["ti-pairs", "ti-compact", "ti-short"]):
        for each in FIRST[1:]:
            form.put(each)
    message = gr.HTML(notice("info", WELCOME) if start else "", elem_id="ti_trainer_train_message")
    with gr.Row(elem_classes=["ti-side-by-side"]):
        check = gr.Button("Check dataset", elem_id="ti_trainer_train_check")
        add = gr.Button("Add to queue", elem_id=train_refusals.ADD)
        begin = gr.Button("Train Embedding", variant="primary", elem_id="ti_trainer_train_start")
    ways, queueing = train_refusals.hidden()
    all_options, from_txt2img = _all_options(page, form)
    folder_rows.panel(page, images)
    preset_row.put_save(row)
    for each in (name, images):
        unsaved(each)
    listen(refresh.click, lambda: gr.update(choices=trainable(page)), [], [name])
    form.check_live()
    train_refusals.wire_negative(page, *negative, name, form.widgets["negative"])
    preset_row.wire(page, row, form)
    _clear_message_on_change(page, message, {"name": name, "images": images, "preset": row.preset})
    fields = (name, name_error, images, images_error, from_txt2img)
    buttons = (check, begin, ways, {add: None, **queueing})
    return TrainForm(page, form, *fields, row, message, *buttons, all_options, negative[0])


def _all_options(page: Page, form: Form) -> tuple[Any, Any | None]:
    """Add all other options, by section, with a search field: the accordion, and the box that takes them from txt2img."""
    from_txt2img = None
    with gr.Accordion(ALL_OPTIONS, open=False, elem_id="ti_trainer_all_options") as accordion:
        unsaved(
            gr.Textbox(
                show_label=False,
                placeholder="Search the options",
                max_lines=1,
                container=False,
                elem_id="ti_trainer_options_search",
            )
        )
        for section, title in SECTIONS.items():
            with gr.Column(elem_classes=["ti-section"]):
                gr.HTML(f'<div class="ti-section-title">{title}</div>')
                if section == "previews" and page.txt2img:
                    box = gr.Checkbox(value=False, label=FROM_TXT2IMG, elem_id="ti_trainer_train_from_txt2img")
                    from_txt2img = unsaved(box)
                with gr.Row(elem_classes=["ti-pairs", "ti-compact"]):
                    form.put_section(section)
    return accordion, from_txt2img


def _clear_message_on_change(page: Page, message: Any, fields: Mapping[str, Any]) -> None:
    """Clear the message when another embedding, dataset or preset is chosen."""
    start = page.prefilled
    initial = {"name": start.name, "images": str(start.images), "preset": preset_row.NOTHING} if start else {}
    for name, field in fields.items():
        # In the browser, since the server's answer could arrive after that to Train. The initial value is no change.
        js = f"(now, message) => now === {json.dumps(initial.get(name))} ? message : ''"
        listen(field.change, None, [field, message], [message], js=js)


def trainable(page: Page) -> list[str]:
    """Names to choose from, without images (most are previews of an embedding) and without negative embeddings."""
    paths = embeddings_dir.embedding_files(page.host.embeddings_dir)
    names = {path.stem for path in paths if path.suffix.lower() not in (".png", ".webp")}
    offered = {name for name in names - {negative_name(name) for name in names} if encodable(name) == name}
    return sorted(offered, key=str.casefold)


def start(form: TrainForm, values: Values, prepare: Prepare | None = None, *, queued: bool = False) -> dict[Any, Any]:
    """Start the run or queue it; or show beside each field what is wrong with it, and buttons that are a way out."""
    name, images, options = form.read(values)
    wrong = form.wrong(name, images, options)
    message, ways = "", {label: way for field, (label, way) in WAYS.items() if field in wrong}
    if not wrong:
        try:
            session = form.session(name, images, options)
            session, done = (session, "") if prepare is None else prepare(form.page, session)
            if queued:
                done = f"{queue.add(form.page, session)} {done}".rstrip()
            else:
                form.page.job.start(session)
            message = notice("good" if queued else "info", done) + _preview_warning(name, session.config.preview_prompt)
        except ConfigError as error:
            wrong = {error.option: str(error)} if error.option in form.form.slots else {}
            ways = train_refusals.out_of(error, form.page, name, options["max_steps"], prepare, queued=queued)
            message = "" if wrong and not ways else refusal(error, ways)
            ways = {}
        except (TITrainerError, OSError) as error:
            message = refusal(error)
    if wrong and not message:
        below = form.in_accordions(wrong)
        lines = [HIGHLIGHTED] if len(below) < len(wrong) else ["Training was not started."]
        message = notice("error", "\n".join([*lines, *(f"Below, in {each}" for each in below)]))
    unfolded = gr.update(open=True) if form.in_accordions(wrong) else gr.update()
    about = train_refusals.about_negative(form.page, name, bool(options.get("negative")))
    shown = {form.message: message + ways_out(ways), form.all_options: unfolded, form.about_negative: about}
    return {**shown, **form.errors(wrong)}


def _preview_warning(name: str, prompt: str) -> str:
    """A warning if the preview prompt does not contain the embedding; an empty one falls back to a training prompt."""
    if not prompt or NAME in prompt or name in prompt:
        return ""
    return notice(
        "warning", f"The preview prompt contains neither {NAME} nor {name}: previews will not show the trained embedding."
    )
