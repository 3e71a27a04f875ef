"""Presets on the Train panel: apply one, which shows what it is for, or save the form's options as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from ti_trainer.config import presets
from ti_trainer.errors import ConfigError
from ti_trainer.ui.form import Form, starting_values
from ti_trainer.ui.gradio_compat import listen, unsaved
from ti_trainer.ui.page import Page
from ti_trainer.ui.render import notice

NOTHING = ""


@dataclass
class Row:
    """The row's widgets."""

    preset: Any
    about: Any
    name: Any = None
    save: Any = None


def put(page: Page) -> Row:
    """Add the list of presets."""
    with gr.Column(min_width=160, elem_classes=["ti-field"]):
        preset = gr.Dropdown(
            names(page),
            value=NOTHING,
            label="Preset",
            info="Recommended options for a person, a style or an object, for DreamArtist with a single image, or options "
            "that you saved. All other options are reset to their defaults.",
            elem_id="ti_trainer_preset",
        )
    about = gr.HTML(elem_id="ti_trainer_preset_about", elem_classes=["ti-whole"])
    return Row(unsaved(preset), about)


def put_save(row: Row) -> None:
    """Add the controls that save a preset."""
    with gr.Accordion("Save as preset", open=False), gr.Row(elem_classes=["ti-tight"]):
        row.name = unsaved(gr.Textbox(label="Name", max_lines=1, elem_id="ti_trainer_preset_name"))
        row.save = gr.Button("Save options", elem_id="ti_trainer_preset_save")


def names(page: Page) -> list[str]:
    """The presets to choose from."""
    return [NOTHING, *presets.BUILT_IN, *presets.saved(page.presets_dir)]


def wire(page: Page, row: Row, form: Form) -> None:
    """Connect the row to the form, once the form is complete."""
    widgets = form.widgets

    def apply(name: str) -> list[Any]:
        """Options that the preset does not name get their initial values."""
        if not name:
            return ["", *(gr.update() for _ in widgets)]
        try:
            found = presets.load(page.presets_dir, name)
        except ConfigError as error:
            return [notice("error", str(error)), *(gr.update() for _ in widgets)]
        values = {**starting_values(page.host, None), **found.values}
        return [notice("info", found.about), *(gr.update(value=values[each]) for each in widgets)]

    def save(values: dict[Any, Any]) -> dict[Any, Any]:
        name = (values[row.name] or "").strip()
        try:
            page.overwrite(name in presets.saved(page.presets_dir))
            presets.save(page.presets_dir, name, form.config({each: values[widget] for each, widget in widgets.items()}))
        except (ConfigError, OSError) as error:
            return {row.about: notice("error", str(error))}
        return {row.about: notice("good", f"Saved as {name}."), row.preset: gr.update(choices=names(page))}

    listen(row.preset.change, apply, [row.preset], [row.about, *widgets.values()])
    listen(row.save.click, save, {row.name, *widgets.values()}, [row.about, row.preset])
