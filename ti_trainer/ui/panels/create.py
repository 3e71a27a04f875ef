"""The panel Create embedding: a name that is checked as it is typed, a text to start from, and a file at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.embedding import negative_name
from ti_trainer.errors import TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.formats.naming import name_warnings
from ti_trainer.prompts import CHUNK
from ti_trainer.runs import locks
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.train import trainable
from ti_trainer.ui.render import facts, notice, refusal
from ti_trainer.wording import counted

ABOUT_CARDS = (
    "A card from a DreamArtist run carries the word and its negative. The WebUI reads one embedding of an image, the word: "
    "put the card into the embeddings folder, and give the negative a file here."
)


@dataclass(frozen=True)
class Create:
    """What other panels need of this one."""

    button: Any
    inputs: list[Any]
    about_name: Any
    outcome: Any


def panel(page: Page) -> Create:
    """The form and what happens with it."""
    start = page.prefilled
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            name = gr.Textbox(
                label="Name",
                info="The new word, which is also the file's name. Take something that no prompt contains by chance.",
                placeholder="my-cat",
                elem_id="ti_trainer_create_name",
                max_lines=1,
            )
            about_name = gr.HTML(elem_id="ti_trainer_create_about_name")
            init_text = gr.Textbox(
                label="Initialization text",
                info="What it is near to, in a word or two: the vectors begin as these. Empty: they begin at zero.",
                value=start.init_text if start else "*",
                elem_id="ti_trainer_create_init_text",
                max_lines=1,
            )
            about_text = gr.HTML(elem_id="ti_trainer_create_about_text")
            num_vectors = gr.Slider(
                minimum=1,
                maximum=CHUNK,
                step=1,
                value=2,
                label="Number of vectors per token",
                info="Tokens of a prompt that it takes: more can hold more, and want more images. 1 to 8 is usual.",
                elem_id="ti_trainer_create_num_vectors",
            )
            overwrite = gr.Checkbox(
                label="Overwrite Old Embedding",
                info="Replace an embedding of that name; what it had learned is gone.",
                value=False,
                elem_id="ti_trainer_create_overwrite",
            )
            with gr.Accordion("DreamArtist", open=False):
                negative_vectors = gr.Slider(
                    minimum=0,
                    maximum=CHUNK,
                    step=1,
                    value=0,
                    label="Number of vectors of the negative",
                    info="Above 0 there is a second embedding, its name and -neg, for what the thing is not: train both "
                    "with 'Train with DreamArtist', from as little as one image. 3 to 10 is usual, beside 3 of the word.",
                    elem_id="ti_trainer_create_negative_vectors",
                )
                negative_text = gr.Textbox(
                    label="Initialization text of the negative",
                    info="What it starts as.",
                    value="*",
                    elem_id="ti_trainer_create_negative_text",
                    max_lines=1,
                )
            button = gr.Button("Create embedding", variant="primary", elem_id="ti_trainer_create_button")
        with gr.Column(elem_classes=["ti-results"]):
            outcome = gr.HTML(elem_id="ti_trainer_create_outcome")
            with gr.Accordion("Embeddings that cannot be used with this model", open=False):
                look = gr.Button("Look through the embeddings folder", elem_id="ti_trainer_survey_button")
                skipped = gr.HTML(elem_id="ti_trainer_survey")
            with gr.Accordion("Cards with a negative embedding in them", open=False):
                gr.HTML(f'<div class="ti-subdued">{ABOUT_CARDS}</div>')
                take = gr.Button("Take negatives out of cards", elem_id="ti_trainer_take_negatives")
                taken = gr.HTML(elem_id="ti_trainer_taken")
    inputs = [name, init_text, num_vectors, overwrite, negative_vectors, negative_text]
    for each in inputs:
        unsaved(each)
    for each in (name, overwrite):
        listen(each.change, lambda *given: about_the_name(page, *given), [name, overwrite], [about_name])
    for each in (init_text, num_vectors):
        listen(each.change, lambda *given: about_the_text(page, *given), [init_text, num_vectors], [about_text])
    listen(look.click, lambda: survey(page), [], [skipped], show_progress="minimal")
    listen(take.click, lambda: negatives_taken_out(page), [], [taken], show_progress="minimal")
    return Create(button, inputs, about_name, outcome)


def wire(page: Page, created: Create, chosen: Any) -> None:
    """Create when the button is pressed, and choose it in the Train panel's list `chosen`."""
    outputs = [created.outcome, chosen, created.about_name]
    listen(created.button.click, lambda *given: outcome_of(page, *given), created.inputs, outputs, show_progress="minimal")


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
    """Create it, and its negative if that has vectors; TITrainerError if that cannot be."""
    name, host = (name or "").strip(), page.host
    embeddings_dir.free_file(host.embeddings_dir, name, overwrite=overwrite)
    page.refuse_if_busy("create embeddings")
    names = (name, negative_name(name))[: 2 if negative_vectors else 1]
    with host.lock(), locks.embeddings_held(host.embeddings_dir, names):
        model = host.open_model()
        folder, word = host.embeddings_dir, (name, init_text or "", int(num_vectors or 0))
        name_warnings(model, folder, name)  # they were shown as the name was typed; what no prompt can hold is refused
        if negative_vectors:
            unwanted = (negative_text or "", int(negative_vectors))
            path, _ = embeddings_dir.create_pair(folder, model, word, unwanted, overwrite=overwrite, warn=warn)
        else:
            path = embeddings_dir.create(folder, model, *word, overwrite=overwrite, warn=warn)
        host.embeddings_changed()
    return path


