"""The Embeddings tab: one sub-tab for each thing that can be done with finished embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.ui.gradio_compat import listen
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import compare, compare_form, convert, inspect, library, merge, prompt_view, share


@dataclass(frozen=True)
class Lists:
    """The lists of embeddings in a sub-tab, and what makes their content."""

    tab: Any
    dropdowns: Sequence[Any]
    choices: Callable[[Page], list[str]]


@dataclass(frozen=True)
class Embeddings:
    """What is connected to the rest of the page."""

    library: library.LibraryPanel
    inspected: Any
    compare: compare_form.Compare
    lists: Sequence[Lists]


def panel(page: Page) -> Embeddings:
    """Add the sub-tabs."""
    with gr.Tabs(elem_id="ti_trainer_embeddings_tabs"):
        with gr.Tab("Library", id="library"):
            library_panel = library.panel(page)
        with gr.Tab("Inspect", id="inspect") as inspect_tab:
            inspected = inspect.panel(page)
        with gr.Tab("Compare", id="compare") as compare_tab:
            compared = compare.panel(page)
        with gr.Tab("Merge", id="merge") as merge_tab:
            merged = merge.panel(page)
        with gr.Tab("Convert", id="convert") as convert_tab:
            converted = convert.panel(page)
        with gr.Tab("Share", id="share") as share_tab:
            shared = share.panel(page)
        with gr.Tab("Prompt as tokens", id="tokens"):
            prompt_view.panel(page)
    lists = (
        Lists(inspect_tab, [inspected], inspect.places),
        Lists(compare_tab, [compared.fields["embeddings"]], compare_form.names),
        Lists(merge_tab, merged, compare_form.names),
        Lists(convert_tab, [converted], convert.choices),
        Lists(share_tab, [shared], compare_form.names),
    )
    for each in lists:
        listen(each.tab.select, partial(refreshed, page, [each]), set(), each.dropdowns)
    return Embeddings(library_panel, inspected, compared, lists)


def wire(made: Embeddings, tab: Any, prompts: Mapping[str, Any], to_prompt: str) -> None:
    """List the folder when the tab is opened, and put the chosen embedding into the prompts, which `to_prompt` shows.

    A list that is refreshed when it is clicked shows in gradio 3 what was in it before.
    """
    made.library.fill(tab.select)
    page, dropdowns = made.library.shelf.page, [dropdown for each in made.lists for dropdown in each.dropdowns]
    listen(tab.select, partial(refreshed, page, made.lists), set(), dropdowns)
    library.wire(made.library, made.inspected, prompts, to_prompt)


def refreshed(page: Page, lists: Sequence[Lists], _: Mapping[Any, Any]) -> dict[Any, Any]:
    """Updates of lists: what is in the folder now; what is chosen stays."""
    found = {choices: choices(page) for choices in dict.fromkeys(each.choices for each in lists)}  # each is read once
    updates = [(each.dropdowns, gr.update(choices=found[each.choices])) for each in lists]
    return {dropdown: update for dropdowns, update in updates for dropdown in dropdowns}
