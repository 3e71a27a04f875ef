"""The form of the panel Train: it shows what config.py says, over it what the host says, and hands the same back."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import gradio as gr
from fakes import TinyHost

from ti_trainer.config.training import TrainConfig, options
from ti_trainer.errors import ConfigError
from ti_trainer.runs.job import Job
from ti_trainer.ui.form import typed
from ti_trainer.ui.page import Page, Prefilled
from ti_trainer.ui.panels import preprocess, train

DEFAULTS = TrainConfig().to_dict()
OF_THE_HOST = {
    "max_steps": 77,
    "learning_rate": "0.01:10, 0.002",
    "save_cards": False,
    "latent_sampling": "random",
    "precision": "fp16",
    "preview_cfg_scale": 7.5,
    "clip_skip": 2,
}


def panel(host: TinyHost, prefilled: Prefilled | None = None) -> train.TrainForm:
    with gr.Blocks():
        return train.panel(Page(host, Job(), prefilled))


def shown(form: train.TrainForm) -> dict[str, object]:
    """What the widgets hold when the page opens."""
    return {name: widget.value for name, widget in form.form.widgets.items()}


def handed_over(form: train.TrainForm) -> TrainConfig:
    """The options of a run that is begun without touching anything, by the way that gradio's values take."""
    values = {widget: widget.preprocess(widget.value) for widget in form.form.widgets.values()}
    return form.form.config(form.read({form.name: None, form.images: "", **values})[2])


def test_without_settings_of_the_host_each_option_is_shown_once_at_its_default(tmp_path: Path) -> None:
    form = panel(TinyHost(tmp_path))
    assert shown(form) == DEFAULTS
    taken = typed(shown(form))  # gradio 3's numbers are floats
    assert {name: type(value) for name, value in taken.items()} == {name: type(value) for name, value in DEFAULTS.items()}
    assert len(form.form.widgets) == len(list(options()))
    assert handed_over(form) == TrainConfig()


def test_what_the_host_has_as_defaults_is_shown_and_the_rest_stays(tmp_path: Path) -> None:
    form = panel(TinyHost(tmp_path, defaults=OF_THE_HOST))
    assert shown(form) == {**DEFAULTS, **OF_THE_HOST}
    assert handed_over(form) == TrainConfig(**OF_THE_HOST)


def test_what_the_host_decides_is_not_offered_and_counts(tmp_path: Path) -> None:
    fixed = frozenset({"precision", "clip_skip", "seed"})
    form = panel(TinyHost(tmp_path, defaults=OF_THE_HOST, fixed=fixed))
    expected = {**DEFAULTS, **OF_THE_HOST}
    assert shown(form) == {name: value for name, value in expected.items() if name not in fixed}
    assert handed_over(form) == TrainConfig(**OF_THE_HOST)
    assert len(form.slots) == len(form.form.widgets) + 2


def test_samplers_are_offered_where_there_are_some(tmp_path: Path) -> None:
    assert "preview_sampler" not in panel(TinyHost(tmp_path, samplers=())).form.widgets
    found = panel(TinyHost(tmp_path)).form.widgets["preview_sampler"].choices
    assert [each[0] if isinstance(each, tuple) else each for each in found] == ["", "Euler", "DDIM"]


def test_a_demonstration_goes_over_the_hosts_settings_where_it_says_something(tmp_path: Path) -> None:
    wanted = TrainConfig(max_steps=400, batch_size=4)
    form = panel(TinyHost(tmp_path, defaults=OF_THE_HOST), Prefilled("my-thing", "star", tmp_path, wanted))
    assert shown(form) == {**DEFAULTS, **OF_THE_HOST, "max_steps": 400, "batch_size": 4}
    assert (form.name.value, form.images.value) == ("my-thing", str(tmp_path))


@pytest.mark.parametrize(("known", "shown"), [(0, 512), (8, 64)])
def test_preprocessing_begins_at_the_size_of_the_model_where_it_is_known(tmp_path: Path, known: int, shown: int) -> None:
    with gr.Blocks():
        widgets = preprocess.panel(Page(TinyHost(tmp_path), Job(), size_px=known)).widgets
    assert (widgets["width"].value, widgets["height"].value) == (shown, shown)


def test_numbers_come_back_as_the_options_have_them(tmp_path: Path) -> None:
    form = panel(TinyHost(tmp_path))
    values = {**DEFAULTS, "max_steps": 30.0, "tag_dropout": 0.5, "preview_sampler": None}
    config = form.form.config(values)
    assert (config.max_steps, type(config.max_steps), config.tag_dropout) == (30, int, 0.5)
    assert config.preview_sampler == ""
    for name, value in (("max_steps", 30.5), ("max_steps", None), ("seed", -1), ("learning_rate", None)):
        with pytest.raises(ConfigError) as refused:
            form.form.config({**DEFAULTS, name: value})
        assert refused.value.option == name


def test_trials_are_shown_handed_over_and_refused_beside_their_entry(tmp_path: Path) -> None:
    form = panel(TinyHost(tmp_path))
    entered = {
        "trials": 3.0,
        "trial_learning_rates": "0.005; 0.01:5, 0.002",
        "trial_init_texts": "cat; a kitten, red",
        "trial_vectors": "",
    }
    assert entered.keys() <= form.form.widgets.keys()
    config = form.form.config({**DEFAULTS, **entered})
    assert (config.trials, config.trial_init_texts) == (3, "cat; a kitten, red")
    wrong = form.wrong("x-word", tmp_path, {**DEFAULTS, **entered, "trials": 1, "trial_vectors": "none"})
    assert {"trial_learning_rates", "trial_init_texts", "trial_vectors"} <= wrong.keys()
    below = form.in_accordions({name: wrong[name] for name in ("trial_vectors",)})
    assert below[0].startswith("All options, Trials: trial_vectors: found 'none'")
