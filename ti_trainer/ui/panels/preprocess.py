"""The panel Preprocess, its first part: from a folder of photos to a dataset. config/preprocessing.py has the options."""

from __future__ import annotations

from collections.abc import Sequence
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
from ti_trainer.ui.panels.mask_brush import MaskBrush
from ti_trainer.ui.panels.preprocess_progress import NEXT, row
from ti_trainer.ui.panels.train import TrainForm
from ti_trainer.ui.render import notice, progress
from ti_trainer.ui.widgets import error_slot, error_update, widget

FIRST = ("width", "height", "resize", "flip", "split")  # what a first use needs stands above the rest
PREVIEWED = 6  # photos
MODES = {  # what people choose, and what it means
    "centre": ("Centre crop", "The middle of each, of this width and height."),
    "focal": ("Auto focal point crop", "Where faces, edges and detail are, of this width and height. See below."),
    "auto-size": ("Auto-sized crop", "For each the best size within the limits below; width and height do not matter."),
    "buckets": (
        "Aspect-ratio buckets",
        "Nothing is squashed, and little cut off: each keeps its shape, in sizes of 64 px steps of about width x "
        "height pixels. Train with 'Use aspect-ratio buckets'.",
    ),
    "keep": ("Keep original size", "As it is; width and height do not matter."),
}
LABELS = {label: mode for mode, (label, _) in MODES.items()}
UNFOLDED = {"focal": "focal", "auto-size": "auto_size"}  # the section that a mode has
CAPTION_HELP = "What writes captions. Several are joined; without one there are only those that you have."
WELCOME = "Originals are only read. Preview shows what becomes of the first of them before anything is written."


@dataclass
class Preprocess:
    """The panel's components, for those that act on it or keep it up to date."""

    page: Page
    widgets: dict[str, Any] = field(default_factory=dict)
    slots: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    begun: Any = None

    @property
    def inputs(self) -> list[Any]:
        """What a handler gets, for `work`."""
        return list(self.widgets.values())

    def put(self, names: Sequence[str]) -> None:
        """Make the widgets of these options here, in the order of their declaration."""
        for option in options():
            if option.name in names:
                self.widgets[option.name], self.slots[option.name] = _widget(option, self.page)

    def folder(self, name: str, label: str, info: str) -> None:
        """A field for a folder."""
        elem_id = f"ti_trainer_preprocess_{name}"
        self.widgets[name] = unsaved(gr.Textbox(label=label, info=info, max_lines=1, elem_id=elem_id))
        self.slots[name] = error_slot()

    def work(self, *given: Any) -> tuple[Preprocessing | None, dict[str, str]]:
        """What the form describes, or what is wrong with each entry."""
        values = dict(zip(self.widgets, given, strict=True))
        entered = {name: values.pop(name) for name in ("source", "destination")}
        wrong = {name: f"Name the {name} folder." for name, text in entered.items() if not (text or "").strip()}
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
            config = PreprocessConfig(**self._with_models_checked(values))
            captioners.chosen(config, self.page.host.captioners)
            work = Preprocessing(*folders.values(), config, face_models(self.page), self._captioning(config))
            work.check()
        except ConfigError as error:
            return None, {error.option or at: str(error)}
        except (TITrainerError, OSError) as error:
            return None, {"source": str(error)}
        return work, {}

    def _with_models_checked(self, values: dict[str, Any]) -> dict[str, Any]:
        """The options with folders as they are read; ConfigError for one that is not this visitor's to read."""
        values, host = dict(values), self.page.host
        for name in ("masks", "tagger"):
            if values[name]:
                path = entered_path(values[name])
                host.check_folder(path)
                values[name] = str(path)
        if values["blip_model"] != PreprocessConfig.blip_model:
            path = entered_path(values["blip_model"])
            if path.is_dir():
                host.check_folder(path)
                values["blip_model"] = str(path)
            elif self.page.is_public:
                message = f"BLIP model: found {values['blip_model']!r}, expected a folder: visitors download no others."
                raise ConfigError(message, "blip_model")
        return values

    def _captioning(self, config: PreprocessConfig) -> Any:
        """Opens the captioners that were chosen; None if there are none."""
        if not config.captioners:
            return None
        return partial(captioners.opened, config, self.page.host.captioners)

    def refusals(self, wrong: dict[str, str]) -> list[Any]:
        """Updates of the slots: each message beside its entry."""
        return [error_update(wrong.get(name)) for name in self.slots]


