"""News for a page that is looked at: a hidden button, which javascript/ti_trainer.js clicks, refreshes outputs.

Knows nothing of what is news.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ti_trainer.ui.gradio_compat import listen, unsaved

News = Callable[[str], Sequence[Any]]


def poll(news: News, outputs: Sequence[gr.blocks.Block]) -> None:
    """Call once a page, inside the container `.ti-trainer` but in no tab: gradio 6 makes a tab's content when it is opened.

    `news(seen)` returns what it wants to be told the next time, then an update for each output. `seen` is "" for a page
    that was just loaded; it lies in the page, so any number of pages can be up to date by themselves. Return
    `gr.update()` for what the page has already. It is called about once a second for each page: be quick, and do not raise.
    """

    def answered(answer: str) -> list[Any]:
        seen, *updates = news(answer.partition(" ")[2])
        return [f"{time.monotonic_ns()} {seen}", *updates]  # the script waits for another number before it asks again

    with gr.Row(elem_classes=["ti-hidden"]):  # visible=False would leave them out of the DOM under gradio 3
        answer = unsaved(gr.Textbox(value="", elem_id="ti_trainer_answer"))
        button = unsaved(gr.Button("Refresh", elem_id="ti_trainer_poll"))
    listen(button.click, answered, [answer], [answer, *outputs])
