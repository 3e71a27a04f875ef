"""Presets on the Train panel: take one, with a word on when it is right, or keep what the form holds under a name."""

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
    """The widgets."""

    preset: Any
    about: Any
    name: Any = None
    save: Any = None


def put(page: Page) -> Row:
    """The list of presets."""
    preset = gr.Dropdown(
        names(page),
        value=NOTHING,
        label="Preset",
        info="Options as the guides advise for a person, a style or an object, for DreamArtist with a single image, or "
        "those that you saved. All other options go back to their defaults.",
        elem_id="ti_trainer_preset",
    )
    return Row(unsaved(preset), gr.HTML(elem_id="ti_trainer_preset_about"))


def put_save(row: Row) -> None:
    """The means to add to it."""
    with gr.Accordion("Save as preset", open=False), gr.Row(elem_classes=["ti-tight"]):
        row.name = unsaved(gr.Textbox(label="Name", max_lines=1, elem_id="ti_trainer_preset_name"))
        row.save = gr.Button("Save options", elem_id="ti_trainer_preset_save")


def names(page: Page) -> list[str]:
    """What can be chosen."""
    return [NOTHING, *presets.BUILT_IN, *presets.saved(page.presets_dir)]


def wire(page: Page, row: Row, form: Form) -> None:
    """Wire it, when the whole form is there."""
    widgets = form.widgets

    def take(name: str) -> list[Any]:
        """Options that the preset does not name go back to how they are at first."""
        if not name:
            return ["", *(gr.update() for _ in widgets)]
        try:
            found = presets.load(page.presets_dir, name)
        except ConfigError as error:
            return [notice("error", str(error)), *(gr.update() for _ in widgets)]
        values = {**starting_values(page.host, None), **found.values}
        return [notice("info", found.about), *(gr.update(value=values[each]) for each in widgets)]

    def keep(name: str, *given: Any) -> list[Any]:
        try:
            presets.save(page.presets_dir, (name or "").strip(), form.config(dict(zip(widgets, given, strict=True))))
        except (ConfigError, OSError) as error:
            return [notice("error", str(error)), gr.update()]
        return [notice("good", f"Saved as {name.strip()}."), gr.update(choices=names(page))]

    listen(row.preset.change, take, [row.preset], [row.about, *widgets.values()])
    listen(row.save.click, keep, [row.name, *widgets.values()], [row.about, row.preset])