def panel(page: Page) -> Preprocess:
    """Lay it out."""
    made = Preprocess(page)
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            made.folder("source", "Source directory", "The folder with your photos, of any size and format.")
            made.folder("destination", "Destination directory", "A folder for the dataset; it is made if there is none.")
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
            said = gr.HTML(notice("info", WELCOME), elem_id="ti_trainer_preprocess_said")
            made.parts["preprocess_result"] = gr.HTML(elem_id="ti_trainer_preprocess_result")
            with gr.Row(elem_classes=["ti-buttons"]):
                for name, label in NEXT.items():
                    elem_id = f"ti_trainer_preprocess_{name}"
                    made.parts[name] = gr.Button(label, interactive=False, size="sm", elem_id=elem_id)
            shown = gr.HTML(elem_id="ti_trainer_preprocess_images")
    errors = list(made.slots.values())
    outputs = [said, shown, *errors]
    listen(preview.click, lambda *given: _previewed(made, *given), made.inputs, outputs, queue=True, show_progress="full")
    made.begun = listen(begin.click, lambda *given: _start(made, *given), made.inputs, [said, *errors])
    listen(made.parts["preprocess_stop"].click, page.preprocessing.stop)
    resize, folded = made.widgets["resize"], [folds[each] for each in UNFOLDED.values()]
    listen(resize.change, _explained, [resize], [resize, *folded])
    split = made.widgets["split"]
    listen(split.change, lambda wanted: gr.update(open=wanted), [split], [folds["split"]])
    return made


def face_models(page: Page) -> list[Path]:
    """Folders in which a face detector's model may lie."""
    return [faces.FOLDER, *page.host.face_models]


def lead_on(made: Preprocess, form: TrainForm, fields: tuple[Any, Any], masks: MaskBrush, to_tab: str) -> None:
    """Where to go from a dataset that was made: its folder is filled in there, and its sizes to train on.

    `fields` are those of the captions and the check for a folder. That of the masks is opened, too.
    """

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
    captions, check = fields
    filled_in = {}
    for name, label, fn, outputs in (
        ("to_captions", "Edit captions", folder, [captions]),
        ("to_check", "Check images", folder, [check]),
        ("to_masks", "Paint masks", folder, [masks.folder]),
        ("to_train", "Train", to_train, filled),
    ):
        filled_in[name] = listen(made.parts[name].click, fn, [], outputs)
        listen(filled_in[name].then, None, js=to_tab.format(label))  # in gradio 3 nothing follows what is only js
    masks.opens_at(filled_in["to_masks"].then)


def _widget(option: Option, page: Page) -> tuple[Any, Any]:
    """As every option's, but for those whose values have names of their own."""
    prefix = "ti_trainer_preprocess_"
    common = {"label": option.label, "info": option.help, "elem_id": prefix + option.name, "interactive": True}
    if option.name == "resize":
        return unsaved(
            gr.Dropdown(list(LABELS), value=MODES[option.default][0], **{**common, "info": MODES[option.default][1]})
        ), error_slot()
    if option.name == "captioners":
        names = list(captioners.labels(page.host.captioners).values())
        return unsaved(gr.CheckboxGroup(names, value=[], **{**common, "info": CAPTION_HELP})), error_slot()
    return widget(option, elem_prefix=prefix)


def _explained(label: str) -> list[Any]:
    """What a way to crop means, and its section unfolded."""
    mode = LABELS[label]
    return [gr.update(info=MODES[mode][1]), *(gr.update(open=mode == each) for each in UNFOLDED)]


def _face_model(page: Page) -> None:
    """What finds faces, and a button that gets a better one."""
    said = gr.HTML(notice("info", faces.load(face_models(page))[1]), elem_id="ti_trainer_preprocess_faces")
    get = gr.Button("Download the face detector (230 kB, from OpenCV)", size="sm", elem_id="ti_trainer_preprocess_get_faces")

    def download() -> str:
        try:
            faces.download(faces.FOLDER)
        except (TITrainerError, OSError) as error:
            return notice("error", str(error))
        return notice("good", faces.load(face_models(page))[1])

    listen(get.click, download, [], [said], queue=True, show_progress="minimal")


def _previewed(made: Preprocess, *given: Any) -> list[Any]:
    """What becomes of the first photos."""
    work, wrong = made.work(*given)
    if work is None:
        return [notice("error", "First mend what is marked on the left." + _folded(wrong)), "", *made.refusals(wrong)]
    try:
        rows = "".join(row(*each) for each in work.preview(PREVIEWED))
    except (TITrainerError, OSError) as error:
        return [notice("error", str(error)), "", *made.refusals({})]
    total = len(work.check())
    said = f"This becomes of the first {min(PREVIEWED, total)} of {total} photos. Nothing was written."
    return [notice("info", "\n".join([said, *work.notes()])), rows, *made.refusals({})]


def _start(made: Preprocess, *given: Any) -> list[Any]:
    """Begin, or say beside each entry what is wrong with it."""
    work, wrong = made.work(*given)
    if work is None:
        said = notice("error", "Nothing was started: see the messages on the left." + _folded(wrong))
        return [said, *made.refusals(wrong)]
    try:
        made.page.preprocessing.start(work)
    except (TITrainerError, OSError) as error:
        return [notice("error", str(error)), *made.refusals({})]
    return ["", *made.refusals({})]


def _folded(wrong: dict[str, str]) -> str:
    """What is wrong where it may be folded away."""
    hidden = [message for name, message in wrong.items() if name not in (*FIRST, "source", "destination")]
    return " Also " + "; ".join(hidden) if hidden else ""
