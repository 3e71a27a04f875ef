"""Keep a page up to date: a hidden button, which javascript/ti_trainer.js clicks, refreshes components."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ti_trainer.ui.gradio_compat import listen, unsaved

Refresh = Callable[[str], Sequence[Any]]


def poll(refresh: Refresh, outputs: Sequence[gr.blocks.Block]) -> None:
    """Call once per page, inside `.ti-trainer` but outside any tab: gradio 6 creates a tab's content when it is opened.

    `refresh(state)` returns the page's new state, then an update for each output. The state is a string that is kept in
    the page, "" right after loading, so any number of open pages stay up to date independently. Return `gr.update()` for
    whatever has not changed. It is called about once a second for each page: be quick, and do not raise.
    """

    def refreshed(answer: str) -> list[Any]:
        state, *updates = refresh(answer.partition(" ")[2])
        return [f"{time.monotonic_ns()} {state}", *updates]  # the script waits for a new number before it asks again

    with gr.Row(elem_classes=["ti-hidden"]):  # visible=False would leave them out of the DOM under gradio 3
        answer = unsaved(gr.Textbox(value="", elem_id="ti_trainer_answer"))
        button = unsaved(gr.Button("Refresh", elem_id="ti_trainer_poll"))
    listen(button.click, refreshed, [answer], [answer, *outputs])
