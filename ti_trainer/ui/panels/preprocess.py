"""The Create dataset panel: preprocess a folder of images into a dataset. config/preprocessing.py declares the options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.captioning import captioners
from ti_trainer.config.options import Option
from ti_trainer.config.preprocessing import SECTIONS, PreprocessConfig, options
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.files import entered_path
from ti_trainer.preprocess import faces
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.ui.form import typed
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.preprocess_progress import NEXT, row
from ti_trainer.ui.panels.train import HIGHLIGHTED, TrainForm, Values
from ti_trainer.ui.render import notice, progress, refusal
from ti_trainer.ui.widgets import error_slot, error_update, widget
from ti_trainer.wording import counted

FIRST = ("width", "height", "resize", "flip", "split")  # what a first use needs is above the accordions
PREVIEWED = 6  # images
MODES = {  # label and help
    "centre": ("Center crop", "Crop the center of each image to this width and height."),
    "focal": ("Auto focal point crop", "Crop around faces, edges and detail to this width and height."),
    "auto-size": ("Auto-sized crop", "Crop each image to the best size within the limits below. Ignores width and height."),
    "buckets": (
        "Aspect-ratio buckets",
        "Keep each image's aspect ratio and crop very little. Sizes are multiples of 64 px with about width x height "
        "pixels. Train with 'Use aspect-ratio buckets'.",
    ),
    "keep": ("Keep original size", "Do not crop or resize. Ignores width and height."),
}
LABELS = {label: mode for mode, (label, _) in MODES.items()}
UNFOLDED = {"focal": "focal", "auto-size": "auto_size"}  # the section that belongs to a mode
CAPTION_HELP = "Models that write captions. Several captions are joined; with none, only existing captions are used."
WELCOME = "Your original images are never changed. Preview shows the results for the first images without writing anything."

NEXT_TABS = {"to_captions": "Edit captions", "to_quality": "Image quality", "to_masks": "Paint masks", "to_train": "Train"}
Place = tuple[Any, Callable[[Any], None]]  # a panel's field for the folder, and what has it opened at an event


@dataclass
class Preprocess:
    """The panel's components, for its handlers and for those that keep it up to date."""

    page: Page
    widgets: dict[str, Any] = field(default_factory=dict)
    slots: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    message: Any = None
    images: Any = None
    started: Any = None

    @property
    def inputs(self) -> set[Any]:
        """The components whose values a handler gets, for `work`."""
        return set(self.widgets.values())

    def put(self, names: Sequence[str]) -> None:
        """Add the widgets of these options, in the order of their declaration."""
        for option in options():
            if option.name in names:
                self.widgets[option.name], self.slots[option.name] = _widget(option, self.page)

    def folder(self, name: str, label: str, info: str) -> None:
        """Add a field for a folder."""
        elem_id = f"ti_trainer_preprocess_{name}"
        self.widgets[name] = unsaved(gr.Textbox(label=label, info=info, max_lines=1, elem_id=elem_id))
        self.slots[name] = error_slot()

    def work(self, given: Values) -> tuple[Preprocessing | None, dict[str, str]]:
        """What the form describes, or what is wrong with each field."""
        values = {name: given[widget] for name, widget in self.widgets.items()}
        entered = {name: values.pop(name) for name in ("source", "destination")}
        wrong = {
            name: f"Enter the path of the {name} directory." for name, text in entered.items() if not (text or "").strip()
        }
        values["resize"] = LABELS.get(values["resize"])
        labels = captioners.labels(self.page.host.captioners)
        values["captioners"] = ", ".join(name for name, label in labels.items() if label in (values["captioners"] or []))
        values = typed(values, options())
        for option in options():
            try:
                option.check(values[option.name])
            except ConfigError as error:  # noqa: PERF203 - thirty at most
                wrong[option.name] = str(error)
        if wrong:
            return None, wrong
        at = "source"
        try:
            folders = {}
            for name, text in entered.items():
                at = name
                folders[name] = entered_path(text)
                self.page.host.check_folder(folders[name])
            config = PreprocessConfig(**models_checked(self.page, values))
            captioners.chosen(config, self.page.host.captioners)
            captioning = self._captioning(config)
            work = Preprocessing(folders["source"], folders["destination"], config, face_models(self.page), captioning)
            work.check()
        except ConfigError as error:
            return None, {error.option or at: str(error)}
        except (TITrainerError, OSError) as error:
            return None, {"source": str(error)}
        return work, {}

    def _captioning(self, config: PreprocessConfig) -> Any:
        """A function that opens the chosen captioners; None if none is chosen."""
        if not config.captioners:
            return None
        return partial(captioners.opened, config, self.page.host.captioners)

    def errors(self, wrong: Mapping[str, str]) -> dict[Any, Any]:
        """Updates of all error slots: shows each message beside its field, and hides the other slots."""
        return {slot: error_update(wrong.get(name)) for name, slot in self.slots.items()}


