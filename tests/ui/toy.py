"""A page that counts, in a process of its own: `python toy.py PORT STATUS`. What a test needs to see a page live."""

from __future__ import annotations

import sys
import time

import gradio as gr

from ti_trainer.config.training import options
from ti_trainer.ui import gradio_compat, render
from ti_trainer.ui.app import serve
from ti_trainer.ui.polling import poll
from ti_trainer.ui.widgets import error_update, widget

ANSWER_S = 0.3  # slow enough that what gradio shows while it waits would be seen


def build(status: str) -> gr.Blocks:
    """A form, something live beside it, and a second tab."""

    def news(seen: str) -> list[str]:
        time.sleep(ANSWER_S)
        count = int(seen or 0) + 1
        return [str(count), render.progress(status, "cat", count, 1000), f"<p>count {count}</p>"]

    def check(value: str) -> dict:
        return error_update(None if value else "Learning rate: found nothing, expected a number.")

    with gradio_compat.blocks("toy") as blocks, gr.Column(elem_classes=["ti-trainer"]):
        with gr.Tabs():
            with gr.Tab("First", id="first"), gr.Row(elem_classes=["ti-columns"]):
                with gr.Column():
                    widgets = {each.name: widget(each) for each in options() if each.section == "training"}
                with gr.Column():
                    bar = gr.HTML(render.progress("idle"), elem_classes=["toy-bar"])
                    gr.HTML("<p>below</p>", elem_classes=["toy-below"])
            with gr.Tab("Second", id="second"):
                count = gr.HTML("<p>count 0</p>", elem_classes=["toy-count"])
        poll(news, [bar, count])
        rate, slot = widgets["learning_rate"]
        gradio_compat.listen(rate.change, check, [rate], [slot])
    return blocks


if __name__ == "__main__":
    serve(build(sys.argv[2]), port=int(sys.argv[1]) or None, ready=lambda url: print(url, flush=True))  # noqa: T201
