"""The queue on the page: what its buttons do and what is shown, without a browser; and one story in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import gradio as gr
from browser import launch
from test_page import Served, choose, entry, filled_in, served, show, status, until  # noqa: F401, the fixture
from test_ways_out import form, page, press, ways  # noqa: F401, fixtures

from ti_trainer.formats import embeddings_dir
from ti_trainer.host import ModelReference
from ti_trainer.runs import queue as queue_module
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.queue_entry import Entry
from ti_trainer.runs.queue_file import FILE
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import from_prompt, queue, status_strip, train, train_refusals


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "POLL_S", 0.01)


def shown(page: Page) -> dict[str, object]:  # noqa: F811
    return {name: update() for name, (_, update) in queue.parts_of(page, page.job.snapshot()).items()}


def add(
    form: train.TrainForm,  # noqa: F811
    name: str = "x-word",
    prepare: train_refusals.Prepare | None = None,
    **entered: object,
) -> str:
    values = {form.name: name, form.images: str(form.page.host.embeddings_dir.parent / "images")}
    values |= {widget: widget.value for widget in form.form.widgets.values()}
    values |= {form.form.widgets[name]: value for name, value in {"max_steps": 4, **entered}.items()}
    return train.start(form, values, prepare, queued=True)[form.message]


def over(page: Page) -> None:  # noqa: F811
    until(lambda: not page.queue.snapshot().going and page.queue._thread is None)


def test_runs_are_added_and_nothing_is_trained_until_the_queue_is_started(page: Page, form: train.TrainForm) -> None:  # noqa: F811
    assert shown(page)["queue"] == ""
    assert "number 1. Press “Start the queue”" in add(form)
    embeddings_dir.create(page.host.embeddings_dir, page.host.model, "y-word", "cat", 1)
    assert "number 2. Nothing in the queue is trained until" in add(form, "y-word")
    assert "2 waiting in the queue" in status_strip.parts_of(page, page.job.snapshot())["bar"][0]
    now = shown(page)
    assert now["queue_start"]["visible"]
    assert not now["queue_hold"]["visible"]
    assert re.findall(r"<b [^>]*>(.*?)</b>", now["queue"]) == ["x-word", "y-word"]
    queue._do(page, f"down {page.queue.snapshot().entries[0].id} 17")
    assert re.findall(r"<b [^>]*>(.*?)</b>", shown(page)["queue"]) == ["y-word", "x-word"]
    page.queue.start()
    over(page)
    assert [run.settings()["name"] for run in reversed(Run.all(page.host.log_dir))] == ["y-word", "x-word"]
    assert shown(page)["queue"] == ""


def test_a_press_during_a_run_offers_the_queue(
    page: Page,  # noqa: F811
    form: train.TrainForm,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    press(form)
    page.job._now = replace(page.job._now, status="training")
    offered = ways(press(form))
    assert offered == {"Add to queue": f'press="{train_refusals.ADD}"', "Stop it": 'press="ti_trainer_stop"'}
    offered = ways(press(form, train_refusals.train_more))
    assert offered["Add to queue"] == f'press="{train_refusals.ADD_MORE}"'
    assert list(ways(press(form, train_refusals.start_over))) == ["Stop it"]
    assert list(ways(add(form))) == ["Add 4 more steps to the queue", "New embedding"], "it is trained to that step already"
    assert "The next run starts when x-word has ended." in add(form, prepare=train_refusals.train_more)
    assert page.queue.snapshot().going
    assert "1 more in the queue" in status_strip.parts_of(page, page.job.snapshot())["bar"][0]
    assert shown(page)["queue_hold"]["visible"]
    page.queue.hold()
    page.job._now = replace(page.job._now, status="done")
    (entry,) = page.queue.snapshot().entries
    assert (entry.max_steps, entry.train["stop_when_done"]) == (8, False)


def test_another_program_trains_the_queue(page: Page) -> None:  # noqa: F811
    page.queue.file.change(lambda _: [Entry("a1", "y-word", "/images", {}, "running"), Entry("a2", "z-word", "/images", {})])
    now = shown(page)
    assert "the next run starts when y-word has ended" in now["queue"]
    assert (now["queue_start"]["visible"], now["queue_hold"]["visible"]) == (False, True)
    page.queue.hold()
    assert shown(page)["queue_start"]["value"] == queue.GO_ON
    assert page.queue.file.held


def test_an_embedding_learns_from_a_prompt_when_its_turn_comes(page: Page) -> None:  # noqa: F811
    with gr.Blocks():
        form = from_prompt.panel(page)

    def pressed(*wanted: str, **entered: object) -> str:
        values = {widget: widget.value for widget in (*form.form.widgets.values(), *form.fields.values())}
        texts = {"name": "y-scene", "teacher_prompt": "a big red cat on a sofa at night", **entered}
        values |= {form.fields[name]: value for name, value in texts.items()}
        return from_prompt.start(form, {**values, form.form.widgets["max_steps"]: 4}, wanted)[form.message]

    assert "Replace the existing embedding" in pressed("queue", name="x-word")
    page.job._now = replace(page.job._now, status="training", name="x-word")
    assert 'data-ti-value="queue">Add to queue' in pressed()
    assert "Added to the queue: y-scene, number 1." in pressed("queue")
    assert "from a prompt" in shown(page)["queue"]
    assert embeddings_dir.find(page.host.embeddings_dir, "y-scene") is None
    page.job._now = replace(page.job._now, status="done")
    over(page)
    assert page.queue.snapshot().entries == ()
    assert Run.all(page.host.log_dir)[0].step == 4
    assert embeddings_dir.load(page.host.embeddings_dir, "y-scene")[0].step == 4


def test_wrong_fields_are_shown_and_nothing_is_added(page: Page, form: train.TrainForm) -> None:  # noqa: F811
    assert "Fix the highlighted fields" in add(form, "gone")
    assert "Fix the highlighted fields" in add(form, learning_rate="fast")
    assert "no embedding &#x27;x-word-neg&#x27;" in add(form, negative=True)
    assert "neither [name] nor x-word" in add(form, preview_prompt="a cat")
    assert len(page.queue.snapshot().entries) == 1


@pytest.mark.parametrize("text", ["", "up", "up nobody", "drop x", "<b> 1", "remove ../../x 3"])
def test_requests_of_other_pages_are_answered_with_a_message(page: Page, text: str) -> None:  # noqa: F811
    said = queue._attempt(lambda: queue._do(page, text))
    assert bool(said) is bool(text)
    assert "<b> 1" not in said


def test_what_users_have_entered_is_escaped(page: Page) -> None:  # noqa: F811
    hostile = Entry("a1", "<script>", "/images/<img src=x>", {"max_steps": "<b>"}, "failed", "<i>no</i>")
    page.host.log_dir.mkdir()
    page.queue.file.change(lambda _: [hostile, replace(hostile, id="a2", state="running")])
    html = shown(page)["queue"]
    assert "<script>" not in html
    assert "<i>" not in html
    assert "<img" not in html
    assert html.count(">Try again<") == 1, "what is trained has none"


def test_a_refused_entry_offers_the_way_out(page: Page) -> None:  # noqa: F811
    model = ModelReference("<b>other</b>", "/models/other.safetensors")
    entries = [Entry(f"a{number}", f"word{number}", "/images", {}, "failed", "no", model=model) for number in range(4)]
    exists = {"option": "overwrite"}
    options: list[dict[str, str]] = [{"option": "model"}, exists, {**exists, "resume": "r"}, {}]
    file = page.queue.file
    file.change(lambda _: [replace(each, **option) for each, option in zip(entries, options, strict=True)])
    html = shown(page)["queue"]
    labels = [re.findall(r">([^<>]*)</button>", each) for each in re.findall(r'<div class="ti-ways">.*?</div>', html)]
    assert labels == [["Try again", *([queue.TITLES[way]] if way else [])] for way in ("model", "replace", "keep", "")]
    assert "<b>other" not in html
    for number, way in enumerate(("model", "replace", "keep")):
        queue._do(page, f"{way} a{number} 3")
    changed = page.queue.snapshot().entries
    assert [each.state for each in changed] == ["waiting"] * 3 + ["failed"]
    assert [each.overwrite for each in changed] == [False, True, True, False]
    assert changed[0].model == page.host.chosen_model()
    page.host.is_public = True
    file.change(lambda _: entries[:1])
    assert "cannot be overwritten" not in queue._attempt(lambda: queue._do(page, "model a0 4"))
    assert "Nothing can be overwritten" in queue._attempt(lambda: queue._do(page, "replace a0 5"))


@pytest.mark.parametrize(
    ("status", "held", "says", "label"),
    [("paused", "paused", "is paused, so the queue waits", "Go on"), ("stopped", "stopped", "was stopped", "Go on")],
)
def test_why_the_queue_waits_is_said(page: Page, status: str, held: str, says: str, label: str) -> None:  # noqa: F811
    page.queue.file.change(lambda _: [Entry("a1", "y-word", "/images", {})])
    page.queue._held, page.queue._held_by, page.queue._going = held, "x-word", held == "paused"
    now = Snapshot(status, "x-word")
    parts = queue.parts_of(page, now)
    assert f"x-word {says}" in parts["queue"][1]()
    assert parts["queue_start"][1]()["visible"]
    assert label in parts["queue_start"][1]()["value"]


def test_a_damaged_queue_is_reported_and_the_page_is_built(tmp_path: Path, page: Page) -> None:  # noqa: F811
    page.host.log_dir.mkdir()
    (page.host.log_dir / FILE).write_bytes(b"{")
    again = Page(page.host, Job())
    assert "is not JSON" in shown(again)["queue"]
    assert str(page.host.log_dir / f"{FILE}.damaged") in shown(again)["queue"]


@pytest.mark.page
def test_three_runs_are_queued_one_fails_and_is_tried_again(served: Served) -> None:  # noqa: F811
    words = served.folder / "embeddings"
    for name in ("y-word", "z-word"):
        (words / f"{name}.safetensors").write_bytes((words / "x-word.safetensors").read_bytes())
    with launch() as tab:
        served.open(tab, "Train")
        filled_in(tab, served, 100_000)
        tab.click("#ti_trainer_train_start")
        until(lambda: status(tab) == "training")
        tab.click("#ti_trainer_train_start")
        tab.locator("#ti_trainer_train_message").get_by_role("button", name="Add to queue").wait_for()
        for name in ("y-word", "z-word"):
            choose(tab, "train_name", name)
            tab.locator("#ti_trainer_train_max_steps input").fill("12")
            tab.click("#ti_trainer_train_queue")
            tab.locator("#ti_trainer_queue .ti-queued b").get_by_text(name, exact=True).wait_for()
        tab.locator("#ti_trainer_queue").get_by_title("Move up: z-word").click()
        named: Callable[[], list[str]] = tab.locator("#ti_trainer_queue .ti-queued b").all_inner_texts
        until(lambda: named() == ["z-word", "y-word"])
        (words / "z-word.safetensors").rename(words / "away")
        show(tab, "Runs")
        tab.locator("#ti_trainer_runs_about").get_by_text("x-word", exact=True).wait_for()
        tab.click("#ti_trainer_runs_continue")
        said = tab.locator("#ti_trainer_runs_message")
        said.get_by_text("x-word is being trained now.").wait_for()
        said.get_by_role("button", name="Stop it").click()
        show(tab, "Train")
        tab.locator("#ti_trainer_queue").get_by_text("x-word was stopped, so the queue waits.").wait_for()
        tab.click("#ti_trainer_queue_start")
        tab.locator("#ti_trainer_queue [data-state=failed]").get_by_text("There is no embedding 'z-word'").wait_for()
        until(lambda: named() == ["z-word"] and status(tab) == "done")
        assert (served.run_of("y-word") / "state.safetensors").is_file()
        (words / "away").rename(words / "z-word.safetensors")
        tab.locator("#ti_trainer_queue").get_by_title("Try again: z-word").click()
        served.open(tab, "Train")
        tab.click("#ti_trainer_queue_start")
        until(lambda: named() == [] and (served.run_of("z-word") / "state.safetensors").is_file())
        show(tab, "Runs")
        tab.locator("#ti_trainer_runs_about").get_by_text("z-word", exact=True).wait_for()
        entry(tab, "runs_compared").click()
        tab.locator("[role=option], [data-testid=dropdown-option]").filter(has_text="y-word").first.click()
        tab.locator("#ti_trainer_runs_curve").get_by_text("/y-word").wait_for()
        assert tab.locator("#ti_trainer_runs_side_by_side tr").count() == 3, "previews of both, and the steps"
        tab.click("#ti_trainer_runs_continue")
        said.get_by_role("button", name="Train 12 more steps").click()
        said.get_by_text("Continuing z-word at step 12").wait_for()
