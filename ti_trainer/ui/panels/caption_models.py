"""The caption editor: captions by a model, for the images shown or the selected one. They can be undone like an edit."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any, Literal

import gradio as gr

from ti_trainer.captioning import captioners
from ti_trainer.captioning.tags import merged
from ti_trainer.config.preprocessing import PreprocessConfig, options
from ti_trainer.data.caption_edits import difference
from ti_trainer.data.open_image import opened_image
from ti_trainer.data.upright import upright
from ti_trainer.errors import ConfigError, DatasetError, TITrainerError
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import caption_handlers as handlers
from ti_trainer.ui.panels.caption_view import EditorState, Inputs, Updates
from ti_trainer.ui.panels.preprocess import models_checked
from ti_trainer.ui.render import notice, progress_bar, refusal
from ti_trainer.ui.widgets import widget
from ti_trainer.wording import counted

log = logging.getLogger(__name__)
PREFIX = "ti_trainer_captions_"
PROGRESS_S = 0.5
NAMED = 5  # images in a message
LARGEST_PX = 1024  # models look at less than that
MODELS = ("blip_model", "tagger")
Action = Literal["ignore", "copy", "prepend"]  # what happens to captions that exist, as the option `existing_captions` says
ACTIONS: dict[str, Action] = {
    "Append to existing captions": "prepend",
    "Replace existing captions": "ignore",
    "Only images without a caption": "copy",
}
NONE_INSTALLED = (
    "No captioner is installed. BLIP is downloaded when it is first used (1 GB). For tags, install onnxruntime, download "
    "model.onnx and selected_tags.csv of one of SmilingWolf's taggers on Hugging Face, and enter their folder below."
)


@dataclass(frozen=True)
class Found:
    """New captions of images of a folder, and a message about how they were made."""

    folder: Path | None = None
    texts: Mapping[Path, str] = field(default_factory=dict)
    action: Action = "copy"
    message: str = ""


@dataclass
class Captioning:
    """Captions images for one visitor at a time: a model may take all of a GPU's memory."""

    page: Page
    _stop: Event = field(default_factory=Event)
    _running: Lock = field(default_factory=Lock)

    def stop(self) -> None:
        """Stop after the current image; what was captioned until then is kept."""
        self._stop.set()

    def run(
        self, state: EditorState, inputs: Inputs, labels: Sequence[str], action: str, models: Mapping[str, str]
    ) -> Iterator[tuple[str, Found]]:
        """Yield the progress several times, then the captions. Stops when the visitor leaves the page."""
        if not self._running.acquire(blocking=False):
            message = "Images are being captioned already: wait until that is done, or stop it."
            yield refusal(ConfigError(message), {"Stop": f"press:{PREFIX}caption_stop"}), Found()
            return
        try:
            self._stop.clear()
            images, config = self._checked(state, inputs, labels, ACTIONS[action], models)
        except (TITrainerError, OSError) as error:
            self._running.release()
            yield refusal(error), Found()
            return
        texts: dict[Path, str] = {}
        failed: list[str] = []
        try:
            with ThreadPoolExecutor(1) as pool:
                work = pool.submit(self._caption, config, images, texts, failed)
                try:
                    while not work.done():
                        yield _bar(len(texts) + len(failed), len(images)), Found()
                        time.sleep(PROGRESS_S)
                finally:
                    self._stop.set()
            message = self._message(work.exception(), len(texts), len(images), failed)
            yield message, Found(state.captions.folder if state.captions else None, texts, ACTIONS[action], message)
        finally:
            self._running.release()

    def _checked(
        self, state: EditorState, inputs: Inputs, labels: Sequence[str], action: Action, models: Mapping[str, str]
    ) -> tuple[list[Path], PreprocessConfig]:
        """The images to caption, and with what; ConfigError if there is nothing to do or it is not allowed."""
        captions = handlers.loaded(state)
        self.page.refuse_if_busy("caption images")
        by_label = {label: name for name, label in captioners.labels(self.page.host.captioners).items()}
        names = [by_label[label] for label in labels or () if label in by_label]
        if not names:
            message = "Choose a captioner."
            raise ConfigError(message)
        config = PreprocessConfig(captioners=", ".join(names), **models_checked(self.page, models))
        images = list({image.stem: image for image in handlers.target_images(state, inputs)}.values())
        if action == "copy":
            images = [image for image in images if captions.text(image) is None]
        if not images:
            message = "There is no image to caption: all of them have captions, or none is shown."
            raise ConfigError(message)
        return images, config

    def _caption(self, config: PreprocessConfig, images: Sequence[Path], texts: dict[Path, str], failed: list[str]) -> None:
        with captioners.opened(config, self.page.host.captioners) as describe:
            for path in images:
                if self._stop.is_set():
                    return
                try:
                    with opened_image(path) as opened:
                        image = upright(opened, (LARGEST_PX, LARGEST_PX))
                except (DatasetError, OSError) as error:
                    failed.append(f"{path.name}: {error}")
                else:
                    texts[path] = describe(image)

    def _message(self, error: BaseException | None, done: int, total: int, failed: Sequence[str]) -> str:
        parts = [notice("warning", "\n".join([f"{counted(len(failed), 'image')} could not be read:", *failed[:NAMED]]))]
        if isinstance(error, TITrainerError | OSError):
            parts = [refusal(error)]
        elif error is not None:
            log.error("Captioning failed:", exc_info=error)
            parts = [notice("error", f"Unexpected {type(error).__name__}: {error}. See the log for details.")]
        elif not failed:
            parts = []
        if done + len(failed) < total and error is None:
            parts.append(notice("info", f"Stopped after {done} of {counted(total, 'image')}."))
        return "".join(parts)


