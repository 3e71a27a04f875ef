"""A look at the dataset before a run: what is there, what is likely to go wrong, and prompts as they will be fed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.config.training import TrainConfig, options
from ti_trainer.data.preflight import Preflight, preflight
from ti_trainer.data.prompts import load_plain, load_template
from ti_trainer.embedding import negative_name
from ti_trainer.errors import TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.model import DiffusionModel, check_fits
from ti_trainer.prompts import PLACEHOLDER_ID, TokenizedPrompt
from ti_trainer.runs.builders import prompter_of
from ti_trainer.runs.datasets import about_embedding, subsets_of
from ti_trainer.ui.gradio_compat import listen
from ti_trainer.ui.panels.train import TrainForm
from ti_trainer.ui.render import Token, facts, notice, prompt_table
from ti_trainer.wording import counted

THUMBNAILS = 24  # are shown, of the first images


def panel(form: TrainForm) -> Any:
    """Put what the form's button Check dataset shows; returns the part of the page that it unfolds."""
    with gr.Accordion("Dataset", open=True, visible=False, elem_id="ti_trainer_look") as part:
        found = gr.HTML(elem_id="ti_trainer_look_found")
        gallery = gr.Gallery(
            label="Images",
            show_label=False,
            columns=4,
            height=320,
            object_fit="contain",
            elem_id="ti_trainer_look_images",
        )
        with gr.Accordion("Ten prompts as they will be fed", open=False):
            prompts = gr.HTML(elem_id="ti_trainer_look_prompts")

    def check(*given: Any) -> list[Any]:
        name, images, values = form.read(*given)
        wrong = form.wrong(name, images, values)
        refusals = form.refusals(wrong)

        def refused(message: str) -> list[Any]:
            return [gr.update(visible=True), notice("error", message), gr.update(value=[]), "", *refusals]

        if wrong:
            said = "First mend what is marked on the left."
            return refused("\n".join([said, *(f"Under {each}" for each in form.folded(wrong))]))
        host, config = form.page.host, form.form.config(values)
        try:
            embedding, _ = embeddings_dir.load(host.embeddings_dir, name)
            model = host.open_model()  # only its tokenizer is needed: a run may hold it in another precision
            check_fits(model, embedding)
            template, plain = (load(config.template, host.template_dirs) for load in (load_template, load_plain))
            told = [*_about_the_negative(host.embeddings_dir, name, config), *about_embedding(model, embedding)]
            subsets = subsets_of(host, images, told.append)
            prompter = prompter_of(config, name, template, plain)
            seen = preflight(subsets, prompter, config, model, embedding.vectors, THUMBNAILS)
        except (TITrainerError, OSError) as error:
            return refused(str(error))
        table = prompt_table((prompt, _chunks(each, model)) for prompt, each in seen.prompts)
        return [gr.update(visible=True), described(seen, told), gr.update(value=list(seen.thumbnails)), table, *refusals]

    outputs = [part, found, gallery, prompts, *form.errors]
    listen(form.check.click, check, form.inputs, outputs, queue=True, show_progress="minimal")
    return part


def described(seen: Preflight, told: Sequence[str] = ()) -> str:
    """The facts in a table, warnings above, those of the dataset file first."""
    warnings = "".join(notice("warning", each) for each in (*told, *seen.unreadable_warnings, *seen.warnings))
    rows = [
        ("Images", f"{seen.count} in {seen.folders} folders" if seen.folders > 1 else seen.count),
        ("Sizes", _listed(seen.sizes)),
        *([("Buckets", _listed(seen.buckets))] if seen.buckets else []),
        ("With a caption", f"{seen.captioned} of {seen.count}"),
        *([("With a mask", f"{seen.masked} of {seen.count}")] if seen.masked else []),
    ]
    return (warnings or notice("good", "No problems found.")) + facts(rows)


def _about_the_negative(embeddings: Path, name: str, config: TrainConfig) -> list[str]:
    """A warning if the word has one that would not be trained."""
    negative = negative_name(name)
    if config.negative or embeddings_dir.find(embeddings, negative) is None:
        return []
    label = next(option.label for option in options() if option.name == "negative")
    return [f"{negative} is there, but '{label}' is off: {name} alone is trained."]


def _listed(sizes: Sequence[tuple[tuple[int, int], int]]) -> str:
    """How many images there are of each, the most frequent ones first."""
    named = ", ".join(f"{number} of {width} x {height}" for (width, height), number in sizes[:6])
    return named + (f" and {counted(len(sizes) - 6, 'other size')}" if len(sizes) > 6 else "")


def _chunks(prompt: TokenizedPrompt, model: DiffusionModel) -> list[list[Token]]:
    """Each chunk's tokens without what fills it up; no text where a vector of an embedding stands."""
    rows = []
    for number, ids in enumerate(prompt.chunks):
        starts = [place.offset for place in prompt.splices if place.chunk == number]
        places = {
            at
            for start in starts
            for at, _ in takewhile(lambda each: each[1] == PLACEHOLDER_ID, list(enumerate(ids))[start:])
        }
        end = next((at for at in range(len(ids) - 1, 0, -1) if ids[at - 1] != ids[-1]), 1)
        shown = enumerate(ids[: end + 1])
        weights = prompt.weights[number] if prompt.weights else (1.0,) * len(ids)
        rows.append(
            [(token, None if at in places else _weighed(model.token_text(token), weights[at])) for at, token in shown]
        )
    return rows


def _weighed(text: str, weight: float) -> str:
    return text if weight == 1 else f"{text} × {weight:.3g}"
