"""The panel Paint masks: what is asked by javascript/mask_brush.js, which holds what is painted until it is saved.

Nothing of a visitor's is kept here: each question names its folder and image. What a mask is, `data.mask_files` knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ti_trainer.data import mask_files
from ti_trainer.data.attention_spread import spread_mask
from ti_trainer.data.image_files import find_images
from ti_trainer.data.masks import masks_beside
from ti_trainer.errors import ConfigError, DatasetError, TITrainerError
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.mask_canvas import CANVAS
from ti_trainer.ui.render import notice, refusal
from ti_trainer.ui.thumbnails import address_of, small

Answer = dict[str, Any]
THUMB_PX = 128
AT_ONCE = 40  # thumbnails in an answer; the page asks for the next when it has nothing better to do
MOST_ASKED = 6 << 20  # characters of a question: a mask of 1024 x 1024 greys that are all noise has 1.4 million


@dataclass(frozen=True)
class MaskBrush:
    """What other panels need of this one: to fill in a folder, and to have it opened at an event of theirs."""

    folder: Any
    opens_at: Callable[[Callable[..., Any]], None]


def panel(page: Page) -> MaskBrush:
    """Put it here."""
    with gr.Row(elem_classes=["ti-lined-up"]):
        folder = gr.Textbox(
            label="Dataset directory",
            info="The folder with your images. A mask lies beside its image; nothing changes until you press Save.",
            value=str(page.prefilled.images) if page.prefilled else "",
            max_lines=1,
            scale=3,
            elem_id="ti_trainer_masks_folder",
        )
        start = gr.Button("Open", variant="primary", elem_id="ti_trainer_masks_open", elem_classes=["ti-beside"])
    gr.HTML(CANVAS, elem_id="ti_trainer_masks")
    with gr.Row(elem_classes=["ti-hidden"]):
        names = ("opened", "asked", "asked_long", "answer")
        boxes = {name: gr.Textbox(value="", max_lines=1, elem_id=f"ti_trainer_masks_{name}") for name in names}
    for each in (folder, *boxes.values()):
        unsaved(each)

    def opens_at(event: Callable[..., Any]) -> None:
        heard = listen(event, partial(_opened, page), [folder], [boxes["opened"]])
        listen(heard.then, None, [boxes["opened"]], js="(said) => { window.tiTrainerMasks.opened(said); }")

    for event in (start.click, folder.submit):
        opens_at(event)
    for name in ("asked", "asked_long"):  # what takes long goes through the queue
        asked = boxes[name]
        heard = listen(asked.change, partial(_answered, page), [asked], [boxes["answer"]], queue=name == "asked_long")
        listen(heard.then, None, [boxes["answer"]], js="(said) => { window.tiTrainerMasks.answered(said); }")
    return MaskBrush(folder, opens_at)


def _opened(page: Page, folder: str) -> str:
    """The images of a folder, and which have a mask; as JSON."""
    try:
        path = page.dataset_dir(folder)
        masked = masks_beside(path)
        images = [{"name": each.name, "masked": each.stem in masked} for each in find_images(path)]
    except (TITrainerError, OSError) as error:
        return json.dumps({"said": refusal(error)})
    return json.dumps({"folder": str(path), "images": images})


def _answered(page: Page, asked: str) -> str:
    """What the page is told: the question's own number, and the answer or, in HTML, why there is none."""
    if not asked:  # gradio 6 passes on that it has made the box
        return ""
    number = ""
    try:
        question = _question(asked)
        number = question["id"]
        folder = page.dataset_dir(question["folder"])
        answer = DOES[question["do"]](page, folder, question)
    except (TITrainerError, OSError) as error:
        answer = {"failed": True, "said": refusal(error)}
    return json.dumps({**answer, "id": number})


