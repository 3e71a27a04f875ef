"""The Embeddings tab: one sub-tab for each thing that can be done with finished embeddings."""

from __future__ import annotations

import gradio as gr

from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import convert, merge


def panel(page: Page) -> None:
    """Add the sub-tabs."""
    with gr.Tabs(elem_id="ti_trainer_embeddings_tabs"):
        with gr.Tab("Merge", id="merge"):
            merge.panel(page)
        with gr.Tab("Convert", id="convert"):
            convert.panel(page)
