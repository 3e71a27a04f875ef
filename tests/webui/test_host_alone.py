"""The WebUI by itself, as later tests rely on it: its images depend on nothing but the request."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.webui


def generate(webui: Server, prompt: str, seed: int = 1, **more: Any) -> NDArray[np.uint8]:
    request = {"prompt": prompt, "seed": seed, "steps": 20, "cfg_scale": 5, "width": 64, "height": 64, **more}
    image = webui.api("/sdapi/v1/txt2img", request)["images"][0]
    return np.asarray(Image.open(BytesIO(base64.b64decode(image))))


def test_the_same_seed_draws_the_same_pixels(webui: Server) -> None:
    first = generate(webui, "a photo of a red star on grass")
    other = generate(webui, "a photo of a red star on grass", seed=2)
    assert np.array_equal(first, generate(webui, "a photo of a red star on grass"))
    assert not np.array_equal(first, other)


def test_it_draws_what_the_embedded_model_knows(webui: Server) -> None:
    red, green, blue = generate(webui, "a photo of a big red circle on a blue background")[24:40, 24:40].mean((0, 1))
    assert red > green + 60
    assert red > blue + 60


def test_its_page_draws_in_a_browser(page: Page) -> None:
    page.fill("#txt2img_prompt textarea", "a photo of a red star on grass")
    for name in ("width", "height"):
        page.fill(f"#txt2img_{name} input[type=number]", "64")
    page.click("#txt2img_generate")
    page.locator("#txt2img_gallery img").first.wait_for()