def _question(asked: str) -> Mapping[str, Any]:
    """ConfigError for anything that the script would not ask."""
    message = "The page asked for something that is not understood: reload it."
    try:
        question = json.loads(asked) if len(asked) <= MOST_ASKED else None
    except ValueError as error:
        raise ConfigError(message) from error
    texts = ("id", "do", "folder", "name", "kind", "greys")
    if not isinstance(question, dict) or not all(isinstance(question.get(each, ""), str) for each in texts):
        raise ConfigError(message)
    question = {**dict.fromkeys(texts, ""), **question}
    if question["do"] not in DOES:
        raise ConfigError(message)
    return question


def _thumbs(_page: Page, folder: Path, question: Mapping[str, Any]) -> Answer:
    """Small images from a number on."""
    number = question.get("from")
    images = find_images(folder)
    here = images[number : number + AT_ONCE] if isinstance(number, int) and number >= 0 else []
    with ThreadPoolExecutor(4) as pool:
        thumbs = pool.map(lambda path: address_of(small(path, THUMB_PX)), here)
        return {"thumbs": [[path.name, thumb] for path, thumb in zip(here, thumbs, strict=True)]}


def _loaded(_page: Page, folder: Path, question: Mapping[str, Any]) -> Answer:
    """An image to paint on, and the mask that it has."""
    path = mask_files.image_of(folder, question["name"])
    image = _readable(path)
    mask, said = mask_files.mask_of(path), ""
    answer = {"kind": mask_files.spec_of(mask), "mask": mask.name if mask else "", "greys": ""}
    try:
        if mask:
            answer["greys"] = mask_files.packed(mask_files.to_edit(mask, path))
    except DatasetError as error:
        said = notice("warning", f"{path.name}: {error}. Paint a new one, which takes its place, or delete it.")
    width, height = image.size
    return {**answer, "image": address_of(image), "width": width, "height": height, "said": said}


def _saved(_page: Page, folder: Path, question: Mapping[str, Any]) -> Answer:
    path = mask_files.image_of(folder, question["name"])
    painted = mask_files.unpacked(question["greys"], mask_files.size_of_mask(path))
    mask = mask_files.save_mask(path, painted, question["kind"], anew=question.get("anew") is True)
    return {"mask": mask.name, "said": notice("good", f"Saved {mask.name}.")}


def _deleted(_page: Page, folder: Path, question: Mapping[str, Any]) -> Answer:
    path = mask_files.image_of(folder, question["name"])
    moved = mask_files.take_away(path)
    if not moved:
        return {"said": notice("info", f"{path.name} has no mask that was saved.")}
    kept = ", ".join(str(each.relative_to(folder)) for each in moved)
    return {"said": notice("good", f"{path.name} has no mask any more, and counts all over. The file is kept: {kept}.")}


def _spread(page: Page, folder: Path, question: Mapping[str, Any]) -> Answer:
    """What was painted, spread over what looks alike to the model's VAE; nothing is written."""
    page.refuse_if_busy("spread masks")
    image = _readable(mask_files.image_of(folder, question["name"]))
    painted = mask_files.unpacked(question["greys"], image.size)
    if not painted.getbbox():
        message = "Nothing is marked: paint a part of what shall count, and press Spread again."
        raise ConfigError(message)
    with page.host.lock():
        spread = spread_mask(page.host.open_model(), image, painted)
    said = "Spread over what looks alike to the model. Undo takes it back; Save keeps it."
    return {"greys": mask_files.packed(spread), "said": notice("good", said)}


def _readable(path: Path) -> Image.Image:
    try:
        return mask_files.to_paint_on(path)
    except Exception as error:  # a damaged file provokes anything
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        message = f"{path.name} cannot be read: {reason}. Mend it, or move it out of the folder."
        raise DatasetError(message) from error


DOES: Mapping[str, Callable[[Page, Path, Mapping[str, Any]], Answer]] = {
    "thumbs": _thumbs,
    "load": _loaded,
    "save": _saved,
    "delete": _deleted,
    "spread": _spread,
}
