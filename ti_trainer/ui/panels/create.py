"""The Create embedding panel: a name, checked while it is typed, an initialization text, and the number of vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.embedding import negative_name
from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import name_warnings
from ti_trainer.prompts import CHUNK
from ti_trainer.runs import locks
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import suggest
from ti_trainer.ui.panels.train import trainable
from ti_trainer.ui.render import facts, notice, refusal
from ti_trainer.ui.widgets import whole
from ti_trainer.wording import counted

ABOUT_CARDS = (
    "A preview image saved by a DreamArtist run contains the embedding and its negative. The WebUI reads only the first: "
    "put the image into the embeddings folder, then extract the negative into a file of its own here."
)

REPLACE = "ti_trainer_create_replace"


@dataclass(frozen=True)
class Create:
    """The components that `wire` connects to other panels."""

    button: Any
    replace: Any  # hidden: a way out
    inputs: list[Any]
    about_name: Any
    outcome: Any
    images: Any


def panel(page: Page) -> Create:
    """Add the form and the results."""
    start = page.prefilled
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            name = gr.Textbox(
                label="Name",
                info="The word to use in prompts, and the file name. Choose one that is not otherwise used in prompts.",
                placeholder="my-cat",
                elem_id="ti_trainer_create_name",
                max_lines=1,
            )
            about_name = gr.HTML(elem_id="ti_trainer_create_about_name")
            init_text = gr.Textbox(
                label="Initialization text",
                info="A word or two for something similar, from which the vectors start. Empty: they start at zero.",
                value=start.init_text if start else "*",
                elem_id="ti_trainer_create_init_text",
                max_lines=1,
            )
            about_text = gr.HTML(elem_id="ti_trainer_create_about_text")
            images = suggest.panel(page, init_text)
            num_vectors = gr.Slider(
                minimum=1,
                maximum=CHUNK,
                step=1,
                value=2,
                label="Number of vectors per token",
                info="How many tokens it takes in a prompt. More vectors learn more detail but need more images; "
                "1 to 8 is common.",
                elem_id="ti_trainer_create_num_vectors",
            )
            overwrite = gr.Checkbox(
                label="Overwrite Old Embedding",
                info="Replace an existing embedding of this name. Its training is lost.",
                value=False,
                visible=not page.is_public,
                elem_id="ti_trainer_create_overwrite",
            )
            with gr.Accordion("DreamArtist", open=False):
                negative_vectors = gr.Slider(
                    minimum=0,
                    maximum=CHUNK,
                    step=1,
                    value=0,
                    label="Number of vectors of the negative embedding",
                    info="Above 0, a second embedding NAME-neg is created, which learns what to avoid. Train both with "
                    "'Train with DreamArtist', from as little as one image. 3 to 10 is common, with 3 for the embedding.",
                    elem_id="ti_trainer_create_negative_vectors",
                )
                negative_text = gr.Textbox(
                    label="Initialization text of the negative embedding",
                    info="The text from which its vectors start.",
                    value="*",
                    elem_id="ti_trainer_create_negative_text",
                    max_lines=1,
                )
            button = gr.Button("Create embedding", variant="primary", elem_id="ti_trainer_create_button")
            with gr.Row(elem_classes=["ti-hidden"]):
                replace = gr.Button("Replace the existing embedding", elem_id=REPLACE)
        with gr.Column(elem_classes=["ti-results"]):
            outcome = gr.HTML(elem_id="ti_trainer_create_outcome")
            with gr.Accordion("Embeddings that do not work with this model", open=False):
                check = gr.Button("Check the embeddings folder", elem_id="ti_trainer_survey_button")
                skipped = gr.HTML(elem_id="ti_trainer_survey")
            with gr.Accordion("Images with a negative embedding", open=False):
                gr.HTML(f'<div class="ti-subdued">{ABOUT_CARDS}</div>')
                extract = gr.Button("Extract negative embeddings", elem_id="ti_trainer_extract_negatives")
                extracted = gr.HTML(elem_id="ti_trainer_extracted")
    inputs = [name, init_text, num_vectors, overwrite, negative_vectors, negative_text]
    for each in inputs:
        unsaved(each)
    for each in (name, overwrite):
        listen(each.change, partial(check_name, page), [name, overwrite], [about_name])
    for each in (init_text, num_vectors):
        listen(each.change, partial(check_init_text, page), [init_text, num_vectors], [about_text])
    listen(check.click, lambda: survey(page), [], [skipped], show_progress="minimal")
    listen(extract.click, lambda: extract_negatives(page), [], [extracted], show_progress="minimal")
    return Create(button, replace, inputs, about_name, outcome, images)


def wire(page: Page, created: Create, chosen: Any) -> None:
    """Create an embedding when the button is clicked, and select it in the Train panel's list `chosen`."""
    outputs = [created.outcome, chosen, created.about_name]
    listen(created.button.click, partial(outcome_of, page), created.inputs, outputs, show_progress="minimal")

    def replaced(name: str, text: str, count: float | None, _overwrite: bool, *negative: Any) -> list[Any]:
        return outcome_of(page, name, text, count, True, *negative)

    listen(created.replace.click, replaced, created.inputs, outputs, show_progress="minimal")


