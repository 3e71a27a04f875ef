"""The Merge panel: combine embeddings by a form or an expression, look at the result, save it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.host import GenerationRequest
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.compare_form import names
from ti_trainer.ui.panels.create import check_name
from ti_trainer.ui.render import facts, notice, refusal
from ti_trainer.ui.widgets import whole
from ti_trainer.workbench.evaluation import FUNCTIONS
from ti_trainer.workbench.expression import ExpressionError
from ti_trainer.workbench.merge import METHODS, Merged, Names, expression_of, merge, norms_of, save, with_and_without

PREFIX = "ti_trainer_merge_"
ROWS = 4  # embeddings in the form; an expression may have more
PROMPT = "a photo of [name]"
MAX_SEED = 2**32 - 1
ABOUT = "Combine embeddings of one model family, or make one from text, without training."
SYNTAX = (
    ("0.5 * a + 0.5 * b", "a weighted sum; also - and /, with brackets"),
    ('"my-cat"', "a name with characters other than letters, digits and _"),
    ("a[0]", "the first vector"),
    ("a[0:2]", "the first two vectors"),
)
EDITED = "The expression was edited: clear it to have it written by the fields above."


def panel(page: Page) -> list[Any]:
    """Add the form and the results; returns the lists of embeddings."""
    with gr.Row(elem_classes=["ti-columns"]):
        with gr.Column(elem_classes=["ti-form"]):
            gr.HTML(f'<div class="ti-subdued">{ABOUT}</div>')
            method, chosen, weights, rows, position = _form(page)
            note = gr.HTML(elem_id=PREFIX + "note")
            expression = gr.Textbox(
                label="Expression",
                info="Written by the fields above. It can be edited, or entered by hand.",
                placeholder='0.5 * a + 0.5 * "my-cat"',
                lines=2,
                elem_id=PREFIX + "expression",
            )
            about = gr.HTML(elem_id=PREFIX + "about")
            with gr.Accordion("What an expression can contain", open=False):
                forms = {**dict(SYNTAX), **{form: text for _, _, form, text in FUNCTIONS.values()}}
                gr.HTML(facts(forms.items(), ours=forms.values(), names=True))
            name = gr.Textbox(
                label="Name",
                info="The word to use in prompts, and the file name.",
                placeholder="my-mix",
                max_lines=1,
                elem_id=PREFIX + "name",
            )
            about_name = gr.HTML(elem_id=PREFIX + "about_name")
            info = "Replace an existing embedding of this name. Its training is lost."
            overwrite = gr.Checkbox(
                label="Overwrite Old Embedding",
                info=info,
                value=False,
                visible=not page.is_public,
                elem_id=PREFIX + "overwrite",
            )
            save_button = gr.Button("Save", variant="primary", elem_id=PREFIX + "save")
            message = gr.HTML(elem_id=PREFIX + "message")
        with gr.Column(elem_classes=["ti-results"]):
            outcome = gr.HTML(elem_id=PREFIX + "outcome")
            info = "[name] stands for the result."
            prompt = gr.Textbox(label="Preview prompt", info=info, value=PROMPT, elem_id=PREFIX + "prompt")
            with gr.Row():
                negative = gr.Textbox(label="Preview negative prompt", max_lines=1, elem_id=PREFIX + "negative")
                seed = gr.Number(value=1, label="Seed", elem_id=PREFIX + "seed")
            preview_button = gr.Button("Preview", elem_id=PREFIX + "preview")
            images = gr.Gallery(show_label=False, columns=2, height=360, object_fit="contain", elem_id=PREFIX + "images")
    written = gr.State("")  # for each visitor: the expression that the form wrote last
    for each in (method, *chosen, *weights, position, expression, name, overwrite, prompt, negative, seed):
        unsaved(each)
    form = [method, position, *chosen, *weights]
    for each in form:
        listen(each.change, write, [expression, written, *form], [expression, written, note])
    listen(method.change, fitting_rows, [method], [position, *rows])
    for each in chosen:
        listen(each.focus, lambda: [gr.update(choices=names(page))] * ROWS, [], chosen)
    listen(expression.change, partial(check, page), [expression], [about])
    for each in (name, overwrite):
        listen(each.change, partial(check_name, page), [name, overwrite], [about_name])
    listen(
        preview_button.click,
        partial(preview, page),
        [expression, prompt, negative, seed],
        [outcome, images],
        queue=True,
        show_progress="minimal",
    )
    listen(save_button.click, partial(saved, page), [expression, name, overwrite], [message], show_progress="minimal")
    return chosen


def _form(page: Page) -> tuple[Any, list[Any], list[Any], list[Any], Any]:
    """The method, the embeddings, their weights, the rows that they are in, and the position between two."""
    method = gr.Dropdown(list(METHODS), value=next(iter(METHODS)), label="Method", elem_id=PREFIX + "method")
    chosen, weights, rows, listed = [], [], [], names(page)
    for number in range(1, ROWS + 1):
        with gr.Row(elem_classes=["ti-tight"]) as row:
            label = f"Embedding {number}"
            chosen.append(
                gr.Dropdown(listed, value=None, label=label, allow_custom_value=True, elem_id=f"{PREFIX}chosen_{number}")
            )
            weights.append(gr.Number(value=1, label="Weight", elem_id=f"{PREFIX}weight_{number}"))
        rows.append(row)
    position = gr.Slider(
        0,
        1,
        value=0.5,
        step=0.05,
        label="Position",
        info="0 is the first embedding, 1 the second.",
        visible=False,
        elem_id=PREFIX + "position",
    )
    return method, chosen, weights, rows, position


def fitting_rows(method: str) -> list[Any]:
    """Show the position for interpolation, and as many embeddings as the method takes."""
    shown = METHODS.get(method, (0, ROWS))[1]
    position = gr.update(visible=str(method).startswith("Interpolate"))
    return [position, *(gr.update(visible=number < shown) for number in range(ROWS))]


def write(expression: str, written: str, method: str, position: float, *rows: Any) -> list[Any]:
    """The expression of the form and a message, unless the expression was edited by hand."""
    if (expression or "").strip() not in ("", written):
        return [gr.update(), written, notice("info", EDITED)]
    pairs = list(zip(rows[:ROWS], rows[ROWS:], strict=True))[: METHODS.get(method, (0, ROWS))[1]]  # the others are hidden
    chosen = [(name.strip(), 1.0 if weight is None else float(weight)) for name, weight in pairs if name and name.strip()]
    if not chosen:
        return ["", "", ""]
    if method not in METHODS:
        return [gr.update(), written, notice("error", f"Method: found {method}, expected one of {', '.join(METHODS)}.")]
    try:
        new = expression_of(method, chosen, float(position or 0))
    except ConfigError as error:
        return ["", "", notice("info", str(error))]
    unused = method == "Average" or method.startswith("Interpolate")
    note = f"{method} does not use the weights." if unused and any(weight != 1 for _, weight in chosen) else ""
    return [new, new, notice("info", note)]


def check(page: Page, expression: str) -> str:
    """What an expression gives, or what is wrong with it; an empty string for an empty one."""
    if not (expression or "").strip():
        return ""
    try:
        merged = merge(expression, Names(page.host.embeddings_dir), page.host.open_model)
        return about(page, merged)
    except (TITrainerError, OSError) as error:
        return wrong(error)


def about(page: Page, merged: Merged, *, opened: bool = False) -> str:
    """The vectors and their lengths; compared with the vocabulary's where the model is open already."""
    model = page.host.open_model() if opened or merged.uses_model else None
    warnings = "".join(notice("warning", each) for each in merged.warnings)
    return warnings + notice("good", merged.about) + facts(norms_of(merged.embedding, model))


