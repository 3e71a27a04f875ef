"""The Image quality panel: shows images that may harm training, duplicates side by side, and excludes those marked.

`data.image_quality` finds them, and `data.left_out` moves the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.data.image_quality import Report, check
from ti_trainer.data.left_out import bring_back, leave_out
from ti_trainer.data.listing import LEFT_OUT
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice, progress_bar, refusal
from ti_trainer.ui.thumbnails import data_uri, thumbnail_or_grey
from ti_trainer.ui.widgets import whole
from ti_trainer.wording import counted

MAX_SHOWN = 120  # at once: another check shows the next
PROGRESS_S = 0.3
# A click on an image marks or unmarks it in the browser, and puts the numbers of marked images into a hidden text box.
ON_CLICK = """
    const card = event.target.closest(".ti-card");
    if (!card) return;
    card.setAttribute("aria-pressed", card.getAttribute("aria-pressed") !== "true");
    const box = this.closest(".ti-trainer").querySelector(
        "#ti_trainer_quality_marked textarea, #ti_trainer_quality_marked input");
    box.value = [...this.querySelectorAll("[aria-pressed=true]")].map((each) => each.dataset.number).join();
    box.dispatchEvent(new Event("input", { bubbles: true }));
"""
WELCOME = (
    "Finds duplicates and near-duplicates, and images that are too small, blurred, very elongated or unreadable. "
    "Nothing is deleted: excluded images are moved to a subfolder and can be restored."
)
HOW = "Click an image to mark it for exclusion (red) or to keep it. Similar images are side by side, the best one in green."


@dataclass(frozen=True, eq=False)
class Findings:
    """What one visitor sees. Which images are marked is kept in the page."""

    folder: Path | None = None
    report: Report | None = None
    shown: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ImageQuality:
    """What other panels need: the field for the folder, and a function that has it checked at an event of theirs."""

    folder: Any
    checks_at: Callable[[Any], None]


def panel(page: Page) -> ImageQuality:
    """Add the form and the place for the findings."""
    state = gr.State(Findings())
    with gr.Row(elem_classes=["ti-lined-up"]):
        folder = gr.Textbox(
            label="Dataset directory",
            info="The folder with your images.",
            value=str(page.prefilled.images) if page.prefilled else "",
            max_lines=1,
            scale=3,
            elem_id="ti_trainer_quality_folder",
        )
        sizes = [
            gr.Number(
                value=0,
                label=f"Minimum {name}",
                info="In px; 0 is the model's own size, 1 accepts any.",
                min_width=140,
                elem_id=f"ti_trainer_quality_{name}",
            )
            for name in ("width", "height")
        ]
        start = gr.Button("Check", variant="primary", elem_id="ti_trainer_quality_start", elem_classes=["ti-beside"])
    message = gr.HTML(notice("info", WELCOME), elem_id="ti_trainer_quality_message")
    with gr.Row(elem_classes=["ti-buttons"]):
        exclude = gr.Button("Exclude marked", variant="primary", elem_id="ti_trainer_quality_exclude")
        unmark = gr.Button("Unmark all", elem_id="ti_trainer_quality_unmark")
        restore = gr.Button("Restore all", elem_id="ti_trainer_quality_restore")
    cards = gr.HTML(elem_id="ti_trainer_quality_images")
    with gr.Row(elem_classes=["ti-hidden"]):
        marked = gr.Textbox(value="", elem_id="ti_trainer_quality_marked")
    for each in (folder, *sizes, marked):
        unsaved(each)
    outputs = [state, message, cards, marked, exclude]

    def checks_at(event: Any) -> None:
        listen(event, partial(_check, page), [state, folder, *sizes], outputs, queue=True)

    for event in (start.click, folder.submit):
        checks_at(event)
    listen(marked.change, lambda found, numbers: _label(_marked(found, numbers)), [state, marked], [exclude])
    listen(unmark.click, lambda found: _updates(found, gr.update()), [state], outputs)
    listen(exclude.click, _exclude, [state, marked], outputs, show_progress="minimal")
    listen(restore.click, partial(_restore, page), [state, folder, marked], outputs, show_progress="minimal")
    return ImageQuality(folder, checks_at)


def _check(page: Page, before: Findings, folder: str, width: float | None, height: float | None) -> Iterator[Sequence[Any]]:
    """Yield the progress several times, then the findings. Stops when the visitor leaves the page."""
    so_far, stop = [0, 0], Event()

    def progress(done: int, total: int) -> None:
        so_far[:] = done, total

    try:
        path = page.dataset_dir(folder)
        sizes = _sizes(page, width, height)
        with ThreadPoolExecutor(1) as pool:
            try:
                work = pool.submit(check, path, *sizes, progress=progress, should_stop=stop.is_set)
                while not work.done():
                    yield [before, _bar(*so_far), *[gr.update() for _ in range(3)]]
                    time.sleep(PROGRESS_S)
            finally:
                stop.set()
        report = work.result()
    except (TITrainerError, OSError) as error:
        yield _updates(Findings(), notice("error", str(error)))
        return
    found = Findings(path, report, tuple(report.suspects[:MAX_SHOWN]))
    marked = [path for path in found.shown if path in report.suggested]
    yield _updates(found, _summary(report, len(found.shown), len(marked)), marked)


def _sizes(page: Page, width: float | None, height: float | None) -> tuple[int, int]:
    """The minimum width and height in px; the model's native size for 0 and for an empty field."""
    sizes = whole(width, "Minimum width"), whole(height, "Minimum height")
    if all(sizes):
        return sizes
    try:
        native = page.host.open_model().default_size_px
    except TITrainerError:  # images can be checked without a model
        native = PreprocessConfig.width
    return sizes[0] or native, sizes[1] or native


