"""DreamArtist on the standalone page as a newcomer goes about it, in Chromium, on the embedded model: the whole way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")  # the page is all that needs it
pytest.importorskip("diffusers")  # the standalone host needs it; the WebUI does without

from browser import complaints, launch
from test_page import entry, fill, says, show, status, step, until
from test_standalone import opened, started

from ti_trainer import formats
from ti_trainer.commands.demo import CONFIG
from ti_trainer.runs.run_folder import Run

if TYPE_CHECKING:
    from playwright.sync_api import Page

STEPS = 8


@pytest.fixture(scope="module")
def folder_and_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Where the page was started, and its address."""
    folder = tmp_path_factory.mktemp("newcomer")
    with started(folder) as url:
        yield folder, url


@pytest.fixture
def folder(folder_and_url: tuple[Path, str]) -> Path:
    return folder_and_url[0]


@pytest.fixture
def page(folder_and_url: tuple[Path, str]) -> Iterator[Page]:
    """In a browser of its own, which may have nothing to complain of in the end."""
    with launch() as page:
        heard = complaints(page)
        opened(page, folder_and_url[1])
        show(page, "Train")
        yield page
        assert not heard


def unfold(page: Page, title: str) -> None:
    page.locator(".label-wrap:visible").get_by_text(title, exact=True).click()


def number(page: Page, name: str, value: int) -> None:
    """Into the box beside a slider, again if gradio 6 has just put it on the page and overwrites it."""
    box = page.locator(f"#ti_trainer_{name} input[type=number]")

    def entered() -> bool:
        box.fill(str(value))
        box.press("Tab")
        page.wait_for_timeout(100)
        return box.input_value() == str(value)

    until(entered)


def ticked(page: Page, name: str) -> bool:
    return page.locator(f"#ti_trainer_{name} input[type=checkbox]").is_checked()


def refused(page: Page, name: str, message: str, fold: str) -> None:
    """Press Train: the error is shown below its field and beside the button, and nothing starts."""
    page.click("#ti_trainer_train_start")
    error = page.locator(".ti-field-error:visible").get_by_text(message)
    error.wait_for()
    distance = error.bounding_box()["y"] - entry(page, f"train_{name}").bounding_box()["y"]
    assert 0 < distance < 180, f"beside {name}"
    if fold:
        says(page, "train_message", f"Training was not started.\nBelow, in All options, {fold}: ")
    says(page, "train_message", message)
    assert page.locator(".ti-field-error:visible").count() == 1
    assert status(page) == "idle"


def test_wrong_entries_have_their_messages_beside_them(page: Page) -> None:
    unfold(page, "All options")
    page.locator("#ti_trainer_train_negative input").check()
    refused(page, "negative", "There is no embedding 'my-thing-neg'", "")
    fill(page, "train_train_cfg_scale", "3-")
    refused(page, "train_cfg_scale", "found '3-', expected a number such as 3, or LO-HI:shape", "DreamArtist")
    fill(page, "train_train_cfg_scale", "3")
    page.locator("#ti_trainer_train_negative input").uncheck()
    fill(page, "train_discriminator", "/nowhere/judge.pt")
    refused(page, "discriminator", "found /nowhere/judge.pt, expected a folder with config.json", "Pixel loss")
    fill(page, "train_discriminator", "")
    fill(page, "train_ema_rate", "2")
    refused(page, "ema_rate", "EMA rate", "DreamArtist")


def test_the_welcome_goes_where_it_is_no_longer_true(page: Page) -> None:
    message = page.locator("#ti_trainer_train_message")
    for name in ("preset", "train_name"):
        page.reload()
        show(page, "Train")
        says(page, "train_message", "Everything is filled in for a first run")
        if name == "preset":
            assert "All other options are reset to their defaults" in page.locator("#ti_trainer_tabs").inner_text()
            entry(page, name).click()
            page.locator("[role=option], .options .item").get_by_text("object").first.click()
        else:
            fill(page, name, "other")
            entry(page, name).press("Enter")
        until(lambda: not message.inner_text())


