"""A page that is only a message, for a host in which the trainer cannot run."""

from __future__ import annotations

import gradio as gr

from ti_trainer.ui.render import notice


def build(message: str) -> gr.Blocks:
    """The page; it uses what every version of gradio has."""
    with gr.Blocks(title="TI Trainer", analytics_enabled=False) as root, gr.Column(elem_classes=["ti-trainer"]):
        gr.HTML(notice("warning", message), elem_id="ti_trainer_unavailable")
    return root