def _exclude(found: Findings, numbers: str) -> list[Any]:
    marked = _marked(found, numbers)
    try:
        if not found.folder or not marked:
            message = "No image is marked: check a folder, and click the images to exclude."
            raise ConfigError(message)
        warnings: list[str] = []
        moved = leave_out(found.folder, marked, warnings.append)
    except (TITrainerError, OSError) as error:
        return _updates(found, refusal(error, {"Check": "press:ti_trainer_quality_start"}), marked)
    message = (
        f"{counted(len(moved), 'image')} moved to “{LEFT_OUT}”, with their captions and masks. Check again for the rest."
    )
    here = [path for path in marked if os.path.lexists(path)]
    gone = [path for path in marked if path not in here]
    html = notice("good", message) + notice("warning", " ".join(warnings))
    return _updates(replace(found, shown=_remaining(found, gone)), html, here)


def _remaining(found: Findings, gone: Sequence[Path]) -> tuple[Path, ...]:
    """The findings that remain; the best of a group whose others are gone is no finding any more."""
    if found.report is None:
        return ()
    remaining = [path for path in found.shown if path not in gone]
    alone = {best for best, *others in found.report.alike if not set(others) & set(remaining)}
    return tuple(path for path in remaining if path not in alone or len(found.report.reasons[path]) > 1)


def _restore(page: Page, found: Findings, folder: str, numbers: str) -> list[Any]:
    marked = _marked(found, numbers)
    try:
        warnings: list[str] = []
        restored, kept = bring_back(page.dataset_dir(folder), warnings.append)
    except (TITrainerError, OSError) as error:
        return _updates(found, notice("error", str(error)), marked)
    html = notice("good", f"{counted(len(restored), 'image')} restored.") if restored else ""
    if kept:
        names = ", ".join(path.name for path in kept[:5])
        html += notice("warning", f"Not restored from “{LEFT_OUT}”, since files of the same names exist: {names}.")
    html += notice("warning", " ".join(warnings))
    return _updates(found, html or notice("info", f"There are no excluded images in “{LEFT_OUT}”."), marked)


def _updates(found: Findings, message: Any, marked: Sequence[Path] = ()) -> list[Any]:
    """Updates of all outputs."""
    numbers = ",".join(str(number) for number, path in enumerate(found.shown) if path in marked)
    return [found, message, _cards(found, marked), numbers, _label(marked)]


def _marked(found: Findings, numbers: str) -> list[Path]:
    """The marked images, from their numbers in the page."""
    chosen = {int(number) for number in (numbers or "").split(",") if number.isdecimal()}
    return [path for number, path in enumerate(found.shown) if number in chosen]


def _label(marked: Sequence[Path]) -> Any:
    return gr.update(value=f"Exclude {len(marked)} marked" if marked else "Exclude marked")


def _cards(found: Findings, marked: Sequence[Path]) -> str:
    if found.report is None:
        return ""
    best = {group[0] for group in found.report.alike}
    with ThreadPoolExecutor(4) as pool:
        uris = list(pool.map(lambda path: data_uri(thumbnail_or_grey(path)), found.shown))
    cards = "".join(
        f'<button type="button" class="ti-card{" ti-best" * (path in best)}" data-number="{number}"'
        f' aria-pressed="{str(path in marked).lower()}" title="{escape(path.name)}">'
        f'<span class="ti-shot"><img src="{uri}" alt=""></span><b>{escape(path.name)}</b>'
        f"<span>{escape('; '.join(found.report.reasons[path]))}</span></button>"
        for number, (path, uri) in enumerate(zip(found.shown, uris, strict=True))
    )
    return f'<div class="ti-cards" onclick="{escape(ON_CLICK)}">{cards}</div>' if cards else ""


def _summary(report: Report, shown: int, marked: int) -> str:
    suspects = len(report.suspects)
    if not suspects:
        return notice("good", f"{counted(report.count, 'image')} checked, no problems found.")
    message = f"{counted(report.count, 'image')} checked: {suspects} with possible problems, {marked} of them marked.\n{HOW}"
    if suspects > shown:
        message += f"\nThe first {shown} are shown: check again for the rest."
    return notice("warning", message)


def _bar(done: int, total: int) -> str:
    text = f"Checking image {done} of {total}" if total else "Looking for images"
    return f'<div class="ti-line ti-numbers">{text}</div>{progress_bar(100 * done / total if total else 0)}'
