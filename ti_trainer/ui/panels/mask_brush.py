"""The Paint masks panel: answers the requests of javascript/mask_brush.js, which keeps unsaved masks in the page.

The server keeps no state of a visitor: each request names its folder and image. `data.mask_files` reads and writes masks.
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
from ti_trainer.ui.thumbnails import data_uri, thumbnail_or_grey

Answer = dict[str, Any]
THUMB_PX = 128
THUMBS_PER_REQUEST = 40
MAX_REQUEST = 6 << 20  # characters; a mask of 1024 x 1024 px of pure noise takes 1.4 million


@dataclass(frozen=True)
class MaskBrush:
    """What other panels need: the field for the folder, and a function that opens it at an event of theirs."""

    folder: Any
    opens_at: Callable[[Callable[..., Any]], None]


def panel(page: Page) -> MaskBrush:
    """Add the form, the canvas, and the hidden text boxes for requests."""
    with gr.Row(elem_classes=["ti-lined-up"]):
        folder = gr.Textbox(
            label="Dataset directory",
            info="The folder with your images. Masks are saved next to them when you click Save.",
            value=str(page.prefilled.images) if page.prefilled else "",
            max_lines=1,
            scale=3,
            elem_id="ti_trainer_masks_folder",
        )
        start = gr.Button("Open", variant="primary", elem_id="ti_trainer_masks_open", elem_classes=["ti-beside"])
    gr.HTML(CANVAS, elem_id="ti_trainer_masks")
    with gr.Row(elem_classes=["ti-hidden"]):
        names = ("opened", "request", "request_long", "answer")
        boxes = {name: gr.Textbox(value="", max_lines=1, elem_id=f"ti_trainer_masks_{name}") for name in names}
    for each in (folder, *boxes.values()):
        unsaved(each)

    def opens_at(event: Callable[..., Any]) -> None:
        opened = listen(event, partial(_open, page), [folder], [boxes["opened"]])
        listen(opened.then, None, [boxes["opened"]], js="(text) => { window.tiTrainerMasks.opened(text); }")

    for event in (start.click, folder.submit):
        opens_at(event)
    for name in ("request", "request_long"):  # slow ones go through the queue
        box = boxes[name]
        answered = listen(box.change, partial(_answer, page), [box], [boxes["answer"]], queue=name == "request_long")
        listen(answered.then, None, [boxes["answer"]], js="(text) => { window.tiTrainerMasks.answered(text); }")
    return MaskBrush(folder, opens_at)


def _open(page: Page, folder: str) -> str:
    """List the images of a folder and whether they have masks, as JSON."""
    try:
        path = page.dataset_dir(folder)
        masked = masks_beside(path)
        images = [{"name": each.name, "masked": each.stem in masked} for each in find_images(path)]
    except (TITrainerError, OSError) as error:
        return json.dumps({"message": refusal(error)})
    return json.dumps({"folder": str(path), "images": images})


def _answer(page: Page, text: str) -> str:
    """Answer a request: its id, and the result or, as HTML in `message`, the reason why it failed."""
    if not text:  # gradio 6 sends a change when it creates the text box
        return ""
    number = ""
    try:
        request = _request(text)
        number = request["id"]
        folder = page.dataset_dir(request["folder"])
        answer = HANDLERS[request["do"]](page, folder, request)
    except (TITrainerError, OSError) as error:
        answer = {"failed": True, "message": refusal(error)}
    return json.dumps({**answer, "id": number})


def _request(text: str) -> Mapping[str, Any]:
    """Parse and validate a request; ConfigError for anything that the script would not send."""
    message = "The page sent an invalid request: reload the page."
    try:
        request = json.loads(text) if len(text) <= MAX_REQUEST else None
    except ValueError as error:
        raise ConfigError(message) from error
    texts = ("id", "do", "folder", "name", "kind", "levels")
    if not isinstance(request, dict) or not all(isinstance(request.get(each, ""), str) for each in texts):
        raise ConfigError(message)
    request = {**dict.fromkeys(texts, ""), **request}
    if request["do"] not in HANDLERS:
        raise ConfigError(message)
    return request


def _thumbs(_page: Page, folder: Path, request: Mapping[str, Any]) -> Answer:
    """Thumbnails from a number on."""
    number = request.get("from")
    images = find_images(folder)
    batch = images[number : number + THUMBS_PER_REQUEST] if isinstance(number, int) and number >= 0 else []
    with ThreadPoolExecutor(4) as pool:
        thumbs = pool.map(lambda path: data_uri(thumbnail_or_grey(path, THUMB_PX)), batch)
        return {"thumbs": [[path.name, thumb] for path, thumb in zip(batch, thumbs, strict=True)]}


def _load(_page: Page, folder: Path, request: Mapping[str, Any]) -> Answer:
    """An image to paint on, with its mask."""
    path = mask_files.image_of(folder, request["name"])
    image = _readable(path)
    mask, message, levels = mask_files.mask_of(path), "", ""
    try:
        if mask:
            levels = mask_files.packed(mask_files.to_edit(mask, path))
    except DatasetError as error:
        message = notice("warning", f"{path.name}: {error}. Delete this mask, or paint and save a new one to replace it.")
    return {
        "kind": mask_files.spec_of(mask),
        "mask": mask.name if mask else "",
        "levels": levels,
        "image": data_uri(image),
        "width": image.width,
        "height": image.height,
        "message": message,
    }


def _save(_page: Page, folder: Path, request: Mapping[str, Any]) -> Answer:
    path = mask_files.image_of(folder, request["name"])
    painted = mask_files.unpacked(request["levels"], mask_files.size_of_mask(path))
    mask = mask_files.save_mask(path, painted, request["kind"], anew=request.get("anew") is True)
    return {"mask": mask.name, "message": notice("good", f"Saved {mask.name}.")}


def _delete(_page: Page, folder: Path, request: Mapping[str, Any]) -> Answer:
    path = mask_files.image_of(folder, request["name"])
    moved = mask_files.take_away(path)
    if not moved:
        return {"message": notice("info", f"{path.name} has no saved mask.")}
    kept = ", ".join(str(each.relative_to(folder)) for each in moved)
    return {"message": notice("good", f"The mask of {path.name} was removed, and moved to {kept}.")}


def _spread(page: Page, folder: Path, request: Mapping[str, Any]) -> Answer:
    """Extend the painted mask to areas that look similar to the model's VAE; nothing is written."""
    page.refuse_if_busy("spread a mask")
    image = _readable(mask_files.image_of(folder, request["name"]))
    painted = mask_files.unpacked(request["levels"], image.size)
    if not painted.getbbox():
        message = "The mask is empty: paint a part of the object first."
        raise ConfigError(message)
    with page.host.lock():
        spread = spread_mask(page.host.open_model(), image, painted)
    message = "The mask now covers similar areas. Click Undo to revert, or Save to keep it."
    return {"levels": mask_files.packed(spread), "message": notice("good", message)}


def _readable(path: Path) -> Image.Image:
    try:
        return mask_files.to_paint_on(path)
    except Exception as error:  # damaged files raise all kinds of errors
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        message = f"{path.name} cannot be read: {reason}. Repair it, or move it out of the folder."
        raise DatasetError(message) from error


HANDLERS: Mapping[str, Callable[[Page, Path, Mapping[str, Any]], Answer]] = {
    "thumbs": _thumbs,
    "load": _load,
    "save": _save,
    "delete": _delete,
    "spread": _spread,
}