def panel(page: Page) -> Preprocess:
    """Add the form on the left, and progress and results on the right."""
    made = Preprocess(page)
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            made.folder("source", "Source directory", "The folder with your images, of any size and format.")
            made.folder("destination", "Destination directory", "The folder for the dataset; created if it does not exist.")
            with gr.Row():
                made.put(("width", "height"))
            made.put(("resize",))
            with gr.Row():
                made.put(("flip", "split"))
            with gr.Row():
                preview = gr.Button("Preview", elem_id="ti_trainer_preprocess_preview")
                begin = gr.Button("Preprocess", variant="primary", elem_id="ti_trainer_preprocess_start")
            folds = {}
            for section, title in SECTIONS.items():
                rest = [each.name for each in options() if each.section == section and each.name not in FIRST]
                if rest:
                    with gr.Accordion(title, open=False) as folds[section]:
                        made.put(rest)
                        if section == "focal":
                            _face_model(page)
        with gr.Column(elem_classes=["ti-results"]):
            made.parts["preprocess_bar"] = gr.HTML(progress("idle"), elem_id="ti_trainer_preprocess_progress")
            made.parts["preprocess_stop"] = gr.Button(
                "Interrupt", interactive=False, size="sm", elem_id="ti_trainer_preprocess_stop"
            )
            made.message = gr.HTML(notice("info", WELCOME), elem_id="ti_trainer_preprocess_message")
            made.parts["preprocess_result"] = gr.HTML(elem_id="ti_trainer_preprocess_result")
            with gr.Row(elem_classes=["ti-buttons"]):
                for name, label in NEXT.items():
                    elem_id = f"ti_trainer_preprocess_{name}"
                    made.parts[name] = gr.Button(label, interactive=False, size="sm", elem_id=elem_id)
            made.images = gr.HTML(elem_id="ti_trainer_preprocess_images")
    outputs = [made.message, made.images, *made.slots.values()]
    listen(preview.click, partial(_preview, made), made.inputs, outputs, queue=True, show_progress="full")
    made.started = listen(begin.click, partial(_start, made), made.inputs, [made.message, *made.slots.values()])
    listen(made.parts["preprocess_stop"].click, page.preprocessing.stop)
    resize, unfolded = made.widgets["resize"], [folds[each] for each in UNFOLDED.values()]
    listen(resize.change, _explain_mode, [resize], [resize, *unfolded])
    split = made.widgets["split"]
    listen(split.change, lambda wanted: gr.update(open=wanted), [split], [folds["split"]])
    return made


def models_checked(page: Page, values: Mapping[str, Any]) -> dict[str, Any]:
    """These options with absolute paths of masks and models; ConfigError for a path that the visitor may not use."""
    checked = dict(values)
    for name in ("masks", "tagger"):
        if checked.get(name):
            path = entered_path(checked[name])
            page.host.check_folder(path)
            checked[name] = str(path)
    blip = checked.get("blip_model", PreprocessConfig.blip_model)
    if blip != PreprocessConfig.blip_model:
        path = entered_path(blip)
        if path.is_dir():
            page.host.check_folder(path)
            checked["blip_model"] = str(path)
        elif page.is_public:
            message = f"BLIP model: found {blip!r}, expected a folder (no downloads on a public page)."
            raise ConfigError(message, "blip_model")
    return checked


def face_models(page: Page) -> list[Path]:
    """Folders that may contain a face detector's model."""
    return [faces.FOLDER, *page.host.face_models]


