"""Check the dataset before a run: show what was found, warn of likely problems, and show prompts as the model gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from ti_trainer.ui.panels.train import HIGHLIGHTED, TrainForm, Values
from ti_trainer.ui.render import Token, facts, notice, prompt_table
from ti_trainer.wording import counted

THUMBNAILS = 24  # are shown, of the first images


def panel(form: TrainForm) -> Any:
    """Add what the form's button Check dataset shows; returns the accordion, hidden until then."""
    with gr.Accordion("Dataset", open=True, visible=False, elem_id="ti_trainer_preflight") as part:
        report = gr.HTML(elem_id="ti_trainer_preflight_report")
        gallery = gr.Gallery(
            label="Images",
            show_label=False,
            columns=4,
            height=320,
            object_fit="contain",
            elem_id="ti_trainer_preflight_images",
        )
        with gr.Accordion("Ten prompts as tokens", open=False):
            prompts = gr.HTML(elem_id="ti_trainer_preflight_prompts")

    def show(html: str, images: Sequence[Any], table: str, wrong: Mapping[str, str]) -> dict[Any, Any]:
        shown = {part: gr.update(visible=True), report: html, gallery: gr.update(value=list(images)), prompts: table}
        return {**shown, **form.errors(wrong)}

    def check(values: Values) -> dict[Any, Any]:
        name, images, entered = form.read(values)
        wrong = form.wrong(name, images, entered)
        if wrong:
            lines = [HIGHLIGHTED, *(f"In {each}" for each in form.in_accordions(wrong))]
            return show(notice("error", "\n".join(lines)), [], "", wrong)
        host, config = form.page.host, form.form.config(entered)
        try:
            embedding, _ = embeddings_dir.load(host.embeddings_dir, name)
            model = host.open_model()  # only for its tokenizer: a run may hold the model in another dtype
            check_fits(model, embedding)
            template, plain = (load(config.template, host.template_dirs) for load in (load_template, load_plain))
            warnings = [*_untrained_negative(host.embeddings_dir, name, config), *about_embedding(model, embedding)]
            subsets = subsets_of(host, images, warnings.append)
            prompter = prompter_of(config, name, template, plain)
            seen = preflight(subsets, prompter, config, model, embedding.vectors, THUMBNAILS)
        except (TITrainerError, OSError) as error:
            return show(notice("error", str(error)), [], "", {})
        table = prompt_table((prompt, _chunks(each, model)) for prompt, each in seen.prompts)
        return show(report_html(seen, warnings), seen.thumbnails, table, {})

    outputs = [part, report, gallery, prompts, *form.slots.values()]
    listen(form.check.click, check, form.inputs, outputs, queue=True, show_progress="minimal")
    return part


def report_html(seen: Preflight, warnings: Sequence[str] = ()) -> str:
    """The warnings, those of the dataset file first, and a table of facts."""
    notices = "".join(notice("warning", each) for each in (*warnings, *seen.unreadable_warnings, *seen.warnings))
    rows = [
        ("Images", f"{seen.count} in {seen.folders} folders" if seen.folders > 1 else seen.count),
        ("Sizes", _listed(seen.sizes)),
        *([("Buckets", _listed(seen.buckets))] if seen.buckets else []),
        ("With captions", f"{seen.captioned} of {seen.count}"),
        *([("With masks", f"{seen.masked} of {seen.count}")] if seen.masked else []),
    ]
    return (notices or notice("good", "No problems found.")) + facts(rows)


def _untrained_negative(embeddings: Path, name: str, config: TrainConfig) -> list[str]:
    """A warning if the embedding has a negative one that would not be trained."""
    negative = negative_name(name)
    if config.trains_negative or embeddings_dir.find(embeddings, negative) is None:
        return []
    label = next(option.label for option in options() if option.name == "negative")
    return [f"{negative} exists, but '{label}' is off: only {name} will be trained."]


def _listed(sizes: Sequence[tuple[tuple[int, int], int]]) -> str:
    """How many images have each size, the most frequent sizes first."""
    listed = ", ".join(f"{count} of {width} x {height}" for (width, height), count in sizes[:6])
    return listed + (f" and {counted(len(sizes) - 6, 'other size')}" if len(sizes) > 6 else "")


def _chunks(prompt: TokenizedPrompt, model: DiffusionModel) -> list[list[Token]]:
    """Each chunk's tokens without padding; None as text where a vector of an embedding is spliced in."""
    rows = []
    for number, ids in enumerate(prompt.chunks):
        starts = [place.offset for place in prompt.splices if place.chunk == number]
        spliced = {
            at
            for start in starts
            for at, _ in takewhile(lambda each: each[1] == PLACEHOLDER_ID, list(enumerate(ids))[start:])
        }
        end = next((at for at in range(len(ids) - 1, 0, -1) if ids[at - 1] != ids[-1]), 1)
        weights = prompt.weights[number] if prompt.weights else (1.0,) * len(ids)
        rows.append(
            [
                (token, None if at in spliced else _weighted(model.token_text(token), weights[at]))
                for at, token in enumerate(ids[: end + 1])
            ]
        )
    return rows


def _weighted(text: str, weight: float) -> str:
    return text if weight == 1 else f"{text} × {weight:.3g}"
