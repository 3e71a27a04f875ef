"""What the Train panel offers when a run has ended and when it refuses to start one, without a browser."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import gradio as gr
from fakes import TinyHost, TinyModel
from PIL import Image

from ti_trainer.config.preprocessing import PreprocessConfig
from ti_trainer.config.training import TrainConfig
from ti_trainer.errors import ConfigError
from ti_trainer.formats import embeddings_dir
from ti_trainer.preprocess.runner import Preprocessing
from ti_trainer.runs.job import Job
from ti_trainer.runs.retrain import about_longer, longer, reset
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import form_fill, quick_train, run_actions, runs, status_strip, train, train_refusals, train_result
from ti_trainer.ui.panels.shared_folder import SharedFolder

STEPS = 4


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """With the embedding x-word and two images."""
    host = TinyHost(tmp_path, TinyModel(), defaults={"stop_when_done": False, "preview_every": 0})
    embeddings_dir.create(host.embeddings_dir, host.model, "x-word", "red cat", 2)
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (16, 16), (90 * number, 90, 90)).save(tmp_path / "images" / f"{number}.png")
    return Page(host, Job())


@pytest.fixture
def form(page: Page) -> train.TrainForm:
    with gr.Blocks():
        return train.panel(page)


def press(form: train.TrainForm, prepare: train_refusals.Prepare | None = None, **entered: Any) -> str:
    """Press Train, or a way out, and wait for the end of the run; returns the message."""
    values = {form.name: "x-word", form.images: str(form.page.host.embeddings_dir.parent / "images")}
    values |= {widget: widget.value for widget in form.form.widgets.values()}
    values |= {form.form.widgets[name]: value for name, value in {"max_steps": STEPS, **entered}.items()}
    shown = train.start(form, values, prepare)
    form.page.job.wait(60)
    return shown[form.message]


def trained_to(page: Page, name: str = "x-word") -> int:
    return embeddings_dir.load(page.host.embeddings_dir, name)[0].step


def ways(html: str) -> dict[str, str]:
    return {label: where for where, label in re.findall(r'data-ti-(\w+="[^"]*")>([^<]*)</button>', html)}


def test_a_second_press_is_no_dead_end(page: Page, form: train.TrainForm) -> None:
    assert not ways(press(form))
    offered = ways(press(form))
    assert list(offered) == [f"Train {STEPS} more steps", "Start over", "New embedding"]
    assert trained_to(page) == STEPS
    pressed = {elem_id: handler for button, handler in form.ways.items() if (elem_id := button.elem_id)}
    for label, step in ((f"Train {STEPS} more steps", 2 * STEPS), ("Start over", STEPS)):
        elem_id = offered[label].partition('"')[2].rstrip('"')
        assert not ways(press(form, pressed[elem_id]))
        assert (page.job.snapshot().status, trained_to(page)) == ("done", step)
    (copy,) = (page.host.log_dir / "replaced").iterdir()
    assert copy.name == "x-word.safetensors", "what was started over is kept"


def test_refusals_lead_to_what_is_missing(page: Page, form: train.TrainForm) -> None:
    values = {widget: widget.value for widget in form.form.widgets.values()}
    shown = train.start(form, {**values, form.name: "", form.images: ""})[form.message]
    assert ways(shown) == {"New embedding": 'show="Create embedding"', "Prepare images": 'show="Preprocess"'}
    offered = ways(press(form, negative=True))
    assert list(offered) == ["Create the negative embedding and train"]
    assert not ways(press(form, train_refusals.create_negative, negative=True))
    assert (page.job.snapshot().status, trained_to(page, "x-word-neg")) == ("done", STEPS)


def test_a_run_that_has_ended_is_continued_and_started_over(page: Page, form: train.TrainForm) -> None:
    press(form)
    run = page.job.snapshot().run
    shown = train_result.parts_of(page.job.snapshot())
    assert shown["ended"][1]()["visible"]
    assert shown["more"][1]()["value"] == f"Train {STEPS} more steps"
    result = shown["result"][1]()
    file = page.host.embeddings_dir / "x-word.safetensors"
    assert str(file.absolute()) in result
    assert '<a download="x-word.safetensors" href="data:' in result
    assert train_result.train_more(page) == f"Training continues to step {2 * STEPS} without early stopping."
    page.job.wait(60)
    now = page.job.snapshot()
    assert (now.status, now.step, now.run) == ("done", 2 * STEPS, run), "the same run, with as many steps again"
    said = train_result.start_over(page)
    page.job.wait(60)
    (copy,) = (page.host.log_dir / "replaced").iterdir()
    assert str(copy) in said
    now = page.job.snapshot()
    assert (now.status, trained_to(page)) == ("done", 2 * STEPS)
    assert now.run != run
    shown = runs.details(page, runs.label_of(now.run), [runs.label_of(run)]).losses
    assert f">{run.id}</text>" in shown, "the losses of both runs"
    assert "ti-other1" in shown
    chosen, compared, _ = runs.opened(page, None)
    assert chosen["value"] == runs.label_of(now.run), "the newest"
    assert set(compared["choices"]) >= {runs.label_of(now.run), runs.label_of(run)}
    assert "value" not in runs.opened(page, runs.label_of(run))[0]


def test_the_form_holds_what_a_run_uses(page: Page, form: train.TrainForm) -> None:
    done, widgets = object(), form.form.widgets
    fresh = form_fill._loaded(form, done, {form.name: None, form.images: ""})
    assert (fresh[form.name]["value"], len(fresh)) == ("x-word", 2), "the newest embedding"
    press(form, learning_rate="0.005:2, 0.001", preview_cfg_scale=7)
    embeddings_dir.create(page.host.embeddings_dir, page.host.model, "y-word", "cat", 1)
    reloaded = form_fill._loaded(form, done, {form.name: None, form.images: ""})
    chosen = form_fill.of_run(form, runs.label_of(page.job.snapshot().run))
    for updates in (reloaded, chosen):
        assert updates[form.name]["value"] == "x-word"
        assert updates[form.images]["value"] == str(page.host.embeddings_dir.parent / "images")
        found = {name: updates[widgets[name]]["value"] for name in ("max_steps", "learning_rate", "preview_cfg_scale")}
        assert found == {"max_steps": STEPS, "learning_rate": "0.005:2, 0.001", "preview_cfg_scale": 7}
    in_use = form_fill._loaded(form, done, {form.name: "y-word", form.images: ""})
    assert list(in_use) == [done], "a form in use is left alone"


def test_a_run_is_continued_now_or_later_or_the_refusal_leads_on(page: Page, form: train.TrainForm) -> None:
    assert ways(run_actions.continued_message(page, "", 0, False)) == {"Train": 'show="Train"'}
    press(form)
    run = page.job.snapshot().run
    label = runs.label_of(run)
    refused = run_actions.continued_message(page, label, 0, False)
    assert f'data-ti-value="more">Train {STEPS} more steps</button>' in refused
    page.job._now = replace(page.job._now, status="training")
    assert list(ways(run_actions.continued_message(page, label, 0, False))) == ["Stop it"], "it is this run"
    page.job._now = replace(page.job._now, run=None)
    refused = run_actions.continued_message(page, label, 2 * STEPS, False, ["more"])
    assert 'data-ti-value="more queue">Add to queue</button>' in refused
    assert "Stop it" in ways(refused)
    assert "number 1" in run_actions.continued_message(page, label, 0, False, ["more", "queue"])
    page.queue.hold()
    (entry,) = page.queue.snapshot().entries
    assert (entry.resume, entry.max_steps) == (run.id, 2 * STEPS)
    page.job._now = replace(page.job._now, status="done")
    embeddings_dir.create(page.host.embeddings_dir, page.host.model, "x-word", "red cat", 2, overwrite=True)
    refused = run_actions.continued_message(page, label, 2 * STEPS, False)
    assert 'data-ti-value="over">Continue and keep a copy of the file</button>' in refused
    assert "Continuing x-word" in run_actions.continued_message(page, label, 2 * STEPS, True, ["over"])
    page.job.wait(60)
    assert (trained_to(page), run.step) == (2 * STEPS, 2 * STEPS)
    assert "Replace the existing embedding" in run_actions.promote_copy(page, label, str(2 * STEPS), "x-word", False)


def test_the_negative_embedding_is_created_in_place(page: Page) -> None:
    assert train_refusals.about_negative(page, "x-word", False) == train_refusals.about_negative(page, "", True) == ""
    assert ways(train_refusals.about_negative(page, "x-word", True)) == {
        "Create the negative": f'press="{train_refusals.MAKE_NEGATIVE}"'
    }
    assert train_refusals._create_negative(page, "x-word") == "x-word-neg was created with 6 vectors."
    assert train_refusals.about_negative(page, "x-word", True) == ""


def test_the_preparation_of_a_quick_training_is_shown_and_stopped(page: Page) -> None:
    now = page.job.snapshot()
    assert not status_strip.parts_of(page, now)["stop"][1]()["visible"]
    page.quick._preparing = True
    parts = status_strip.parts_of(page, now)
    assert "Preparing the images" in parts["bar"][1]()
    assert parts["stop"][1]()["interactive"]
    status_strip._stop(page)
    assert page.quick._stop.is_set()


def test_a_folder_is_filled_in_where_users_typed_no_other(page: Page, tmp_path: Path) -> None:
    with gr.Blocks():
        quick, source = quick_train.panel(page), gr.Textbox()
        fields = [gr.Textbox() for _ in range(3)]
        shared = SharedFolder(page, source, fields, quick)
        shared.wire()
    folder, other = tmp_path / "images", tmp_path / "other"
    shutil.copytree(folder, other)
    values = {fields[0]: str(folder), fields[1]: "", fields[2]: "mine", source: "", quick.folder: "", shared.last: ""}
    values[quick.files] = None

    def entered(field: object, text: str) -> list[object]:
        values[field] = text
        values.update({each: value for each, value in shared.shared(values, text).items() if isinstance(value, str)})
        return [values[each] for each in (*fields, source, quick.folder)]

    first, second = str(folder), str(other)
    assert entered(fields[0], first) == [first, first, "mine", first, first]
    assert "2 images" in values[quick.about_images]
    assert entered(fields[1], second) == [second, second, "mine", first, first], "where it was filled in, it is replaced"
    assert entered(fields[1], str(tmp_path / "nowhere"))[0] == second
    assert entered(fields[2], first)[:3] == [first, str(tmp_path / "nowhere"), first], "what users typed stays"
    made = tmp_path / "made"  # by a preprocessing that ended before the page asked
    page.preprocessing.update(status="done", work=Preprocessing(folder, made, PreprocessConfig()))
    assert shared.started(values, f'"{made}"')[fields[0]] == str(made)
    assert fields[0] not in shared.started(values, first), "another start was refused"
    assert fields[0] not in shared.started(values, "\0")


@pytest.mark.parametrize(
    ("rate", "after"),
    [("0.005", "0.005"), ("0.005:2, 1e-3:4", "0.001"), ("0.005:2, 1e-3", "0.005:2, 1e-3"), ("auto", "auto")],
)
def test_a_longer_run_keeps_its_last_learning_rate(rate: str, after: str) -> None:
    config = TrainConfig(max_steps=4, learning_rate=rate)
    made = longer(config, 4, 6)
    assert ("learning rate" in about_longer(config, made)) is (rate != after)
    assert (made.learning_rate, made.last_step, made.stop_when_done) == (after, 10, False)


def test_an_embedding_without_its_text_is_not_reset(page: Page) -> None:
    host = page.host
    embedding, file = embeddings_dir.load(host.embeddings_dir, "x-word")
    embedding.info.pop("init_text")
    embeddings_dir.save(embedding, file)
    with pytest.raises(ConfigError, match="x-word"):
        reset(host, "x-word", negative=False)
    assert not host.log_dir.exists()