def wire_next_steps(made: Preprocess, form: TrainForm, places: Mapping[str, Place], to_tab: str) -> None:
    """Connect the buttons that use a finished dataset elsewhere: they fill in and open its folder, for training its size."""

    def folder() -> str:
        work = made.page.preprocessing.snapshot().work
        return str(work.destination) if work else ""

    def to_train() -> list[Any]:
        work = made.page.preprocessing.snapshot().work
        if work is None:
            return [gr.update() for _ in filled]
        config = work.config
        return [folder(), config.width, config.height, config.resize in ("auto-size", "buckets", "keep")]

    filled = [form.images, *(form.form.widgets[name] for name in ("width", "height", "buckets"))]
    to_show: dict[str, tuple[Callable[[], Any], list[Any]]] = {"Train": (to_train, filled)}
    for name, label in NEXT_TABS.items():
        if label in places:
            to_show[label] = (folder, [places[label][0]])
        fn, outputs = to_show[label]
        filled_in = listen(made.parts[name].click, fn, [], outputs)
        listen(filled_in.then, None, js=to_tab.format(label))  # gradio 3 fires no .then after an event with only js
        if label in places:
            places[label][1](filled_in.then)


def _widget(option: Option, page: Page) -> tuple[Any, Any]:
    """Make an option's widget; modes and captioners are shown by their labels, and sizes begin at the model's own."""
    prefix = "ti_trainer_preprocess_"
    common = {"label": option.label, "info": option.help, "elem_id": prefix + option.name, "interactive": True}
    if option.name == "resize":
        return unsaved(
            gr.Dropdown(list(LABELS), value=MODES[option.default][0], **{**common, "info": MODES[option.default][1]})
        ), error_slot()
    if option.name == "captioners":
        names = list(captioners.labels(page.host.captioners).values())
        return unsaved(gr.CheckboxGroup(names, value=[], **{**common, "info": CAPTION_HELP})), error_slot()
    if option.name in ("width", "height") and page.size_px:
        return widget(option, max(page.size_px, int(option.low or 0)), elem_prefix=prefix)
    return widget(option, elem_prefix=prefix)


def _explain_mode(label: str) -> list[Any]:
    """Show a mode's help, and open its section."""
    mode = LABELS[label]
    return [gr.update(info=MODES[mode][1]), *(gr.update(open=mode == each) for each in UNFOLDED)]


def _face_model(page: Page) -> None:
    """Add the name of the current face detector, and a button that downloads a better one."""
    message = gr.HTML(notice("info", faces.load(face_models(page))[1]), elem_id="ti_trainer_preprocess_faces")
    get = gr.Button("Download the face detector (230 kB, from OpenCV)", size="sm", elem_id="ti_trainer_preprocess_get_faces")

    def download() -> str:
        try:
            faces.download(faces.FOLDER)
        except (TITrainerError, OSError) as error:
            return notice("error", str(error))
        return notice("good", faces.load(face_models(page))[1])

    listen(get.click, download, [], [message], queue=True, show_progress="minimal")


def _preview(made: Preprocess, values: Values) -> dict[Any, Any]:
    """Show the results for the first images."""
    work, wrong = made.work(values)
    if work is None:
        return {made.message: _wrong(wrong), made.images: "", **made.errors(wrong)}
    try:
        rows = "".join(row(*each) for each in work.preview(PREVIEWED))
    except (TITrainerError, OSError) as error:
        return {made.message: notice("error", str(error)), made.images: "", **made.errors({})}
    total = len(work.check())
    message = f"Preview of the first {min(PREVIEWED, total)} of {counted(total, 'image')}. Nothing has been written."
    return {made.message: notice("info", "\n".join([message, *work.notes()])), made.images: rows, **made.errors({})}


def _start(made: Preprocess, values: Values) -> dict[Any, Any]:
    """Start, or show beside each field what is wrong with it."""
    work, wrong = made.work(values)
    if work is None:
        return {made.message: _wrong(wrong), **made.errors(wrong)}
    try:
        made.page.preprocessing.start(work)
    except (TITrainerError, OSError) as error:
        running = made.page.preprocessing.snapshot().active
        ways = {"Interrupt": "press:ti_trainer_preprocess_stop"} if running else None
        return {made.message: refusal(error, ways), **made.errors({})}
    return {made.message: "", **made.errors({})}


def _wrong(wrong: Mapping[str, str]) -> str:
    """The message for invalid fields, with the errors of those that may be folded away."""
    hidden = [message for name, message in wrong.items() if name not in (*FIRST, "source", "destination")]
    return notice("error", "\n".join([HIGHLIGHTED, *hidden]))
