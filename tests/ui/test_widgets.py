from __future__ import annotations

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import gradio as gr

from ti_trainer.config.training import options
from ti_trainer.errors import ConfigError
from ti_trainer.ui import gradio_compat
from ti_trainer.ui.form import typed
from ti_trainer.ui.widgets import error_update, whole, widget

OPTIONS = {each.name: each for each in options()}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_widget(name: str) -> None:
    option = OPTIONS[name]
    with gr.Blocks():
        component, error = widget(option)
    assert component.value == option.default
    assert (component.label, component.info, component.elem_id) == (option.label, option.help, f"ti_trainer_train_{name}")
    assert component.do_not_save_to_config
    assert not error.visible


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("max_steps", "Number"),
        ("preview_cfg_scale", "Number"),
        ("learning_rate", "Textbox"),
        ("save_cards", "Checkbox"),
        ("clip_grad", "Radio"),
        ("precision", "Dropdown"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    with gr.Blocks():
        assert type(widget(OPTIONS[name])[0]).__name__ == kind


@pytest.mark.parametrize(
    ("name", "entered"), [("max_steps", 5), ("seed", 2**32 - 1), ("tag_dropout", 0.5), ("precision", "bf16")]
)
def test_what_a_widget_hands_over_is_what_the_option_takes(name: str, entered: object) -> None:
    with gr.Blocks():
        component, _ = widget(OPTIONS[name])
    value = component.preprocess(entered)
    assert value == entered
    OPTIONS[name].check(typed({name: value})[name])


def test_a_list_for_a_text_takes_other_values_too() -> None:
    with gr.Blocks():
        component, _ = widget(OPTIONS["template"], "C:\\a\\ü.txt", choices=["subject", "style"], elem_prefix="other_")
    assert component.value == "C:\\a\\ü.txt"
    assert component.allow_custom_value
    assert component.elem_id == "other_template"


def test_an_error_comes_and_goes() -> None:
    shown, gone = error_update("found <b>"), error_update(None)
    assert "found &lt;b&gt;" in shown["value"]
    assert (shown["visible"], gone["visible"], gone["value"]) == (True, False, "")


def test_an_empty_number_is_called_nothing() -> None:
    with pytest.raises(ConfigError, match="found nothing"):
        OPTIONS["max_steps"].check(None)


def test_a_fraction_is_refused_where_a_whole_number_is_expected() -> None:
    option = OPTIONS["max_steps"]
    with gr.Blocks():
        component, _ = widget(option)
    with pytest.raises(ConfigError, match=r"found 1\.5, expected a whole number"):
        option.check(component.preprocess(1.5))


def test_a_number_of_no_option_is_whole_too() -> None:
    assert [whole(each, "Seed", 7) for each in (3, 3.0, 0, None)] == [3, 3, 7, 7]
    for wrong in (1.5, float("nan"), float("inf"), "3"):
        with pytest.raises(ConfigError, match=r"^Seed: found .*, expected a whole number"):
            whole(wrong, "Seed")


def test_names_that_are_not_utf8_reach_the_page_with_escapes() -> None:
    with gr.Blocks():
        html, state = gr.HTML(), gr.State()
    name = "\udc93 caf\u00e9.png"
    shown = "\\udc93 caf\u00e9.png"
    assert gradio_compat.sendable(name, [html]) == shown
    assert gradio_compat.sendable([gr.update(choices=[(name, 1)]), name], [html, state]) == [
        gr.update(choices=[(shown, 1)]),
        name,
    ]
    assert gradio_compat.sendable({html: name, state: [name]}, [html, state]) == {html: shown, state: [name]}
