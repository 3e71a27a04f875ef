"""The panels Compare and Share: what is filled in and refused, the table, and a comparison driven in Chromium."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import gradio as gr
import torch
from browser import complaints, launch
from fakes import D, TinyHost
from test_page import Served, entry, fill, filled_in, says, served, show, status, until  # noqa: F401, the fixture

from ti_trainer import formats
from ti_trainer.config.training import TrainConfig
from ti_trainer.embedding import Embedding
from ti_trainer.errors import BusyError, ConfigError
from ti_trainer.host import GenerationRequest
from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import compare, compare_earlier, compare_progress, runs, share, status_strip, train_progress

pytestmark = pytest.mark.page

OPTIONS = {"preview_negative_prompt": "blurry", "preview_sampling_steps": 7, "preview_sampler": "DDIM", "width": 24}


@pytest.fixture
def page(tmp_path: Path) -> Page:
    host = TinyHost(tmp_path)
    formats.write(Embedding("other", {"clip_l": torch.ones(1, D)}), host.embeddings_dir / "other.safetensors")
    return Page(host, Job())


@pytest.fixture
def run(page: Page) -> Run:
    """A run of x-word with three copies."""
    settings = {"name": "x-word", "images": "trained", "num_images": 3, "train": TrainConfig(**OPTIONS).to_dict()}
    made = Run.create(page.host.log_dir, "x-word", settings)
    for step in (10, 20, 30):
        made.write_copy(Embedding("x-word", {"clip_l": torch.full((1, D), float(step))}, step))
    made.validation_file.write_text("step,loss\n20,0.25\n")
    return made


@pytest.fixture
def panel(page: Page) -> compare.Compare:
    with gr.Blocks(), gr.Column():
        return compare.panel(page)


def values_of(panel: compare.Compare, **entered: Any) -> dict[str, Any]:
    """What the fields hold at first, but for these."""
    return {**{name: getattr(each, "value", None) for name, each in panel.fields.items()}, **entered}


def test_a_run_fills_the_form_with_what_its_previews_were_made_with(panel: compare.Compare, run: Run) -> None:
    found = compare.filled(panel, run)
    updates = {name: found.get(field) for name, field in panel.fields.items()}
    assert updates["runs"]["value"] == [runs.label_of(run)]
    assert updates["copies"]["value"] == [f"{run.id}: {step}" for step in (30, 20, 10)]
    assert (updates["negative_prompt"], updates["steps"], updates["sampler"]) == ("blurry", 7, "DDIM")
    assert updates["prompts"] == "a photo of [name]"
    new = {name: each["value"] if isinstance(each, dict) else each for name, each in updates.items() if each}
    entered = values_of(panel, **new)
    work = compare.comparison_of(panel.page, {**entered, "embeddings": ["other"], "seeds": "1-3", "weights": "1, 0.8"})
    assert work.size == 4 * 1 * 3 * 2
    assert [each.label for each in work.candidates] == [*(f"x-word, step {step}" for step in (30, 20, 10)), "other, step 0"]
    assert work.request == GenerationRequest("", "blurry", 7, work.request.cfg_scale, 1, 24, work.request.height, "DDIM")


def test_copies_follow_the_chosen_runs(page: Page, run: Run) -> None:
    label = runs.label_of(run)
    update = compare._choose(page, [label, "2020-01-01/gone (step 1 of 2)"], [f"{run.id}: 20"])
    assert update["choices"] == [f"{run.id}: {step}" for step in (30, 20, 10)]
    assert update["value"] == [f"{run.id}: 20"]
    assert compare._choose(page, [label], [])["value"] == update["choices"]
    assert compare._choose(page, None, None)["choices"] == []


def test_the_number_of_images_is_told_before_they_are_made(page: Page) -> None:
    page.comparing.per_image_s = 2.0
    said = compare._about(page, ["a", "b"], None, "[name]\n[name], red", "1-3", "1")
    assert "2 copies x 2 prompts x 3 seeds: 12 images, about 24 s at 2.0 s an image." in said
    assert compare._about(page, [], [], "[name]", "1", "1") == ""
    assert "ti-warning" in compare._about(page, ["a"], [], "[name]", "x", "1")


@pytest.mark.parametrize(
    "entered",
    [
        {},
        {"copies": ["2020-01-01/gone: 4"]},
        {"copies": ["../../etc: passwd"]},
        {"embeddings": ["../other"]},
        {"embeddings": ["other"], "prompts": "<script>"},
        {"embeddings": ["other"], "seeds": "-1"},
        {"embeddings": ["other"], "sampler": "<b>"},
        {"embeddings": ["other"], "steps": None},
        {"embeddings": ["other"], "similarity": "forbidden"},
        {"embeddings": ["other"], "similarity": "/", "images": "forbidden"},
    ],
)
def test_what_is_wrong_is_shown_and_nothing_is_written(panel: compare.Compare, entered: dict[str, Any]) -> None:
    values = values_of(panel, **entered)
    said = compare._start(panel, {field: values[name] for name, field in panel.fields.items()})[panel.message]
    assert "ti-error" in said
    assert "<script>" not in said
    assert "<b>" not in said.replace('<b aria-hidden="true">', "")
    assert not (panel.page.host.log_dir / "comparisons").exists()


def started(page: Page, run: Run) -> None:
    entered = {"copies": [f"{run.id}: 30", f"{run.id}: 10"], "embeddings": ["other"], "prompts": "<i>[name]</i>"}
    fixed = {"negative_prompt": "", "seeds": "1, 2", "weights": "1", "steps": 1, "cfg_scale": 5, "width": 0, "height": 0}
    page.compare(compare.comparison_of(page, {**fixed, **entered, "similarity": "", "images": ""}))


def test_a_comparison_is_shown_and_a_copy_is_taken_into_use(page: Page, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    go, generate = threading.Event(), page.host.generate
    monkeypatch.setattr(page.host, "generate", lambda *given: go.wait(20) and generate(*given))
    started(page, run)
    with pytest.raises(BusyError, match="being compared"):
        page.job.start(None)
    for check in (lambda: page.refuse_if_busy("x"), lambda: page.quick.refuse_if_busy(page.job, page.preprocessing)):
        with pytest.raises(BusyError, match="being compared"):
            check()
    parts = train_progress.parts_of(page, page.job.snapshot())
    assert 'data-status="comparing"' in parts["bar"][1]()
    assert parts["stop"][1]()["visible"]
    assert 'data-status="comparing"' in parts["compare_bar"][1]()
    go.set()
    page.comparing.wait(20)
    now = page.comparing.snapshot()
    assert (now.status, now.done) == ("done", 6)
    parts = train_progress.parts_of(page, page.job.snapshot())
    assert "6 images" in parts["compare_result"][1]()
    table = parts["compare_grid"][1]()
    assert table.count("<img ") == 6
    assert table.count('data-row="') == 2, "not for an embedding of the folder"
    assert "&lt;i&gt;[name]&lt;/i&gt;" in table
    assert "<i>[name]" not in table
    assert "x-word-30.safetensors" in compare_progress.use(page, "0 123", "", False)
    assert (page.host.embeddings_dir / "x-word-30.safetensors").is_file()
    assert "already" in compare_progress.use(page, "0 124", "", False)
    assert "mine.safetensors" in compare_progress.use(page, "1 125", " mine ", False)
    assert "already" in compare_progress.use(page, "2 126", "", False)
    for odd in ("", "9 1", "-1 1", "x"):
        assert compare_progress.use(page, odd, "", False) == ""


def test_the_strips_button_stops_a_comparison(page: Page, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    go, generate = threading.Event(), page.host.generate
    monkeypatch.setattr(page.host, "generate", lambda *given: go.wait(20) and generate(*given))
    started(page, run)
    status_strip._stop(page)
    go.set()
    page.comparing.wait(20)
    assert page.comparing.snapshot().status == "stopped"
    assert "with the same settings to continue" in compare_progress.parts_of(page)["compare_result"][1]()


def test_the_form_comes_back_and_an_earlier_comparison_is_opened_and_continued(
    page: Page, panel: compare.Compare, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare_earlier.current(panel) == {panel.message: gr.update()}
    started(page, run)
    page.comparing.wait(20)
    (label,) = compare_earlier.labels(page)
    assert label == "x-word-and-1-more (6 of 6 images)"
    chosen = gr.Dropdown()
    found = compare_earlier.opened(panel, {chosen: label})
    assert "data:image" in found[panel.opened]
    assert found[panel.message] == ""
    back = {name: each["value"] if isinstance(each, dict) else each for name, each in entered_in(panel, found).items()}
    assert back == {
        name: each["value"] if isinstance(each, dict) else each
        for name, each in entered_in(panel, compare_earlier.current(panel)).items()
    }
    settings = page.comparing.snapshot().folder / "comparison.json"
    content = json.loads(settings.read_text())
    content["results"]["similarity"] = {"network": "clip", "images": "photos"}
    settings.write_text(json.dumps(content))
    measured = entered_in(panel, compare_earlier.opened(panel, {chosen: label}))
    assert (measured["similarity"], measured["images"]) == ("clip", "photos")
    (page.comparing.snapshot().folder / "01-02.png").unlink()
    page.compare(compare.comparison_of(page, {**values_of(panel), **back}))
    page.comparing.wait(20)
    assert page.comparing.snapshot().outcome.made == 1
    assert "no comparison" in compare_earlier.opened(panel, {chosen: "gone (1 of 2 images)"})[panel.message]
    (page.host.embeddings_dir / "other.safetensors").unlink()
    shutil.rmtree(run.path)
    found = compare_earlier.opened(panel, {chosen: label})
    assert f"No longer there: {run.id}: 30, {run.id}: 10, other." in found[panel.message]
    settings.write_text('{"settings": {"candidates": [{"run": null}]}}')
    assert "are damaged" in compare_earlier.opened(panel, {chosen: label})[panel.message]


def entered_in(panel: compare.Compare, updates: dict[Any, Any]) -> dict[str, Any]:
    return {name: updates[field] for name, field in panel.fields.items() if field in updates}


def test_what_is_shared_is_shown_first_and_written_beside_the_runs(page: Page) -> None:
    entered = ["other", "<b>A word</b>", 0, "CC0-1.0", False]
    message, included, text = share._show(page, *entered)
    assert message == ""
    assert "other-card.png" in included
    assert "# other" in text
    folder = page.host.log_dir / "shared" / "other"
    assert not folder.exists()
    message, *_ = share._write(page, *entered, False)
    assert "Download all" in message
    assert (folder / "other.md").is_file()
    assert "overwrite them" in share._write(page, *entered, False)[0]
    assert "ti-good" in share._write(page, *entered, True)[0]
    for name in ("", None, "../other", "gone"):
        assert "ti-error" in share._show(page, name, *entered[1:])[0]
    with pytest.raises(ConfigError, match="Weight"):
        share.shared_of(page, "other", "", 50, "", False)


@pytest.mark.gradio
def test_copies_are_compared_in_the_page_and_one_is_used(served: Served) -> None:  # noqa: F811
    with launch(390, 800) as page:
        heard = complaints(page)
        served.open(page, "Quick train")  # gradio 6 puts tabs that do not fit into a menu
        page.evaluate("tiTrainerShow('Train')")
        until(lambda: entry(page, "train_name").is_visible())
        filled_in(page, served, steps=9)
        fill(page, "train_save_every", "3")
        fill(page, "train_preview_every", "0")
        page.click("#ti_trainer_train_start")
        until(lambda: status(page) == "done")
        page.locator("#ti_trainer_ended_compare").click()
        until(lambda: entry(page, "compare_prompts").is_visible())
        until(lambda: entry(page, "compare_prompts").input_value() == "a photo of [name]")
        fill(page, "compare_prompts", "a photo of [name]\n[name] at night\na red [name]")
        entry(page, "compare_prompts").press("Tab")
        says(page, "compare_about", "3 prompts x 2 seeds")
        page.click("#ti_trainer_compare_start")
        page.locator("#ti_trainer_compare_grid img").nth(17).wait_for()
        says(page, "compare_result", "18 images")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "only the table scrolls sideways"
        table = page.locator("#ti_trainer_compare_grid .ti-compare")
        assert table.evaluate("(each) => each.scrollWidth > each.clientWidth")
        page.locator("#ti_trainer_compare_grid button").first.click()
        says(page, "compare_used", "x-word-9.safetensors")
        assert (served.folder / "embeddings" / "x-word-9.safetensors").is_file()
        served.open(page, "Quick train")
        page.evaluate("tiTrainerShow('Embeddings')")
        page.evaluate("setTimeout(() => tiTrainerShow('Compare'), 250)")
        until(lambda: entry(page, "compare_prompts").input_value().endswith("a red [name]"))
        assert [each for each in heard if "ERR_NAME_NOT_RESOLVED" not in each] == []  # gradio 3 asks for fonts
