"""The form for learning from a prompt: in Chromium, over a tiny model."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from browser import launch
from test_page import Served, entry, fill, says, served, show, status, step, until  # noqa: F401, the fixture

from ti_trainer.ui.panels.from_prompt import follow_defaults

pytestmark = pytest.mark.page


def opened(page: object, here: Served) -> None:
    here.open(page, "Train")
    show(page, "From a prompt")
    entry(page, "prompt_name").wait_for()


def test_one_press_creates_and_trains_and_shows_what_was_learned(served: Served) -> None:  # noqa: F811
    with launch() as page:
        opened(page, served)
        page.click("#ti_trainer_prompt_start")
        says(page, "prompt_message", "Fix the highlighted fields first.")
        errors = page.locator(".ti-field-error")
        assert errors.count() == 2, "the name and the prompt"
        fill(page, "prompt_name", "x-word")
        says(page, "prompt_about_name", "already exists")
        fill(page, "prompt_name", "x-scene")
        fill(page, "prompt_teacher_prompt", "a big red cat on a sofa at night")
        says(page, "prompt_about_prompt", "9 tokens: 5 vectors")
        fill(page, "prompt_teacher_negative_prompt", "ugly, grey, dull")
        fill(page, "prompt_max_steps", "12")
        entry(page, "prompt_max_steps").press("Tab")
        page.click("#ti_trainer_prompt_start")
        until(lambda: status(page) == "done")
        assert step(page) == 12
        says(page, "result", "of the gap between no text and the prompt")
        says(page, "result", "x-scene-neg in the negative prompt by")
        page.locator("#ti_trainer_result .ti-wide img").wait_for()
        assert len(list(served.folder.glob("logs/generated/x-scene-*/*.png"))) == 8
        assert (served.folder / "embeddings" / "x-scene-neg.safetensors").is_file()
        page.click("#ti_trainer_open_run")
        says(page, "runs_about", "of the gap")
        fill(page, "runs_max_steps", "20")
        entry(page, "runs_max_steps").press("Tab")
        page.click("#ti_trainer_runs_continue")
        says(page, "runs_message", "Continuing x-scene at step 12")
        show(page, "Train")
        until(lambda: status(page) == "done" and step(page) == 20)


def test_other_defaults_for_a_lora_or_slider_leave_what_was_entered() -> None:
    assert follow_defaults("ink", "", 300, "0.001") == [450, "0.005"]
    assert follow_defaults(" ", "", 450, "0.005") == [300, "0.001"]
    assert 99 not in (given := follow_defaults("", "blue", 99, "0.001"))
    assert given[1] == "0.005"


def test_what_cannot_be_trained_leaves_no_embedding(served: Served) -> None:  # noqa: F811
    with launch() as page:
        opened(page, served)
        fill(page, "prompt_name", "x-bad")
        fill(page, "prompt_teacher_prompt", "ugly, grey, dull")
        page.locator("#ti_trainer_prompt_for_negative input").check()
        page.click("#ti_trainer_prompt_start")
        page.locator(".ti-field-error").get_by_text("expected a prompt without [name]").wait_for()
        fill(page, "prompt_preview_prompt", "a dog")
        fill(page, "prompt_teacher_negative_prompt", "blurry, dark")
        page.click("#ti_trainer_prompt_start")
        page.locator(".ti-field-error").get_by_text("the negative prompt is learned by NAME-neg").wait_for()
        fill(page, "prompt_teacher_negative_prompt", "")
        page.locator(".label-wrap").get_by_text("Slider and contexts", exact=True).click()
        fill(page, "prompt_contexts", "a cat")
        page.click("#ti_trainer_prompt_start")
        page.locator(".ti-field-error").get_by_text("found 'a cat', expected a prompt with [name]").wait_for()
        fill(page, "prompt_contexts", "a cat, [name]")
        fill(page, "prompt_teacher_lora", "nowhere.safetensors")
        page.click("#ti_trainer_prompt_start")
        page.locator(".ti-field-error").get_by_text("found nowhere.safetensors, which does not exist").wait_for()
        assert not list((served.folder / "embeddings").glob("x-bad*"))
        assert status(page) == "idle"