def test_from_a_name_to_images_with_word_and_negative(page: Page, folder: Path) -> None:
    says(page, "train_message", "to teach the tiny model a new word")
    show(page, "Create embedding")
    fill(page, "create_name", "my-hero")
    fill(page, "create_init_text", "star")
    unfold(page, "DreamArtist")
    number(page, "create_negative_vectors", 3)
    page.click("#ti_trainer_create_button")
    says(page, "create_outcome", "my-hero-neg was created too")

    show(page, "Train")
    until(lambda: entry(page, "train_name").input_value() == "my-hero")
    until(lambda: not page.locator("#ti_trainer_train_message").inner_text())
    entry(page, "preset").click()
    page.locator("[role=option], .options .item").get_by_text("DreamArtist character").click()
    says(page, "preset_about", "For a character from one")
    unfold(page, "All options")
    until(lambda: ticked(page, "train_negative"))
    assert float(entry(page, "train_ema_rate").input_value()) == 0.97
    fill(page, "train_max_steps", str(STEPS))
    fill(page, "train_reconstruction_weight", "1")
    fill(page, "train_preview_every", "4")
    page.click("#ti_trainer_train_start")
    until(lambda: status(page) == "done", 60)

    assert step(page) == STEPS
    page.locator("#ti_trainer_previews img").nth(2).wait_for()
    assert re.search(r"Last prompt\s+\S.*my-hero", page.locator("#ti_trainer_prompt").inner_text())
    assert re.search(r"\S+my-hero-neg\.safetensors", page.locator("#ti_trainer_result").inner_text())
    details = page.locator("#ti_trainer_details").inner_text()
    assert re.search(rf"Moving average\s+\S+my-hero-ema-{STEPS}\.safetensors", details)
    (run,) = Run.all(folder / "textual_inversion")
    assert [each for each, _ in run.previews()] == [0, 4, 8]
    assert formats.read_negative(run.path / f"image_embeddings/my-hero-{STEPS}.png").num_vectors == 3

    page.click("#ti_trainer_open_run")
    says(page, "runs_about", "my-hero")
    until(lambda: entry(page, "runs_name").input_value() == f"my-hero-{STEPS}")
    entry(page, "runs_copy").click()
    page.locator("[role=option], .options .item").get_by_text(f"{STEPS}, moving average").click()
    until(lambda: entry(page, "runs_name").input_value() == f"my-hero-{STEPS}-ema")
    page.click("#ti_trainer_runs_promote")
    says(page, "runs_promoted", f"my-hero-{STEPS}-ema-neg.safetensors")
    assert formats.read(folder / f"embeddings/my-hero-{STEPS}-ema-neg.safetensors").num_vectors == 3

    show(page, "Train")
    for _ in range(2):
        page.click("#ti_trainer_use")
        until(lambda: entry(page, "generate_negative").is_visible())
        until(lambda: "my-hero-neg" in entry(page, "generate_negative").input_value())
        prompt, negative = (entry(page, f"generate_{each}").input_value() for each in ("prompt", "negative"))
        assert (prompt, negative) == ("a photo of my-hero on grass", "a photo of my-hero-neg on grass")
        assert page.locator("#ti_trainer_generate_scale input[type=number]").input_value() == "3"
        show(page, "Train")
    show(page, "Generate")
    number(page, "generate_count", 1)
    page.click("#ti_trainer_generate_button")
    (drawn := page.locator("#ti_trainer_generate_images img")).wait_for()
    gallery, image = (each.bounding_box() for each in (page.locator("#ti_trainer_generate_images"), drawn))
    assert image["height"] > 300
    assert gallery["y"] <= image["y"]
    assert image["y"] + image["height"] <= gallery["y"] + gallery["height"], "all of it is seen"
    drawn.click()
    page.locator("#ti_trainer_generate_images .preview img").first.wait_for()


def test_the_preview_prompt_that_is_filled_in_suits_every_word() -> None:
    assert "my-thing" not in CONFIG.preview_prompt
    assert "[name]" in CONFIG.preview_prompt