def said_of(path: Path, init_text: str, num_vectors: float) -> str:
    """What was created, for people."""
    start = f"as {init_text!r}" if init_text else "at zero"
    vectors = counted(int(num_vectors), "vector")
    return f"Created {path.stem} with {vectors}, which begin{'s' * (num_vectors == 1)} {start}: {path}."


def outcome_of(
    page: Page,
    name: str,
    init_text: str,
    num_vectors: float | None,
    overwrite: bool,
    negative_vectors: float | None,
    negative_text: str,
) -> list[Any]:
    """What came of it, the Train panel's list with the new word chosen, and that nothing is left to say about the name."""
    warned: list[str] = []
    try:
        path = create(page, name, init_text, num_vectors, overwrite, negative_vectors, negative_text, warn=warned.append)
    except (TITrainerError, OSError) as error:
        return [refusal(error), gr.update(), gr.update()]
    said = f"{said_of(path, init_text, num_vectors)} It is chosen on the Train page."
    if negative_vectors:
        negative = negative_name(path.stem)
        said += f" {negative} is there, too: tick Train with DreamArtist."
    box = notice("good", said) + "".join(notice("warning", each) for each in warned)
    return [box, gr.update(choices=trainable(page), value=path.stem), ""]


def about_the_name(page: Page, name: str, overwrite: bool) -> str:
    """Whether it is legal, free, and no word of common prompts."""
    name = (name or "").strip()
    if not name:
        return ""
    try:
        embeddings_dir.checked_new_name(name)
        existing = embeddings_dir.find(page.host.embeddings_dir, name)
        if existing is not None and not overwrite:
            return notice("error", f"There is an embedding {name} already: choose another name, or tick Overwrite.")
        warnings = name_warnings(page.host.open_model(), page.host.embeddings_dir, name)
    except TITrainerError as error:
        return notice("error", str(error))
    if existing is not None:
        warnings.append(f"{existing.name} will be replaced; what it has learned is gone then.")
    return "".join(notice("warning", each) for each in warnings) or notice("good", "This name is free.")


def about_the_text(page: Page, text: str, num_vectors: float | None) -> str:
    """How many tokens it has, and what that means for the vectors."""
    num_vectors = int(num_vectors or 1)
    try:
        tokens = len(next(iter(page.host.open_model().token_embeddings(text or "").values())))
    except TITrainerError as error:
        return notice("error", str(error))
    if not tokens:
        return notice("info", "No token: the vectors begin at zero, and learning takes longer.")
    if left_out := embeddings_dir.text_left_out(page.host.open_model(), text, num_vectors):
        return notice("warning", left_out)
    said, vectors = counted(tokens, "token"), counted(num_vectors, "vector")
    return notice("info", said if tokens == num_vectors else f"{said} for {vectors}: tokens are repeated.")


def survey(page: Page) -> str:
    """Files of the embeddings folder that the model cannot use, each with the reason."""
    try:
        found = list(embeddings_dir.survey(page.host.embeddings_dir, page.host.open_model()))
    except TITrainerError as error:
        return notice("error", str(error))
    cannot = [(each.path.name, each.reason) for each in found if each.embedding is None and not _is_image(each)]
    usable = sum(each.embedding is not None for each in found)
    if not cannot:
        return notice("good", f"All can be used with {page.host.describe()}: {counted(usable, 'embedding')}.")
    return notice("info", f"{usable} can be used, {len(cannot)} cannot:") + facts(cannot)


def negatives_taken_out(page: Page) -> str:
    """Do it, and say what came of it."""
    host = page.host
    try:
        with host.lock():
            files = embeddings_dir.take_negatives_out(host.embeddings_dir)
            host.embeddings_changed()
    except (TITrainerError, OSError) as error:
        return notice("error", str(error))
    if not files:
        return notice("info", "No card of the embeddings folder has a negative in it that is not there as a file already.")
    return notice("good", "Now there are files of their own: " + ", ".join(file.name for file in files))


def _is_image(found: embeddings_dir.Found) -> bool:
    """Images beside embeddings are mostly just that."""
    return found.path.suffix.lower() in (".png", ".webp")
