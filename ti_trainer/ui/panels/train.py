"""The panel Train, left side: what to train on what, options, presets, and the buttons that begin."""

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
from ti_trainer.ui.panels import folder_rows, preset_row
from ti_trainer.ui.render import notice, refusal
from ti_trainer.ui.widgets import error_slot, error_update

WELCOME = (
    "All is filled in for a first try: Train Embedding teaches the tiny model the word {} from eight images, in a minute."
)
BORROWED = "Read parameters (prompt, etc...) from txt2img tab when making previews"


@dataclass
class TrainForm:
    """The left side of the panel, for those that act on it."""

    page: Page
    form: Form
    name: Any
    name_error: Any
    images: Any
    images_error: Any
    borrow: Any | None
    presets: preset_row.Row
    said: Any
    check: Any
    start: Any

    @property
    def inputs(self) -> list[Any]:
        """What a handler gets, for `read`."""
        borrowed = [self.borrow, *self.page.txt2img.values()] if self.borrow is not None else []
        return [self.name, self.images, *self.form.widgets.values(), *borrowed]

    @property
    def errors(self) -> list[Any]:
        """Where messages go, for `refusals`."""
        return [self.name_error, self.images_error, *self.form.slots.values()]

    def read(self, *given: Any) -> tuple[str, Path, dict[str, Any]]:
        """Embedding, dataset and options from what `inputs` hold; where wished, previews as in txt2img."""
        name, images, *rest = given
        count = len(self.form.widgets)
        values = typed(dict(zip(self.form.widgets, rest[:count], strict=True)))
        borrow, *borrowed = rest[count:] or [False]
        if borrow:
            values |= typed(dict(zip(self.page.txt2img, borrowed, strict=True)))
            seed = str(values.get("preview_seed"))  # a text box with some options of the WebUI
            values["preview_seed"] = int(seed) if seed.isdecimal() else 0  # -1, a new one each time, could not be compared
        return name or "", entered_path(images), values

    def session(self, name: str, images: Path, values: dict[str, Any]) -> Session:
        """The run that the form describes."""
        return Session(self.page.host, name, images, self.form.config(values))

    def wrong(self, name: str, images: Path, values: dict[str, Any]) -> dict[str, str]:
        """Everything that is wrong with the form, by entry."""
        wrong = problems(values)
        host = self.page.host
        if not name:
            wrong["name"] = "Choose an embedding, or create one first."
        elif embeddings_dir.find(host.embeddings_dir, name) is None:
            wrong["name"] = f"There is no embedding {name!r} any more: refresh the list."
        try:
            if images == Path():
                message = "Name the folder with the images to learn from."
                raise DatasetError(message)
            for subset in subsets_of(host, images):
                find_images(subset.folder)
        except (TITrainerError, OSError) as error:
            wrong["images"] = str(error)
        if find_template(values.get("template", ""), host.template_dirs) is None:
            wrong["template"] = "Choose one of the templates in the list."
        return wrong

    def refusals(self, wrong: dict[str, str]) -> list[Any]:
        """Updates of `errors`: each message beside its entry."""
        return [error_update(wrong.get(each)) for each in ("name", "images", *self.form.slots)]

    def folded(self, wrong: dict[str, str]) -> list[str]:
        """What is wrong where it may be folded away: the title that it stands under, and the message."""
        folds = {each.name: _title(each.section) for each in offered(self.page.host) if each.name not in FIRST}
        return [f"{folds[name]}: {message}" for name, message in wrong.items() if name in folds]