def section(page: Page) -> dict[str, Any]:
    """Add the section; its components by name."""
    installed = captioners.installed(PreprocessConfig(), page.host.captioners)
    labels = captioners.labels(page.host.captioners)
    ui: dict[str, Any] = {}
    ui["caption_message"] = gr.HTML("" if installed else notice("info", NONE_INSTALLED), elem_id=PREFIX + "model_message")
    ui["captioners"] = gr.CheckboxGroup(
        list(labels.values()),
        value=[labels[name] for name in installed[:1]],
        label="Caption with",
        elem_id=PREFIX + "captioners",
    )
    ui["caption_action"] = gr.Radio(list(ACTIONS), value=next(iter(ACTIONS)), show_label=False, elem_id=PREFIX + "action")
    with gr.Row():
        for option in options():
            if option.name in MODELS:
                ui[option.name], _ = widget(option, elem_prefix=PREFIX)
    with gr.Row(elem_classes=["ti-buttons"]):
        ui["caption"] = gr.Button("Caption images", elem_id=PREFIX + "caption")
        ui["caption_stop"] = gr.Button("Stop", elem_id=PREFIX + "caption_stop")
    return ui


def apply(before: EditorState, inputs: Inputs, found: Found) -> Updates:
    """Put the new captions into the editor as one change, which can be undone."""
    if not found.texts:
        return {"state": before}
    message = found.message

    def act(state: EditorState, inputs: Inputs) -> tuple[EditorState, str]:
        captions = handlers.loaded(state)
        if captions.folder != found.folder:
            message = f"Another folder was loaded meanwhile: the captions for {found.folder} were not used."
            raise ConfigError(message)
        texts = {
            image: merged(captions.text(image), text, found.action)
            for image, text in found.texts.items()
            if image in captions.images
        }
        new = captions.write(texts)
        changed = f"{counted(difference(captions, new), 'caption')} changed."
        unsaved = f"{counted(len(new.unsaved), 'unsaved change')}: click Save to write."
        return replace(state, captions=new), notice("good", f"{changed} {unsaved}")

    updates = handlers.run(act, before, inputs)
    return {**updates, "message": "", "caption_message": message + updates["message"]}


def _bar(done: int, total: int) -> str:
    text = f"Captioning image {done + 1} of {total}" if done else f"Loading the captioner, for {counted(total, 'image')}"
    return f'<div class="ti-line ti-numbers">{text}</div>{progress_bar(100 * done / total)}'