def create(
    page: Page,
    name: str,
    init_text: str,
    num_vectors: float | None,
    overwrite: bool,
    negative_vectors: float | None = 0,
    negative_text: str = "*",
    *,
    warn: Callable[[str], None],
) -> Path:
    """Create an embedding, and its negative one if that has vectors; TITrainerError if that is not possible."""
    name, host, overwrite = (name or "").strip(), page.host, page.overwrite(overwrite)
    embeddings_dir.free_file(host.embeddings_dir, name, overwrite=overwrite)
    page.refuse_if_busy("create embeddings")
    count = whole(num_vectors, "Number of vectors per token")
    negative_count = whole(negative_vectors, "Number of vectors of the negative embedding")
    names = (name, negative_name(name))[: 2 if negative_count else 1]
    with host.lock(), locks.embeddings_held(host.embeddings_dir, names):
        model = host.open_model()
        folder, embedding = host.embeddings_dir, (name, init_text or "", count)
        name_warnings(model, folder, name)  # raises for a name that no prompt can use; the warnings were shown before
        if negative_count:
            negative = (negative_text or "", negative_count)
            path, _ = embeddings_dir.create_pair(folder, model, embedding, negative, overwrite=overwrite, warn=warn)
        else:
            path = embeddings_dir.create(folder, model, *embedding, overwrite=overwrite, warn=warn)
        host.embeddings_changed()
    return path


def created_message(path: Path, init_text: str, num_vectors: float) -> str:
    """What was created, and where."""
    source = repr(init_text) if init_text else "zeros"
    return f"Created {path.stem} with {counted(int(num_vectors), 'vector')}, initialized from {source}: {path}."


def outcome_of(
    page: Page,
    name: str,
    init_text: str,
    num_vectors: float | None,
    overwrite: bool,
    negative_vectors: float | None,
    negative_text: str,
) -> list[Any]:
    """Create it; returns the outcome, an update of the Train panel's list, and an empty message about the name."""
    warnings: list[str] = []
    try:
        path = create(page, name, init_text, num_vectors, overwrite, negative_vectors, negative_text, warn=warnings.append)
    except (TITrainerError, OSError) as error:
        exists = isinstance(error, ConfigError) and error.option == "overwrite" and not page.is_public
        ways = {"Replace the existing embedding": f"press:{REPLACE}", "Train": "show:Train"} if exists else None
        return [refusal(error, ways), gr.update(), gr.update()]
    message = f"{created_message(path, init_text, num_vectors or 0)} It is selected in the Train tab."
    if negative_vectors:
        message += f" {negative_name(path.stem)} was created too: tick Train with DreamArtist to train both."
    box = notice("good", message) + "".join(notice("warning", each) for each in warnings)
    return [box, gr.update(choices=trainable(page), value=path.stem), ""]


def check_name(page: Page, name: str, overwrite: bool) -> str:
    """Whether the name is valid and free, with warnings about common words."""
    name = (name or "").strip()
    if not name:
        return ""
    try:
        embeddings_dir.checked_new_name(name)
        existing = embeddings_dir.find(page.host.embeddings_dir, name)
        if existing is not None and not overwrite:
            way = "" if page.is_public else ", or tick Overwrite Old Embedding"
            return notice("error", f"An embedding named {name} already exists: choose another name{way}.")
        warnings = name_warnings(page.host.open_model(), page.host.embeddings_dir, name)
    except TITrainerError as error:
        return notice("error", str(error))
    if existing is not None:
        warnings.append(f"{existing.name} will be replaced, and its training will be lost.")
    return "".join(notice("warning", each) for each in warnings) or notice("good", "This name is available.")


def check_init_text(page: Page, text: str, num_vectors: float | None) -> str:
    """How many tokens the text has, and how they become the initial vectors."""
    try:
        num_vectors = whole(num_vectors, "Number of vectors per token", 1)
        tokens = len(next(iter(page.host.open_model().token_embeddings(text or "").values())))
    except TITrainerError as error:
        return notice("error", str(error))
    if not tokens:
        return notice("info", "No tokens: the vectors start as zeros, and training takes longer.")
    if left_out := embeddings_dir.text_left_out(page.host.open_model(), text, num_vectors):
        return notice("warning", left_out)
    found, vectors = counted(tokens, "token"), counted(num_vectors, "vector")
    return notice("info", found if tokens == num_vectors else f"{found} for {vectors}: the tokens are repeated.")


def survey(page: Page) -> str:
    """The files in the embeddings folder that the model cannot use, each with the reason."""
    try:
        found = list(embeddings_dir.survey(page.host.embeddings_dir, page.host.open_model()))
    except TITrainerError as error:
        return notice("error", str(error))
    unusable = [(each.path.name, each.reason) for each in found if each.embedding is None and not _is_image(each)]
    usable = sum(each.embedding is not None for each in found)
    if not unusable:
        return notice("good", f"All {counted(usable, 'embedding')} can be used with {page.host.describe()}.")
    return notice("info", f"{usable} can be used with this model, {len(unusable)} cannot:") + facts(unusable, names=True)


def extract_negatives(page: Page) -> str:
    """Extract negative embeddings from images into files of their own; returns a message."""
    host = page.host
    try:
        with host.lock():
            files = embeddings_dir.take_negatives_out(host.embeddings_dir)
            host.embeddings_changed()
    except (TITrainerError, OSError) as error:
        return notice("error", str(error))
    if not files:
        return notice("info", "All negative embeddings in the folder's images have files already.")
    return notice("good", f"Extracted: {', '.join(file.name for file in files)}.")


def _is_image(found: embeddings_dir.Found) -> bool:
    """Whether it is an image, as most previews in the folder are."""
    return found.path.suffix.lower() in (".png", ".webp")
