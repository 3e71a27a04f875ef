"""Make a widget for an option, with room for an error message below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ti_trainer.config.options import KINDS, Option
from ti_trainer.errors import ConfigError
from ti_trainer.ui.gradio_compat import unsaved
from ti_trainer.ui.render import field_error

MAX_RADIO_CHOICES = 3  # as many as fit into one line


def widget(
    option: Option, value: Any = None, *, choices: Sequence[str] | None = None, elem_prefix: str = "ti_trainer_train_"
) -> tuple[gr.blocks.Block, gr.HTML]:
    """Add the option's widget to the current layout block, in a column of its own; returns (component, error slot).

    `choices` turns a text option into a dropdown that also accepts other values. An empty Number is None, which
    `Option.check` refuses. Bounds are left to it too, since gradio shows its own error messages far from the widget.
    """
    value = option.default if value is None else value
    common = {"label": option.label, "info": option.help, "elem_id": elem_prefix + option.name, "interactive": True}
    with gr.Column(min_width=160, elem_classes=["ti-field"]):
        if option.choices and len(option.choices) <= MAX_RADIO_CHOICES:
            component = gr.Radio(list(option.choices), value=value, **common)
        elif option.choices:
            component = gr.Dropdown(list(option.choices), value=value, **common)
        elif choices is not None:
            component = gr.Dropdown(list(choices), value=value, allow_custom_value=True, **common)
        elif option.type is bool:
            component = gr.Checkbox(value=value, **common)
        elif option.type in (int, float):
            component = gr.Number(value=value, **common)  # `precision=0` would round what was entered
        else:
            component = gr.Textbox(value=value, max_lines=option.lines, **common)
        return unsaved(component), error_slot()


def whole(value: float | None, label: str, empty: int = 0) -> int:
    """The whole number that was entered, `empty` for nothing or 0; ConfigError for a fraction, which int() would cut off."""
    value = value or empty
    if not isinstance(value, int | float) or value % 1 != 0:
        message = f"{label}: found {value!r}, expected {KINDS[int]}."
        raise ConfigError(message)
    return int(value)


def error_slot() -> gr.HTML:
    """Add an invisible place for an error message, to be updated with `error_update`."""
    return unsaved(gr.HTML(visible=False, elem_classes=["ti-error-slot"]))


def error_update(message: str | None) -> dict[str, Any]:
    """Show the message in an error slot, or hide the slot."""
    return gr.update(value=field_error(message), visible=bool(message))
