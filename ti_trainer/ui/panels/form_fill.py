"""Fill the Train form with what a run uses: after a reload the current run, on request an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ti_trainer.errors import ConfigError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.ui.form import starting_values
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import runs
from ti_trainer.ui.panels.train import TrainForm, trainable
from ti_trainer.ui.render import refusal


def panel(form: TrainForm) -> tuple[Any, Any]:
    """Add a hidden button, which javascript/ti_trainer_strip.js clicks once, when the page was loaded; it and its event."""
    with gr.Row(elem_classes=["ti-hidden"]):
        done = unsaved(gr.Textbox(value="", elem_id="ti_trainer_filled"))
        button = unsaved(gr.Button("Fill the form", elem_id="ti_trainer_fill"))
    outputs = [done, form.name, form.images, *form.form.widgets.values()]
    return button, listen(button.click, partial(_loaded, form, done), {form.name, form.images}, outputs)


def wire_runs(form: TrainForm, panel: runs.Runs, js: str) -> Any:
    """Connect the Runs panel's button Again with changes; returns the event of filling the form."""
    outputs = [form.message, panel.message, form.name, form.images, *form.form.widgets.values()]

    def use(label: str) -> dict[Any, Any]:
        try:
            return {form.message: "", panel.message: "", **of_run(form, label)}
        except (TITrainerError, OSError) as error:
            return {panel.message: refusal(error)}

    used = listen(panel.use_settings.click, use, [panel.chosen], outputs)
    listen(panel.use_settings.click, None, js=js)
    return used


def of_run(form: TrainForm, label: str) -> dict[Any, Any]:
    """Updates of the form for an earlier run; ConfigError if its settings cannot be used."""
    run = runs.find(form.page, label)
    settings = run.settings()
    if not isinstance(settings.get("name"), str) or not isinstance(settings.get("images"), str):
        message = f"The settings of {run.id} are damaged or missing: choose another run."
        raise ConfigError(message)
    return filled(form, settings["name"], settings["images"], run.options())


def filled(form: TrainForm, name: str, images: str | Path, options: Mapping[str, Any]) -> dict[Any, Any]:
    """Updates of the form's fields; options that are not given get their initial values."""
    values = {**starting_values(form.page.host, None), **options}
    return {
        form.name: gr.update(choices=trainable(form.page), value=name),
        form.images: gr.update(value=str(images)),
        **{widget: gr.update(value=values[each]) for each, widget in form.form.widgets.items()},
    }


def _loaded(form: TrainForm, done: Any, entered: Mapping[Any, Any]) -> dict[Any, Any]:
    """What a page shows first: the settings of the current run, or else the newest embedding."""
    session, start = form.page.job.session, form.page.prefilled
    untouched = (entered[form.name] or "", entered[form.images]) == ((start.name, str(start.images)) if start else ("", ""))
    if untouched and session is not None and session.generated is None:
        return {done: "run", **filled(form, session.name, session.images, session.config.to_dict())}
    newest = newest_embedding(form.page)
    if untouched and start is None and newest:
        return {done: "embedding", form.name: gr.update(choices=trainable(form.page), value=newest)}
    return {done: "nothing"}


def newest_embedding(page: Page) -> str | None:
    """The embedding whose file was changed last; None if there is none to train."""
    changed: dict[str, float] = {}
    for name in trainable(page):
        file = embeddings_dir.find(page.host.embeddings_dir, name)
        try:
            changed[name] = file.stat().st_mtime if file else 0.0
        except OSError:  # deleted just now
            continue
    return max(changed, key=changed.__getitem__, default=None)
