"""Below all tabs: measure this computer, for a text to paste into an issue. Not on public pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.errors import TITrainerError
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice, refusal
from ti_trainer.workbench import diagnosis

ABOUT = (
    "Measures a few training steps with the loaded model, which takes about a minute on a GPU. The text contains versions, "
    "the GPU and its memory, the name of the checkpoint and the times; no folders, prompts or images. Nothing is sent."
)
COPIED = "Copied. Paste it into your issue."
MEASURING = "Measuring. Generating and training wait until it is finished."
# Browsers have no navigator.clipboard on pages that another computer serves without HTTPS.
COPY = """async (text) => {{
    document.querySelector('#ti_trainer_report_text textarea').select();
    await navigator.clipboard?.writeText(text).catch(() => {{}});
    document.execCommand('copy');
    return {};
}}"""


def panel(page: Page) -> None:
    """Add the accordion."""
    if page.is_public:
        return
    with gr.Accordion("Report a problem", open=False, elem_id="ti_trainer_report"):
        gr.HTML(f'<div class="ti-subdued">{ABOUT}</div>')
        with gr.Row(elem_classes=["ti-buttons"]):
            button = gr.Button("Measure this computer", size="sm", elem_id="ti_trainer_report_button")
            copy = gr.Button("Copy the report", size="sm", interactive=False, elem_id="ti_trainer_report_copy")
        message = gr.HTML(elem_id="ti_trainer_report_message")
        text = unsaved(gr.Textbox(label="Report", lines=12, max_lines=30, visible=False, elem_id="ti_trainer_report_text"))
    outputs = [button, copy, message, text]
    listen(button.click, partial(measure, page), [], outputs, queue=True, show_progress="minimal")
    listen(copy.click, None, [text], [message], js=COPY.format(json.dumps(notice("good", COPIED))))


def measure(page: Page) -> Iterator[list[Any]]:
    """Updates of the button, of Copy, the message and the text."""
    try:
        page.quick.refuse_if_busy(page.job, page.preprocessing)
        yield [gr.update(interactive=False), gr.update(), notice("info", MEASURING), gr.update()]
        found = "\n".join(["```", *diagnosis.report(page.host), "```"])
    except (TITrainerError, OSError) as error:
        yield [gr.update(interactive=True), gr.update(), refusal(error), gr.update()]
        return
    yield [gr.update(interactive=True), gr.update(interactive=True), "", gr.update(value=found, visible=True)]
