"""The Embeddings tab: one sub-tab for each thing that can be done with finished embeddings."""

from __future__ import annotations

import gradio as gr

from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import compare, convert, merge, share


def panel(page: Page) -> compare.Compare:
    """Add the sub-tabs; returns what other panels need of them."""
    with gr.Tabs(elem_id="ti_trainer_embeddings_tabs"):
        with gr.Tab("Merge", id="merge"):
            merge.panel(page)
        with gr.Tab("Convert", id="convert"):
            convert.panel(page)
        with gr.Tab("Compare", id="compare"):
            compared = compare.panel(page)
        with gr.Tab("Share", id="share"):
            share.panel(page)
    return compared