def panel(page: Page) -> TrainForm:
    """Lay it out; the first screen is a whole first run."""
    host, start = page.host, page.prefilled
    choices = {"template": list(templates(host.template_dirs)), "preview_sampler": ["", *host.samplers]}
    form = Form(host, starting_values(host, start.config if start else None), choices)
    with gr.Row(elem_classes=["ti-tight"]):
        name = gr.Dropdown(
            trainable(page),
            value=start.name if start else None,
            label="Embedding",
            elem_id="ti_trainer_train_name",
            allow_custom_value=True,  # the list may be older than the folder; what is chosen is checked
        )
        refresh = gr.Button("↻", elem_id="ti_trainer_train_refresh", elem_classes=["ti-icon"])
    name_error = error_slot()
    images = gr.Textbox(
        label="Dataset directory",
        info="The folder with the images to learn from; captions in .txt or .caption files of the same names, if there "
        "are any. Or a .toml file that lists several folders.",
        placeholder="Path to directory with input images",
        value=str(start.images) if start else "",
        max_lines=1,
        elem_id="ti_trainer_train_images",
    )
    images_error = error_slot()
    form.put("template")
    form.put("learning_rate")
    with gr.Row():
        form.put("max_steps")
        form.put("batch_size")
    row = preset_row.put(page)
    said = gr.HTML(notice("info", WELCOME.format(start.name)) if start else "", elem_id="ti_trainer_train_said")
    with gr.Row():
        check = gr.Button("Check dataset", elem_id="ti_trainer_train_check")
        begin = gr.Button("Train Embedding", variant="primary", elem_id="ti_trainer_train_start")
    borrow = None
    folder_rows.panel(page, images)
    for section in SECTIONS:
        with gr.Accordion(_title(section), open=False):
            if section == "previews" and page.txt2img:
                borrow = unsaved(gr.Checkbox(value=False, label=BORROWED, elem_id="ti_trainer_train_borrow"))
            form.put_section(section)
    preset_row.put_save(row)
    for each in (name, images):
        unsaved(each)
    listen(refresh.click, lambda: gr.update(choices=trainable(page)), [], [name])
    form.listen_as_typed()
    preset_row.wire(page, row, form)
    _listen_for_others(page, said, {"name": name, "images": images, "preset": row.preset})
    return TrainForm(page, form, name, name_error, images, images_error, borrow, row, said, check, begin)


def _listen_for_others(page: Page, said: Any, chosen: Mapping[str, Any]) -> None:
    """What was said of one embedding, dataset or preset is taken away when another one is chosen."""
    start = page.prefilled
    first = {"name": start.name, "images": str(start.images), "preset": preset_row.NOTHING} if start else {}
    for what, widget in chosen.items():
        # In the browser, at once: an answer from here could come after that to Train. Not for what stands there at first.
        js = f"(now, said) => now === {json.dumps(first.get(what))} ? said : ''"
        listen(widget.change, None, [widget, said], [said], js=js)


def trainable(page: Page) -> list[str]:
    """Names to choose from. Images count only if they were chosen by name: most are previews of an embedding."""
    paths = embeddings_dir.embedding_files(page.host.embeddings_dir)
    names = {path.stem for path in paths if path.suffix.lower() not in (".png", ".webp")}
    return sorted(names - {negative_name(name) for name in names}, key=str.casefold)  # those go along with their words


def start(form: TrainForm, *given: Any) -> list[Any]:
    """Begin, or say beside each entry what is wrong with it. Updates of `said` and `errors`."""
    name, images, values = form.read(*given)
    wrong = form.wrong(name, images, values)
    said = ""
    if not wrong:
        try:
            form.page.job.start(form.session(name, images, values))
        except ConfigError as error:
            wrong = {error.option: str(error)} if error.option in form.form.slots else {}
            said = "" if wrong else refusal(error)
        except (TITrainerError, OSError) as error:
            said = refusal(error)
    if wrong:
        below = form.folded(wrong)
        said = "Nothing was started" + (": see the messages above." if len(below) < len(wrong) else ".")
        said = notice("error", "\n".join([said, *(f"Below, under {each}" for each in below)]))
    return [said or _about_previews(name, values.get("preview_prompt", "")), *form.refusals(wrong)]


def _title(section: str) -> str:
    """Of the part of the form that a section of options is folded into."""
    return "More on training" if section == "training" else SECTIONS[section]


def _about_previews(name: str, prompt: str) -> str:
    """A warning if they will not show the word; with no prompt they take the last one of training, which has it."""
    if not prompt or NAME in prompt or name in prompt:
        return ""
    return notice(
        "warning", f"The preview prompt contains neither {NAME} nor {name}: previews will not show what is learned."
    )
