"""The whole page over a tiny model, used in Chromium as people do. Runs under every gradio that is supported."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import processes
from browser import launch
from PIL import Image
from safetensors import safe_open

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.page

PROGRAM = Path(__file__).with_name("tiny_page.py")
ROOT = PROGRAM.parents[2]
STEP_S = "0.02"
SEEN_IN = {"Create embedding": "create_name", "Train": "train_images", "Runs": "runs_chosen"}
STRIP = """(dy) => {
    window.scrollBy(0, dy);
    const { y, height } = document.querySelector("#ti_trainer_strip").getBoundingClientRect();
    return [y, height].map(Math.round);
}"""
BOXES = """() => {
    window.scrollTo(0, 0);  // the strip would be where the page was scrolled to
    return ["progress", "curve", "previews", "stop"].map((name) => {
        const { x, y, width } = document.querySelector("#ti_trainer_" + name).getBoundingClientRect();
        return [x, y, width].map(Math.round).join(" ");
    });
}"""
STICK_OUT = """() => [...document.querySelectorAll(".ti-columns button")].filter((each) => {
    const around = each.closest(".grid-container") ?? each.parentElement;
    return each.offsetParent && !each.closest(".visually-hidden") // gradio 6 measures its tabs there
        && each.getBoundingClientRect().right > around.getBoundingClientRect().right + 1;
}).map((each) => each.innerText)"""


@dataclass
class Served:
    url: str
    folder: Path

    @property
    def console(self) -> str:
        """What it has said on stderr."""
        return (self.folder / ".console.txt").read_text(encoding="utf-8")

    @property
    def images(self) -> Path:
        return self.folder / "Bilder für später"

    def open(self, page: Page, tab: str) -> None:
        page.goto(self.url)
        show(page, tab)
        page.wait_for_function("() => document.querySelector('#ti_trainer_filled :is(textarea, input)')?.value")

    def run_of(self, name: str) -> Path:
        return max((self.folder / "logs").glob(f"*/{name}*"), key=lambda path: path.stat().st_mtime)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """The page in a process of its own, with six images, a preview of an embedding and an embedding for other models."""
    here = Served("", tmp_path)
    here.images.mkdir()
    for number in range(6):
        Image.new("RGB", (24, 24), (40 * number, 90, 200 - 30 * number)).save(here.images / f"{number}.png")
        (here.images / f"{number}.txt").write_text(f"number {number}, <b>bold</b>", encoding="utf-8")
    console = (tmp_path / ".console.txt").open("w", encoding="utf-8")
    with console, processes.serving((PROGRAM, tmp_path, STEP_S), stderr=console) as (here.url, _):
        yield here


def show(page: Page, tab: str) -> None:
    """Open a tab, clicking again if the page was not ready."""
    buttons = "#ti_trainer_tabs .tab-nav button, #ti_trainer_tabs [role=tab]"  # gradio 3 has no roles
    button = page.locator(buttons).get_by_text(tab, exact=True).first

    def is_shown() -> bool:
        button.click()
        return button.evaluate("(each) => each.closest('button').classList.contains('selected')")

    until(is_shown)


def entry(page: Page, name: str) -> object:
    return page.locator(f"#ti_trainer_{name}").locator("textarea, input").first


def fill(page: Page, name: str, text: str) -> None:
    entry(page, name).fill(text)


def choose(page: Page, name: str, text: str) -> None:
    fill(page, name, text)
    entry(page, name).press("Enter")


def status(page: Page) -> str:
    return page.locator("#ti_trainer_progress .ti-progress").first.get_attribute("data-status")


def step(page: Page) -> int:
    found = re.search(r"(\d+) / \d+", page.locator("#ti_trainer_progress .ti-numbers").first.inner_text())
    return int(found.group(1)) if found else 0


def until(wanted: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def says(page: Page, name: str, text: str) -> None:
    page.locator(f"#ti_trainer_{name}").get_by_text(text).first.wait_for()


def filled_in(page: Page, served: Served, steps: int = 100_000) -> None:
    choose(page, "train_name", "x-word")
    fill(page, "train_images", str(served.images))
    fill(page, "train_max_steps", str(steps))


def test_names_are_checked_as_they_are_typed_and_a_new_word_is_chosen(served: Served) -> None:
    with launch() as page:
        served.open(page, "Create embedding")
        for name, answer in (
            ("a/b", "contains /"),
            ("x-word", "x-word already exists"),
            ("cat", "Every prompt that contains the word cat would use this embedding"),
            ("my-cat", "This name is available."),
        ):
            fill(page, "create_name", name)
            says(page, "create_about_name", answer)
        fill(page, "create_init_text", "a red old cat")
        says(page, "create_about_text", "4 tokens for only 2 vectors")
        page.locator(".label-wrap").get_by_text("Suggest an initialization text", exact=True).click()
        fill(page, "suggest_images", str(served.images))
        fill(page, "suggest_texts", "old cat, sofa")
        page.click("#ti_trainer_suggest_button")
        says(page, "suggest_ranking", "texts on 6 images.")
        fill(page, "create_init_text", "a red old cat")
        page.click("#ti_trainer_create_button")
        says(page, "create_outcome", "Created my-cat with 2 vectors")
        assert not page.locator("#ti_trainer_create_about_name").first.inner_text(), "the name is not available any more"
        show(page, "Train")
        until(lambda: entry(page, "train_name").input_value() == "my-cat")
        assert (served.folder / "embeddings" / "my-cat.safetensors").is_file()


def test_a_refusal_goes_when_its_reason_is_over(served: Served) -> None:
    with launch() as page:
        served.open(page, "Train")
        filled_in(page, served)
        page.click("#ti_trainer_train_start")
        until(lambda: status(page) == "training")
        page.click("#ti_trainer_train_start")
        show(page, "Create embedding")
        fill(page, "create_name", "my-cat")
        page.click("#ti_trainer_create_button")
        page.locator(".label-wrap").get_by_text("Report a problem", exact=True).click()
        page.click("#ti_trainer_report_button")
        says(page, "report_message", "is being trained")
        refusals = [page.locator(f"#ti_trainer_{place} [data-busy]").first for place in ("create_outcome", "train_message")]
        refusals[0].wait_for()
        page.wait_for_timeout(2500)  # it stays as long as its reason
        assert refusals[0].is_visible()
        show(page, "Train")
        assert refusals[1].is_visible()
        page.click("#ti_trainer_stop")
        until(lambda: status(page) == "stopped")
        refusals[1].wait_for(state="hidden")
        show(page, "Create embedding")
        refusals[0].wait_for(state="hidden")


def test_embeddings_that_cannot_be_used_are_shown_with_the_reason(served: Served) -> None:
    (served.folder / "embeddings" / "broken.pt").write_bytes(b"no embedding")
    with launch() as page:
        served.open(page, "Create embedding")
        page.get_by_text("Embeddings that do not work with this model").first.click()
        page.click("#ti_trainer_survey_button")
        says(page, "survey", "broken.pt")


def test_wrong_entries_get_their_messages_and_nothing_starts(served: Served) -> None:
    with launch() as page:
        served.open(page, "Train")
        assert entry(page, "train_name").input_value() == "x-word", "the newest embedding"
        choose(page, "train_name", "gone")
        fill(page, "train_images", str(served.folder / "nowhere"))
        fill(page, "train_learning_rate", "fast")
        page.get_by_text("cannot be read at 'fast'").first.wait_for()
        page.click("#ti_trainer_train_start")
        for message in ("'gone' no longer exists", "does not exist", "cannot be read at 'fast'"):
            page.locator(".ti-field-error").get_by_text(message).first.wait_for()
        says(page, "train_message", "Fix the highlighted fields first.")
        assert status(page) == "idle"
        choose(page, "train_name", "x-word")
        until(lambda: not page.locator("#ti_trainer_train_message").first.inner_text())
        assert not (served.folder / "logs").exists()


def test_a_look_at_the_dataset_shows_images_warnings_and_tokens(served: Served) -> None:
    with launch() as page:
        served.open(page, "Train")
        filled_in(page, served)
        page.click("#ti_trainer_train_check")
        says(page, "preflight_report", "6 of 24 x 24")
        page.locator("#ti_trainer_preflight_images img").nth(5).wait_for()
        assert "DreamArtist" not in page.locator("#ti_trainer_preflight_report").first.inner_text()
        page.get_by_text("Ten prompts as tokens").first.click()
        page.locator("#ti_trainer_preflight_prompts .ti-embedding").nth(19).wait_for()
        assert "<b>bold</b>" in page.locator("#ti_trainer_preflight_prompts .ti-prompt").first.inner_text()
        word = served.folder / "embeddings" / "x-word.safetensors"
        word.with_stem("x-word-neg").write_bytes(word.read_bytes())
        page.click("#ti_trainer_train_check")
        says(page, "preflight_report", "x-word-neg exists, but 'Train with DreamArtist' is off")
        page.locator(".label-wrap").get_by_text("All options", exact=True).click()
        fill(page, "options_search", "dreamartist")
        page.locator("#ti_trainer_train_seed").wait_for(state="hidden")
        page.locator("#ti_trainer_train_negative input[type=checkbox]").check()
        page.click("#ti_trainer_train_check")
        page.locator("#ti_trainer_preflight_report").get_by_text("is off").wait_for(state="detached")


@pytest.mark.gradio
def test_a_run_is_watched_paused_resumed_and_kept(served: Served) -> None:
    with launch() as page:
        served.open(page, "Train")
        filled_in(page, served)
        at_rest = page.evaluate(STRIP, -9999)
        page.click("#ti_trainer_train_start")
        until(lambda: status(page) == "training" and step(page) > 20)
        assert page.evaluate(STRIP, -9999) == at_rest, "the layout jumped"
        for tab in ("Preprocess", "Train"):
            show(page, tab)
            assert page.evaluate(STRIP, 300) == [0, at_rest[1]], f"the strip stays in view on {tab}"
            assert page.locator("#ti_trainer_stop").is_visible()
        boxes = page.evaluate(BOXES)
        page.click("#ti_trainer_copy")
        page.click("#ti_trainer_preview")
        run = served.run_of("x-word")
        until(lambda: len(list((run / "embeddings").glob("*.safetensors"))) == 1)
        page.locator("#ti_trainer_previews img").nth(1).wait_for()
        assert page.evaluate(BOXES) == boxes, "the layout jumped"
        page.click("#ti_trainer_pause")
        until(lambda: status(page) == "paused")
        paused_at = step(page)
        page.reload()
        show(page, "Train")
        until(lambda: status(page) == "paused")
        assert step(page) == paused_at
        until(lambda: entry(page, "train_max_steps").input_value() == "100000")
        assert entry(page, "train_images").input_value() == str(served.images), "the form holds what the run uses"
        page.click("#ti_trainer_resume")
        until(lambda: status(page) == "training" and step(page) > paused_at)
        page.click("#ti_trainer_stop")
        until(lambda: status(page) == "stopped")
        says(page, "result", "The embedding was saved")
        with safe_open(served.folder / "embeddings" / "x-word.safetensors", "pt") as file:
            assert str(step(page)) in json.dumps(file.metadata())
        assert served.run_of("x-word") == run, "it was one run all the time"


def test_two_pages_watch_one_run_and_cannot_start_another(served: Served) -> None:
    with launch() as first:
        served.open(first, "Train")
        filled_in(first, served)
        first.click("#ti_trainer_train_start")
        until(lambda: status(first) == "training")
        second = first.context.new_page()
        served.open(second, "Train")
        until(lambda: status(second) == "training" and step(second) > 5)
        filled_in(second, served)
        second.click("#ti_trainer_train_start")
        says(second, "train_message", "'x-word' is being trained")
        second.click("#ti_trainer_stop")
        first.bring_to_front()
        until(lambda: status(first) == "stopped")


def test_runs_can_be_looked_at_continued_and_promoted(served: Served) -> None:
    with launch() as page:
        served.open(page, "Train")
        filled_in(page, served, steps=12)
        fill(page, "train_save_every", "6")
        fill(page, "train_preview_every", "6")
        page.click("#ti_trainer_train_start")
        until(lambda: status(page) == "done")
        page.locator("#ti_trainer_result img").nth(1).wait_for()
        page.click("#ti_trainer_open_run")
        says(page, "runs_about", "x-word")
        page.locator("#ti_trainer_runs_previews img").nth(2).wait_for()
        until(lambda: entry(page, "runs_name").input_value() == "x-word-12")
        page.click("#ti_trainer_runs_promote")
        says(page, "runs_promoted", "x-word-12.safetensors")
        assert (served.folder / "embeddings" / "x-word-12.safetensors").is_file()
        page.click("#ti_trainer_runs_continue")
        says(page, "runs_message", "has been trained for 12 steps already")
        fill(page, "runs_max_steps", "20")
        entry(page, "runs_max_steps").press("Tab")
        page.click("#ti_trainer_runs_continue")
        says(page, "runs_message", "Continuing x-word at step 12")
        page.click("#ti_trainer_runs_use_settings")
        until(lambda: entry(page, "train_max_steps").is_visible() and entry(page, "train_max_steps").input_value() == "20")
        show(page, "Train")
        until(lambda: status(page) == "done" and step(page) == 20)


@pytest.mark.gradio
def test_presets_fill_the_form_and_can_be_saved(served: Served) -> None:
    with launch() as page:
        served.open(page, "Train")
        entry(page, "preset").click()
        page.locator("[role=option], .options .item").get_by_text("style").first.click()
        until(lambda: entry(page, "train_template").input_value() == "style_filewords")
        says(page, "preset_about", "For a style")
        fill(page, "train_max_steps", "77")
        page.locator(".label-wrap").get_by_text("Save as preset", exact=True).click()
        fill(page, "preset_name", "mine")
        page.click("#ti_trainer_preset_save")
        says(page, "preset_about", "Saved as mine.")
        saved = json.loads((served.folder / "logs" / "presets" / "mine.json").read_text(encoding="utf-8"))
        assert (saved["max_steps"], saved["template"]) == (77, "style_filewords")


@pytest.mark.gradio
def test_a_phone_needs_no_sideways_scrolling_and_cuts_nothing_off(served: Served) -> None:
    with launch(390, 800) as page:
        served.open(page, "Quick train")  # gradio 6 puts tabs that do not fit into a menu
        for tab in ("Runs", "Create embedding", "Train"):
            page.evaluate("tab => tiTrainerShow(tab)", tab)
            page.locator(f"#ti_trainer_{SEEN_IN[tab]}").first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), tab
        fill(page, "train_images", str(served.images))
        choose(page, "train_name", "x-word")
        page.locator(".label-wrap").get_by_text("Several folders in one dataset", exact=True).click()
        page.click("#ti_trainer_train_check")
        page.locator("#ti_trainer_preflight_images img").nth(5).wait_for()
        page.locator("#ti_trainer_rows_save").wait_for()
        assert page.evaluate(STICK_OUT) == []
        narrowest = page.evaluate(
            "Math.min(...[...document.querySelectorAll('.grid-container button')].map(b => b.offsetWidth))"
        )
        assert narrowest > 90, "captions of images would be cut off"


@pytest.mark.gradio
def test_images_are_generated_with_an_embedding_and_a_report_is_made(served: Served) -> None:
    with launch() as page:
        served.open(page, "Generate")
        fill(page, "generate_prompt", "an x-word")
        page.click("#ti_trainer_generate_button")
        says(page, "generate_message", "Embeddings used: x-word in the prompt.")
        page.locator("#ti_trainer_generate_images img").nth(3).wait_for()
        page.locator(".label-wrap").get_by_text("Report a problem", exact=True).click()
        page.click("#ti_trainer_report_button")
        until(lambda: "learning: finite" in entry(page, "report_text").input_value())
        page.click("#ti_trainer_report_copy")
        says(page, "report_message", "Copied.")
