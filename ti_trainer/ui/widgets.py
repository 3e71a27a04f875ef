"""An option as a widget with room for its error below. Knows no panel: what options there are, others say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ti_trainer.config.options import Option
from ti_trainer.ui.gradio_compat import unsaved
from ti_trainer.ui.render import field_error

FEW = 3  # choices that fit into a line as buttons


def widget(
    option: Option, value: Any = None, *, choices: Sequence[str] | None = None, elem_prefix: str = "ti_trainer_train_"
) -> tuple[gr.blocks.Block, gr.HTML]:
    """Put the option where the caller stands, in a column of its own; (component, place of its error).

    `choices` makes a list of a text option, in which other values may be typed too. An emptied Number is None: let
    `Option.check` refuse it. Bounds are left to it as well, since gradio shows its own refusal far from the widget.
    """
    value = option.default if value is None else value
    common = {"label": option.label, "info": option.help, "elem_id": elem_prefix + option.name, "interactive": True}
    with gr.Column(min_width=160, elem_classes=["ti-field"]):
        if option.choices and len(option.choices) <= FEW:
            component = gr.Radio(list(option.choices), value=value, **common)
        elif option.choices:
            component = gr.Dropdown(list(option.choices), value=value, **common)
        elif choices is not None:
            component = gr.Dropdown(list(choices), value=value, allow_custom_value=True, **common)
        elif option.type is bool:
            component = gr.Checkbox(value=value, **common)
        elif option.type is int:
            component = gr.Number(value=value, precision=0, **common)
        elif option.type is float:
            component = gr.Number(value=value, **common)
        else:
            component = gr.Textbox(value=value, max_lines=1, **common)
        return unsaved(component), error_slot()


def error_slot() -> gr.HTML:
    """Room for an error; takes none until there is one. To be updated by `error_update`."""
    return unsaved(gr.HTML(visible=False, elem_classes=["ti-error-slot"]))


def error_update(message: str | None) -> dict[str, Any]:
    """Show the message in an error's place, or take it away."""
    return gr.update(value=field_error(message), visible=bool(message))
