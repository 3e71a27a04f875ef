"""Quick train in the real WebUI: images that are dropped become a word that txt2img uses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from server import Server
from test_extension import DEMO, fill, known, open_tab, our_status, started, stopped, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.webui


def test_dropped_images_become_a_word_in_txt2img(webui: Server, page: Page) -> None:
    open_tab(page, "Quick train")
    page.locator("#ti_trainer_quick_files input[type=file]").set_input_files(sorted(DEMO.glob("*.*")))
    page.locator("#ti_trainer_quick_about_images", has_text="8 images").first.wait_for()
    fill(page, "quick_name", "my-quick")
    fill(page, "quick_init_text", "star")
    page.click("#ti_trainer_quick_start")
    stage = page.locator("[data-stage=training]").first
    until(lambda: "Step 1" in stage.inner_text() or "Step 2" in stage.inner_text(), 200)
    stopped(webui)
    page.locator("[data-stage=result][data-state=done]").first.wait_for()
    assert "my-quick" in known(webui)
    page.click("#ti_trainer_quick_use")
    until(lambda: "my-quick" in page.locator("#txt2img_prompt textarea").input_value())
    counter = page.locator("#txt2img_token_counter").first
    until(lambda: re.fullmatch(r"[1-9]\d*/75", counter.inner_text().strip()) is not None)


def test_a_phone_shows_the_prompt_that_a_button_filled(webui: Server, page: Page) -> None:
    """txt2img is longer than our tab there: it would be shown at its end."""
    page.set_viewport_size({"width": 390, "height": 844})
    started(webui, "my-shown", max_steps=2)
    until(lambda: our_status(webui)["status"] == "done")
    open_tab(page, "Train")
    page.click("#ti_trainer_use")
    prompt = page.locator("#txt2img_prompt textarea")
    until(lambda: "my-shown" in prompt.input_value())
    until(lambda: -2 < prompt.bounding_box()["y"] < 844)  # it is scrolled to whole pixels
