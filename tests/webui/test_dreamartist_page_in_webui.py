"""DreamArtist, pixel loss and the mask brush on the WebUI's page, in a browser as its users do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from server import Server
from test_dreamartist_in_webui import OPTIONS, begin, created, ended, opened
from test_extension import fill, open_tab, our_status, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.webui
SCRIPTS = ("mask_requests", "mask_brush", "mask_layer")
CANVAS = "#ti_trainer_masks_canvas"


def test_all_of_it_is_reached_in_the_hosts_page(webui: Server, image: Path) -> None:
    with opened(webui) as (page, heard):
        open_tab(page, "Create embedding")
        fill(page, "create_name", "my-page")
        unfold(page, "DreamArtist")
        page.fill("#ti_trainer_create_negative_vectors input[type=number]", "3")
        page.keyboard.press("Tab")
        page.click("#ti_trainer_create_button")
        page.locator("#ti_trainer_create_outcome", has_text="my-page-neg was created too").first.wait_for()
        open_tab(page, "Train")
        fill(page, "train_images", str(image.parent))
        fill(page, "train_max_steps", "3")
        unfold(page, "All options")
        page.locator("#ti_trainer_train_negative input").check()
        page.fill("#ti_trainer_train_reconstruction_weight input", "0.5")
        page.keyboard.press("Tab")
        page.click("#ti_trainer_train_start")
        until(lambda: our_status(webui)["name"] == "my-page" and our_status(webui)["status"] == "done")
        settings = json.loads((Path(our_status(webui)["run"]) / "settings.json").read_text(encoding="utf-8"))["train"]
        assert (settings["negative"], settings["train_cfg_scale"], settings["reconstruction_weight"]) == (True, "3", 0.5)
        page.click("#ti_trainer_use")
        page.locator("#txt2img_generate").wait_for()
        until(lambda: page.input_value("#txt2img_neg_prompt textarea") == "a photo of my-page-neg")
        assert page.input_value("#txt2img_prompt textarea") == "a photo of my-page"
        assert page.input_value("#txt2img_cfg_scale input[type=number]") == "3"
        # Generate makes the host's own scripts complain, with our extension and without.
        assert [each for each in heard if "ERR_NAME_NOT_RESOLVED" not in each] == []
        for side in ("width", "height"):
            page.fill(f"#txt2img_{side} input[type=number]", "64")
        page.click("#txt2img_generate")
        page.locator("#txt2img_gallery img").first.wait_for()


def unfold(page: Page, title: str) -> None:
    page.locator("#ti_trainer_tabs .label-wrap:visible").get_by_text(title, exact=True).click()


def test_masks_are_painted_in_the_hosts_page_and_trained_with(webui: Server, image: Path) -> None:
    created(webui, "embedded", "my-painted")
    with opened(webui) as (page, heard):
        for name in SCRIPTS:
            assert page.locator(f"script[src*='extensions/ti-trainer/javascript/{name}.js']").count() == 1
        open_tab(page, "Preprocess")
        page.locator("#ti_trainer_preprocess_tabs > .tab-nav button", has_text="Paint masks").click()
        fill(page, "masks_folder", str(image.parent))
        page.click("#ti_trainer_masks_open")
        place, message = (page.locator(f".ti-masks [data-part={part}]") for part in ("place", "message"))
        place.get_by_text("1 of 1: 01.png (no mask)").wait_for()
        stroke(page, 0.25, 0.75)
        place.get_by_text("unsaved").wait_for()
        page.click(".ti-masks [data-do=save]")
        message.get_by_text("Saved 01_att.png.").wait_for()
        page.click(".ti-masks [data-do=spread]")
        message.get_by_text("now covers similar areas").wait_for()
        page.click(".ti-masks [data-do=undo]")
        place.get_by_text("01_att.png").wait_for()
        assert [each for each in heard if "ERR_NAME_NOT_RESOLVED" not in each] == []
    with Image.open(image) as shown, Image.open(image.with_name("01_att.png")) as mask:
        assert mask.size == shown.size
        greys = np.asarray(mask)
    height, width = greys.shape
    assert (greys[height // 2, width * 3 // 10 : width * 7 // 10] == 127).all()
    assert not greys[: height // 3].any()
    learned = []
    for outside in (0, 1):
        begin(webui, "my-painted", image, {**OPTIONS, "max_steps": 2, "preview_every": 0, "mask_outside": outside})
        assert ended(webui)["status"] == "done"
        learned.append(load_file(webui.embeddings / "my-painted.safetensors")["emb_params"])
        created(webui, "embedded", "my-painted")
    assert not torch.equal(*learned)


def stroke(page: Page, start: float, end: float) -> None:
    """With the mouse, from side to side in the middle of the image; in parts of its width."""
    page.locator(CANVAS).scroll_into_view_if_needed()
    box = page.locator(CANVAS).bounding_box()
    places = [(box["x"] + part * box["width"], box["y"] + box["height"] / 2) for part in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=5)
    page.mouse.up()
