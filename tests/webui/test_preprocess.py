"""Preprocess in the real WebUI: its processes start there, captioners are offered, training reads what it made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from server import Server
from test_extension import DEMO, fill, open_tab, our_status, stopped, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.webui


def status(page: Page) -> str:
    return page.locator("#ti_trainer_preprocess_progress .ti-progress").first.get_attribute("data-status")


def test_photos_become_a_dataset_that_is_trained_on(webui: Server, page: Page, tmp_path: Path) -> None:
    photos, made = tmp_path / "photos", tmp_path / "made"
    photos.mkdir()
    for number, path in enumerate(sorted(DEMO.glob("*.png"))):
        with Image.open(path) as image:
            image.convert("RGB").resize((400, 300)).save(photos / f"{number}.jpg", quality=95)
        (photos / f"{number}.txt").write_text(path.with_suffix(".txt").read_text())
    webui.endpoint("ti_trainer_create", "my-made", "star", 2, True)
    open_tab(page, "Preprocess")
    fill(page, "preprocess_source", str(photos))
    fill(page, "preprocess_destination", str(made))
    for side in ("width", "height"):
        fill(page, f"preprocess_{side}", "128")
    page.locator("#ti_trainer_preprocess_flip input").check()
    page.click("#ti_trainer_preprocess_preview")
    page.locator("#ti_trainer_preprocess_images img").nth(17).wait_for()
    page.click("#ti_trainer_preprocess_start")
    until(lambda: status(page) == "done")
    assert len(list(made.glob("*.png"))) == 16

    page.locator("#ti_trainer_tabs .label-wrap:visible").get_by_text("Captions", exact=True).click()
    offered = page.locator("#ti_trainer_preprocess_captioners").first
    for name in ("BLIP", "WD14"):
        offered.get_by_text(name).first.wait_for()

    page.click("#ti_trainer_preprocess_to_train")
    until(lambda: page.input_value("#ti_trainer_train_images :is(textarea, input)") == str(made))
    page.fill("#ti_trainer_train_name input", "my-made")
    page.keyboard.press("Enter")
    page.click("#ti_trainer_train_start")
    until(lambda: our_status(webui)["step"] > 0)
    stopped(webui)
