"""The part of the Create panel that suggests an initialization text for some images."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from ti_trainer.errors import TITrainerError
from ti_trainer.runs.datasets import subsets_of
from ti_trainer.runs.init_text import rank
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import facts, notice, refusal

ABOUT = "Ranks words by how well the model predicts your images with them, without training."


def panel(page: Page, init_text: Any) -> Any:
    """Add the form; the best text is put into `init_text`. Returns the field for the folder."""
    with gr.Accordion("Suggest an initialization text", open=False):
        gr.HTML(f'<div class="ti-subdued">{ABOUT}</div>')
        images = gr.Textbox(
            label="Dataset directory",
            info="The folder with your images.",
            value=str(page.prefilled.images) if page.prefilled else "",
            max_lines=1,
            elem_id="ti_trainer_suggest_images",
        )
        texts = gr.Textbox(
            label="Texts to try",
            info="Separated by commas. Words of the captions and common words are tried as well.",
            placeholder="wooden toy, figurine",
            max_lines=1,
            elem_id="ti_trainer_suggest_texts",
        )
        button = gr.Button("Suggest an initialization text", elem_id="ti_trainer_suggest_button")
        ranking = gr.HTML(elem_id="ti_trainer_suggest_ranking")
    for each in (images, texts):
        unsaved(each)
    # Through the queue, since a request that takes longer than a minute may be cut off by a proxy.
    listen(button.click, partial(suggest, page), [images, texts], [ranking, init_text], queue=True, show_progress="minimal")
    return images


def suggest(page: Page, images: str | None, texts: str | None) -> list[Any]:
    """The ranking or what is wrong, and an update of the initialization text."""
    try:
        subsets = subsets_of(page.host, page.dataset_dir(images))
        page.refuse_if_busy("measure texts")
        with page.host.lock() as lease:
            model = page.host.open_model()
            ranking = rank(
                model, subsets, (texts or "").split(","), lambda done, total: lease.progress(done, total, "Measuring texts")
            )
    except (TITrainerError, OSError) as error:
        return [refusal(error), gr.update()]
    rows = facts(((text, f"{gain} validation loss than no text") for text, gain in ranking.rows()), names=True)
    found = gr.update() if ranking.best is None else gr.update(value=ranking.best)
    box = notice("warning" if ranking.best is None else "good", f"{ranking.summary} {ranking.advice}")
    return [box + rows, found]
