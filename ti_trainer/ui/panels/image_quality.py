"""The panel Check images: what may harm a training, images alike side by side; each a click to leave out.

Knows how findings look; what is found, and how files move, `data.check` knows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
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
from ti_trainer.ui.render import notice
from ti_trainer.ui.thumbnails import address_of, small
from ti_trainer.wording import counted

MOST = 120  # suspects shown at once: after these are dealt with, another check shows the next
NEWS_S = 0.3
# A click on an image marks or unmarks it at once, and puts the numbers of those marked where the server sees them.
ON_CLICK = """
    const card = event.target.closest(".ti-card");
    if (!card) return;
    card.setAttribute("aria-pressed", card.getAttribute("aria-pressed") !== "true");
    const box = this.closest(".ti-trainer").querySelector(
        "#ti_trainer_check_marked textarea, #ti_trainer_check_marked input");
    box.value = [...this.querySelectorAll("[aria-pressed=true]")].map((each) => each.dataset.number).join();
    box.dispatchEvent(new Event("input", { bubbles: true }));
"""
WELCOME = (
    "Finds images that are there twice or nearly so, that are too small, blurred, very long, or cannot be read. "
    "Nothing is deleted: what you leave out goes into a sub-folder, and can be brought back."
)
HOW = "A click marks an image to be left out (red), another keeps it. Those alike stand side by side, the best one green."


@dataclass(frozen=True, eq=False)
class Findings:
    """What one visitor looks at. Which of them are marked, the page itself knows."""

    folder: Path | None = None
    report: Report | None = None
    shown: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ImageCheck:
    """What other panels need of this one: to fill in a folder, and to press Check."""

    folder: Any
    check: Any


def panel(page: Page) -> ImageCheck:
    """Put it here."""
    state = gr.State(Findings())
    with gr.Row(elem_classes=["ti-lined-up"]):
        folder = gr.Textbox(
            label="Dataset directory",
            info="The folder with your images.",
            value=str(page.prefilled.images) if page.prefilled else "",
            max_lines=1,
            scale=3,
            elem_id="ti_trainer_check_folder",
        )
        sizes = [
            gr.Number(
                value=None,
                precision=0,
                label=f"{name.capitalize()}",
                info="Empty: the model's own size. 0: any will do.",
                min_width=140,
                elem_id=f"ti_trainer_check_{name}",
            )
            for name in ("width", "height")
        ]
        start = gr.Button("Check", variant="primary", elem_id="ti_trainer_check_start", elem_classes=["ti-beside"])
    said = gr.HTML(notice("info", WELCOME), elem_id="ti_trainer_check_said")
    with gr.Row(elem_classes=["ti-buttons"]):
        leave = gr.Button("Leave out the marked", variant="primary", elem_id="ti_trainer_check_leave")
        none = gr.Button("Unmark all", elem_id="ti_trainer_check_none")
        back = gr.Button("Bring all back", elem_id="ti_trainer_check_back")
    cards = gr.HTML(elem_id="ti_trainer_check_images")
    with gr.Row(elem_classes=["ti-hidden"]):
        marked = gr.Textbox(value="", elem_id="ti_trainer_check_marked")
    for each in (folder, *sizes, marked):
        unsaved(each)
    outputs = [state, said, cards, marked, leave]
    for event in (start.click, folder.submit):
        listen(event, partial(_checked, page), [state, folder, *sizes], outputs, queue=True)
    listen(marked.change, lambda found, numbers: _label(_marked(found, numbers)), [state, marked], [leave])
    listen(none.click, lambda found: _drawn(found, gr.update()), [state], outputs)
    listen(leave.click, _left_out, [state, marked], outputs, show_progress="minimal")
    listen(back.click, partial(_brought_back, page), [state, folder, marked], outputs, show_progress="minimal")
    return ImageCheck(folder, start)


def _checked(
    page: Page, before: Findings, folder: str, width: float | None, height: float | None
) -> Iterator[Sequence[Any]]:
    """First how far it is, several times; in the end what was found. Who goes away stops it."""
    seen, stop = [0, 0], Event()

    def progress(done: int, total: int) -> None:
        seen[:] = done, total

    try:
        path = page.dataset_dir(folder)
        sizes = _sizes(page, width, height)
        with ThreadPoolExecutor(1) as pool:
            try:
                work = pool.submit(check, path, *sizes, progress=progress, should_stop=stop.is_set)
                while not work.done():
                    yield [before, _bar(*seen), *[gr.update() for _ in range(3)]]
                    time.sleep(NEWS_S)
            finally:
                stop.set()
        report = work.result()
    except (TITrainerError, OSError) as error:
        yield _drawn(Findings(), notice("error", str(error)))
        return
    found = Findings(path, report, tuple(report.suspects[:MOST]))
    marked = [path for path in found.shown if path in report.suggested]
    yield _drawn(found, _summary(found, len(marked)), marked)


def _sizes(page: Page, width: float | None, height: float | None) -> tuple[int, int]:
    """What a side must have at least, in px: where nothing is entered, what the model was made for."""
    if width is not None and height is not None:
        return int(width), int(height)
    try:
        own = page.host.open_model().default_size_px
    except TITrainerError:  # the images can be looked at without one
        own = PreprocessConfig.width
    return tuple(own if side is None else int(side) for side in (width, height))


def _left_out(found: Findings, numbers: str) -> list[Any]:
    marked = _marked(found, numbers)
    try:
        if not found.folder or not marked:
            message = "No image is marked: check a folder, and click the images that you do not want."
            raise ConfigError(message)
        troubles: list[str] = []
        moved = leave_out(found.folder, marked, troubles.append)
    except (TITrainerError, OSError) as error:
        return _drawn(found, notice("error", str(error)), marked)
    said = f"{counted(len(moved), 'image')} left out: moved into “{LEFT_OUT}”, with what belongs to them."
    said += " Check again for what is left."
    here = [path for path in marked if os.path.lexists(path)]
    told = notice("warning", " ".join(troubles))
    gone = [path for path in marked if path not in here]
    return _drawn(replace(found, shown=_staying(found, gone)), notice("good", said) + told, here)


def _staying(found: Findings, marked: Sequence[Path]) -> tuple[Path, ...]:
    """Those not marked; of a group that is gone but for its best, not even that."""
    staying = [path for path in found.shown if path not in marked]
    alone = {best for best, *others in found.report.alike if not set(others) & set(staying)}
    return tuple(path for path in staying if path not in alone or len(found.report.reasons[path]) > 1)


def _brought_back(page: Page, found: Findings, folder: str, numbers: str) -> list[Any]:
    marked = _marked(found, numbers)
    try:
        troubles: list[str] = []
        came, stayed = bring_back(page.dataset_dir(folder), troubles.append)
    except (TITrainerError, OSError) as error:
        return _drawn(found, notice("error", str(error)), marked)
    said = notice("good", f"{counted(len(came), 'image')} brought back.") if came else ""
    if stayed:
        names = ", ".join(path.name for path in stayed[:5])
        said += notice("warning", f"Still in “{LEFT_OUT}”, as there are others of their names now: {names}.")
    said += notice("warning", " ".join(troubles))
    said = said or notice("info", f"Nothing is left out: there are no images in “{LEFT_OUT}”.")
    return _drawn(found, said, marked)


def _drawn(found: Findings, said: Any, marked: Sequence[Path] = ()) -> list[Any]:
    """Updates of all outputs."""
    numbers = ",".join(str(number) for number, path in enumerate(found.shown) if path in marked)
    return [found, said, _cards(found, marked), numbers, _label(marked)]


def _marked(found: Findings, numbers: str) -> list[Path]:
    """The images that the page says are marked."""
    chosen = {int(number) for number in (numbers or "").split(",") if number.isdecimal()}
    return [path for number, path in enumerate(found.shown) if number in chosen]


def _label(marked: Sequence[Path]) -> Any:
    return gr.update(value=f"Leave out the {len(marked)} marked" if marked else "Leave out the marked")


def _cards(found: Findings, marked: Sequence[Path]) -> str:
    with ThreadPoolExecutor(4) as pool:
        addresses = list(pool.map(lambda path: address_of(small(path)), found.shown))
    cards = "".join(
        f'<button type="button" class="ti-card{_kind(found, path)}" data-number="{number}"'
        f' aria-pressed="{str(path in marked).lower()}" title="{escape(path.name)}">'
        f'<span class="ti-shot"><img src="{address}" alt=""></span><b>{escape(path.name)}</b>'
        f"<span>{escape('; '.join(found.report.reasons[path]))}</span></button>"
        for number, (path, address) in enumerate(zip(found.shown, addresses, strict=True))
    )
    return f'<div class="ti-cards" onclick="{escape(ON_CLICK)}">{cards}</div>' if cards else ""


def _kind(found: Findings, path: Path) -> str:
    return " ti-best" if any(path == group[0] for group in found.report.alike) else ""


def _summary(found: Findings, marked: int) -> str:
    report = found.report
    suspects = len(report.suspects)
    if not suspects:
        return notice("good", f"{counted(report.count, 'image')} looked at, and nothing to complain of.")
    said = f"{counted(report.count, 'image')} looked at: {suspects} to look at more closely, {marked} of them marked.\n{HOW}"
    if suspects > len(found.shown):
        said += f"\nThe first {len(found.shown)} are shown; check again when you are through with them."
    return notice("warning", said)


def _bar(done: int, total: int) -> str:
    percent = 100 * done / total if total else 0
    said = f"Looking at images: {done} of {total}" if total else "Looking for images"
    done_part = f'<div style="width:{percent:.1f}%"></div>'
    bar = f'<div class="ti-bar" role="progressbar" aria-valuenow="{percent:.0f}">{done_part}</div>'
    return f'<div class="ti-line ti-numbers">{said}</div>{bar}'