def wrong(error: Exception) -> str:
    """An error in a box; of an expression, with the place below it."""
    hint = f'<pre class="ti-hint">{escape(error.hint)}</pre>' if isinstance(error, ExpressionError) else ""
    return refusal(error) + hint


def preview(page: Page, expression: str, prompt: str, negative: str, seed: float | None) -> Iterator[Sequence[Any]]:
    """Show the result's vectors, then an image without it and one with it."""
    try:
        request = GenerationRequest(prompt or "", negative or "", seed=checked_seed(seed))
        page.refuse_if_busy("generate images")
        with page.host.lock():
            model = page.host.open_model()
            merged = merge(expression or "", Names(page.host.embeddings_dir), lambda: model)
            html = about(page, merged, opened=True)
            yield html, []
            done: list[tuple[Any, str]] = []
            for label, image in with_and_without(page.host, model, merged.embedding, request):
                done.append((image, f"{label}, seed {request.seed}"))
                yield html, list(done)
    except (TITrainerError, OSError) as error:
        yield wrong(error), gr.update()


def checked_seed(seed: float | None) -> int:
    """The seed; ConfigError if it is no whole number or out of range."""
    number = whole(seed, "Seed")
    if not 0 <= number <= MAX_SEED:
        message = f"Seed: found {number}, expected a number from 0 to {MAX_SEED}."
        raise ConfigError(message)
    return number


def saved(page: Page, expression: str, name: str, overwrite: bool) -> str:
    """Save the result under its name; the message, also if it is refused."""
    warnings: list[str] = []
    host = page.host
    try:
        page.refuse_if_busy("save embeddings")
        with host.lock():
            merged = merge(expression or "", Names(host.embeddings_dir), host.open_model)
            path = save(host, merged, name or "", overwrite=page.overwrite(overwrite), warn=warnings.append)
            host.embeddings_changed()
    except (TITrainerError, OSError) as error:
        return wrong(error)
    box = notice("good", f"Saved {path.stem}: {merged.about} It can be trained further in the Train tab. The file: {path}")
    return box + "".join(notice("warning", each) for each in (*merged.warnings, *warnings))
