"""The Embeddings tab: one sub-tab for each thing that can be done with finished embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import compare, convert, inspect, library, merge, prompt_view, share


@dataclass(frozen=True)
class Embeddings:
    """What is connected to the rest of the page."""

    library: library.LibraryPanel
    inspected: Any
    compare: compare.Compare


def panel(page: Page) -> Embeddings:
    """Add the sub-tabs."""
    with gr.Tabs(elem_id="ti_trainer_embeddings_tabs"):
        with gr.Tab("Library", id="library"):
            library_panel = library.panel(page)
        with gr.Tab("Inspect", id="inspect"):
            inspected = inspect.panel(page)
        with gr.Tab("Compare", id="compare"):
            compared = compare.panel(page)
        with gr.Tab("Merge", id="merge"):
            merge.panel(page)
        with gr.Tab("Convert", id="convert"):
            convert.panel(page)
        with gr.Tab("Share", id="share"):
            share.panel(page)
        with gr.Tab("Prompt as tokens", id="tokens"):
            prompt_view.panel(page)
    return Embeddings(library_panel, inspected, compared)


def wire(made: Embeddings, tab: Any, prompts: Mapping[str, Any], to_prompt: str) -> None:
    """List the folder when the tab is opened, and put the chosen embedding into the prompts, which `to_prompt` shows."""
    made.library.fill(tab.select)
    library.wire(made.library, made.inspected, prompts, to_prompt)
