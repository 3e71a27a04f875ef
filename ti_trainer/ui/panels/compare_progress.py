"""The Compare panel, right side: progress, the table of images, and the buttons that take a copy into use."""

from __future__ import annotations

from functools import partial
from html import escape
from itertools import groupby
from typing import Any

import gradio as gr

from ti_trainer.errors import TITrainerError
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.run_actions import promote_copy
from ti_trainer.ui.panels.runs import label_of, name_for
from ti_trainer.ui.panels.status_strip import Part, about_comparison
from ti_trainer.ui.render import facts, notice, progress, refusal
from ti_trainer.ui.thumbnails import thumbnail_uri
from ti_trainer.wording import encodable
from ti_trainer.workbench.compare import Cell, Comparison
from ti_trainer.workbench.compare_job import Snapshot

PREFIX = "ti_trainer_compare_"
LARGE_PX, SMALL_PX = 256, 144  # thumbnails of few and of many images
FEW = 36
TIMES_SHOWN = 24  # while it runs: the whole table is sent each time
# A click on a row's button puts the row's number into a hidden text box; the time makes a second click a change.
ON_CLICK = """
    const button = event.target.closest("[data-row]");
    if (!button) return;
    const box = this.closest(".ti-trainer").querySelector("#ti_trainer_compare_row :is(textarea, input)");
    box.value = button.dataset.row + " " + Date.now();
    box.dispatchEvent(new Event("input", { bubbles: true }));
"""


def panel(page: Page) -> dict[str, Any]:
    """Add the components; returns those that `parts_of` keeps up to date."""
    live: dict[str, Any] = {"compare_bar": gr.HTML(progress("idle"), elem_id=PREFIX + "progress")}
    live["compare_stop"] = gr.Button("Interrupt", interactive=False, size="sm", elem_id=PREFIX + "stop")
    live["compare_result"] = gr.HTML(elem_id=PREFIX + "result")
    used = gr.HTML(elem_id=PREFIX + "used")
    live["compare_grid"] = gr.HTML(elem_id=PREFIX + "grid")
    with gr.Accordion("Name for “Use this one”", open=False):
        name = gr.Textbox(
            label="Name in the embeddings folder",
            info="Empty: the name of the run's embedding and the step, such as my-cat-300.",
            max_lines=1,
            elem_id=PREFIX + "name",
        )
        overwrite = gr.Checkbox(
            label="Overwrite Old Embedding", value=False, visible=not page.is_public, elem_id=PREFIX + "overwrite"
        )
    with gr.Row(elem_classes=["ti-hidden"]):
        row = gr.Textbox(value="", elem_id=PREFIX + "row")
    for each in (name, overwrite, row):
        unsaved(each)
    listen(live["compare_stop"].click, page.comparing.stop)
    listen(row.change, partial(use, page), [row, name, overwrite], [used])
    return live


def parts_of(page: Page) -> dict[str, Part]:
    """For `train_progress.parts_of`: what each live component depends on, and how to make its update."""
    now = page.comparing.snapshot()
    title = now.work.title if now.work else ""
    bar = progress(now.status, title, now.done, now.total, None, None, now.seconds_left, about_comparison(now))
    every = max(1, now.total // TIMES_SHOWN)
    shown = (now.status, str(now.folder), now.done if not now.active else now.done // every)
    return {
        "compare_bar": (bar, lambda: bar),
        "compare_stop": (now.status, lambda: gr.update(interactive=now.status == "comparing")),
        "compare_result": ((now.status, str(now.folder), now.message, now.notes), lambda: _result(now)),
        "compare_grid": (shown, lambda: table(now)),
    }


def use(page: Page, row: str, name: str, overwrite: bool) -> str:
    """Copy the embedding of a row to the embeddings folder; the message, also if it is refused."""
    work, number = page.comparing.snapshot().work, (row or "").partition(" ")[0]
    if work is None or not number.isdecimal() or int(number) >= len(work.rows):
        return ""
    candidate, _ = work.rows[int(number)]
    if candidate.run is None:
        return notice("info", f"{candidate.file.stem} is in the embeddings folder already.")
    try:
        wanted = (name or "").strip() or name_for(candidate.run, candidate.copy)
        return promote_copy(page, label_of(candidate.run), candidate.copy, wanted, overwrite)
    except (TITrainerError, OSError) as error:
        return refusal(error)


def table(now: Snapshot) -> str:
    """The images that are finished, in a table with labels; empty if nothing was compared."""
    work, folder = now.work, now.folder
    if work is None or folder is None:
        return ""
    side = LARGE_PX if work.size <= FEW else SMALL_PX
    body = ""
    for row in range(len(work.rows)):
        cells = "".join(
            f"<td>{_image(thumbnail_uri(folder / Cell(row, column).file, side), _alt(work, row, column))}</td>"
            for column in range(len(work.columns))
        )
        body += f'<tr><th scope="row">{_label(now, row)}</th>{cells}</tr>'
    return encodable(
        f'<div class="ti-compare" onclick="{escape(ON_CLICK)}" tabindex="0" style="--ti-cell: {side // 2 + 32}px">'
        f"<table><thead>{_head(work)}</thead><tbody>{body}</tbody></table></div>"
    )


def _head(work: Comparison) -> str:
    prompts = [(prompt, len(list(group))) for prompt, group in groupby(prompt for prompt, _ in work.columns)]
    above = "".join(f'<th scope="colgroup" colspan="{count}">{escape(prompt)}</th>' for prompt, count in prompts)
    seeds = "".join(f'<th scope="col">{escape(work.column_lines(column)[1])}</th>' for column in range(len(work.columns)))
    return f"<tr><td></td>{above}</tr><tr><td></td>{seeds}</tr>"


def _label(now: Snapshot, row: int) -> str:
    if now.work is None:
        return ""
    first, *lines = now.work.row_lines(row, now.outcome.scores if now.outcome else {})
    candidate, _ = now.work.rows[row]
    button = f'<button type="button" class="ti-way" data-row="{row}">Use this one</button>' if candidate.run else ""
    return f"<b>{escape(first)}</b>" + "".join(f"<span>{escape(each)}</span>" for each in lines) + button


def _alt(work: Comparison, row: int, column: int) -> str:
    prompt, seed = work.column_lines(column)
    return f"{work.rows[row][0].label}: {prompt}, {seed}"


def _image(uri: str, alt: str) -> str:
    return f'<img src="{uri}" alt="{escape(alt)}" title="{escape(alt)}">' if uri else "<i>…</i>"


def _result(now: Snapshot) -> str:
    """What came out and where it is; while it runs, what there is to know."""
    notes = "".join(notice("info", each) for each in now.notes)
    if now.status == "failed":
        return notice("error", now.message) + notes
    if now.outcome is None or now.active:
        return notes
    folder, grid = now.outcome.folder.absolute(), now.outcome.grid.absolute()
    files = facts([("Folder", folder), ("The table as an image", grid)])
    return notice("warning" if now.outcome.stopped else "good", now.outcome.summary) + notes + files
