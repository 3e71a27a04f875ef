"""The Create dataset panel, right side: progress, the result, and previews of single images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ti_trainer.data.open_image import on_white
from ti_trainer.preprocess.job import Snapshot
from ti_trainer.preprocess.transforms import Result
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import facts, images, notice, progress
from ti_trainer.ui.thumbnails import data_uri, thumbnail_uri

NEXT = {
    "to_captions": "Edit captions",
    "to_quality": "Check image quality",
    "to_masks": "Paint masks",
    "to_train": "Train",
}
MAX_FAILED, PREVIEW_PX = 20, 264


def parts_of(page: Page) -> dict[str, tuple[Any, Any]]:
    """For `train_progress.parts_of`: what each live component depends on, and how to make its update."""
    now = page.preprocessing.snapshot()
    finished = now.summary is not None and not now.active
    bar = progress(
        now.status,
        now.work.destination.name if now.work else "",
        now.done,
        now.total,
        None,
        now.per_second,
        now.seconds_left,
        "Finishing the images in progress." if now.status == "stopping" else "",
    )
    return {
        "preprocess_bar": (bar, lambda: bar),
        "preprocess_stop": (now.active, lambda: gr.update(interactive=now.active)),
        "preprocess_result": ((now.status, now.begun_at), lambda: _result(now)),
        **{name: (finished, lambda: gr.update(interactive=finished)) for name in NEXT},
    }


def row(path: Path, results: Sequence[Result], text: str) -> str:
    """An image beside its results and their masks, with its caption below; `text` is the error if there are no results."""
    if not results:
        return notice("warning", f"{path.name} would be skipped: {text}")
    items = [(path.name, thumbnail_uri(path, PREVIEW_PX))]
    for each in results:
        what = "focal points" if each.is_debug else f"{each.image.width} x {each.image.height}"
        flipped = ", flipped" if each.flipped else ""
        items.append((what + flipped, _uri(each.image)))
        if each.mask:
            items.append((f"mask{flipped}", _uri(each.mask)))
    return images(items) + (facts([("Caption", text)]) if text else "")


def _uri(image: Image.Image) -> str:
    small = on_white(image)
    small.thumbnail((PREVIEW_PX, PREVIEW_PX))
    return data_uri(small)


def _result(now: Snapshot) -> str:
    """The summary, and the images that failed."""
    if now.status == "failed":
        return notice("error", now.message)
    if now.summary is None or now.active:
        return ""
    failed = facts(now.summary.failed[:MAX_FAILED], names=True)
    more = len(now.summary.failed) - MAX_FAILED
    rest = notice("info", f"and {more} more") if more > 0 else ""
    again = notice("info", "Interrupted. Click Preprocess again to continue.") if now.summary.stopped else ""
    return notice("warning" if now.summary.failed else "good", "\n".join(now.summary.lines())) + failed + rest + again
