"""The panel Preprocess, its first part, right side: how far it is, what became of photos, and what is shown beforehand."""

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
from ti_trainer.ui.thumbnails import address, address_of

NEXT = {
    "to_captions": "Edit its captions",
    "to_check": "Check its images",
    "to_masks": "Paint its masks",
    "to_train": "Train on it",
}
SHOWN_FAILED, PREVIEW_PX = 20, 264
MASK = "what counts"  # white places most


def news(page: Page) -> dict[str, tuple[Any, Any]]:
    """For `watch.shown`: the parts that follow a preprocessing, each with what it depends on."""
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
        "The photos at hand are finished." if now.status == "stopping" else "",
    )
    return {
        "preprocess_bar": (bar, lambda: bar),
        "preprocess_stop": (now.active, lambda: gr.update(interactive=now.active)),
        "preprocess_result": ((now.status, now.begun_at), lambda: _result(now)),
        **{name: (finished, lambda: gr.update(interactive=finished)) for name in NEXT},
    }


def row(path: Path, results: Sequence[Result], said: str) -> str:
    """A photo and what it becomes, each with its mask, beside each other; below its caption, or what is wrong with it."""
    if not results:
        return notice("warning", f"{path.name} would be left out: {said}")
    items = [(path.name, address(path, PREVIEW_PX))]
    for each in results:
        what = "how the crop was found" if each.is_debug else f"{each.image.width} x {each.image.height}"
        flipped = ", flipped" if each.flipped else ""
        items.append((what + flipped, _address(each.image)))
        if each.mask:
            items.append((MASK + flipped, _address(each.mask)))
    return images(items) + (facts([("Caption", said)]) if said else "")


def _address(image: Image.Image) -> str:
    small = on_white(image)
    small.thumbnail((PREVIEW_PX, PREVIEW_PX))
    return address_of(small)


def _result(now: Snapshot) -> str:
    """What was done, and what could not be."""
    if now.status == "failed":
        return notice("error", now.message)
    if now.summary is None or now.active:
        return ""
    said = "\n".join(now.summary.lines())
    failed = facts(now.summary.failed[:SHOWN_FAILED])
    more = len(now.summary.failed) - SHOWN_FAILED
    rest = notice("info", f"and {more} more") if more > 0 else ""
    again = notice("info", "Interrupted: Preprocess goes on from here.") if now.summary.stopped else ""
    return notice("warning" if now.summary.failed else "good", said) + failed + rest + again
