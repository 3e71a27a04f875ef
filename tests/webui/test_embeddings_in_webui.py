"""The tab Embeddings in the real WebUI: its images are the WebUI's own, and the WebUI is afterwards as it was before."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from server import Server
from test_extension import HOSTS_OWN, fill, known, open_tab
from test_host_alone import generate

from ti_trainer.workbench.compare import STAND_IN
from ti_trainer.workbench.merge import UNNAMED

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.webui
PROMPT = "a photo of [name]"


@contextmanager
def unchanged(webui: Server) -> Iterator[None]:
    """Within it nothing may change what the host draws, its settings, or what the names that we use meant to it."""

    def state() -> list[Any]:
        options, words = webui.api("/sdapi/v1/options"), known(webui)
        meanings = [generate(webui, f"a {name}").tolist() for name in (STAND_IN, UNNAMED)]
        return [generate(webui, HOSTS_OWN).tolist(), meanings, options, sorted(words)]

    before = state()
    yield
    assert [now == then for now, then in zip(state(), before, strict=True)] == [True] * len(before)
    progress = webui.api("/sdapi/v1/progress")["state"]
    assert (progress["job"], progress["interrupted"], progress["stopping_generation"]) == ("", False, False)


def drawn_in_txt2img(webui: Server, prompt: str, seed: int = 1) -> NDArray[np.uint8]:
    """With what its tab starts with; its API has another sampler."""
    sampler = webui.api("/sdapi/v1/samplers")[0]["name"]
    return generate(webui, prompt, seed, sampler_name=sampler, scheduler="Automatic")


def open_panel(page: Page, name: str) -> None:
    open_tab(page, "Embeddings")
    page.locator("#ti_trainer_embeddings_tabs > .tab-nav button").get_by_text(name, exact=True).first.click()


def choose(page: Page, field: str, name: str) -> None:
    """An entry of a list that opens at the first click, although it is newer than the page."""
    page.locator(f"#ti_trainer_{field} input").first.click()
    page.locator(f"#ti_trainer_{field} ul.options li", has_text=name).first.click()


def pixels(page: Page, image: Any) -> NDArray[np.uint8]:
    """Of an image element, by its address or its own content."""
    source = image.get_attribute("src")
    content = base64.b64decode(source.partition(",")[2]) if source.startswith("data:") else page.request.get(source).body()
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))


def test_compared_images_are_the_hosts_own(webui: Server, page: Page) -> None:
    for name, text in (("my-row", "red star"), ("my-other", "blue circle")):
        webui.endpoint("ti_trainer_create", name, text, 2, True)
    with unchanged(webui):
        open_panel(page, "Compare")
        for name in ("my-row", "my-other"):
            choose(page, "compare_embeddings", name)
        fill(page, "compare_prompts", PROMPT)
        fill(page, "compare_seeds", "3")
        fill(page, "compare_weights", "1")
        page.locator("#ti_trainer_compare_about", has_text="2 images").first.wait_for()
        page.click("#ti_trainer_compare_start")
        page.locator("#ti_trainer_compare_result", has_text="Compared: 2 images").first.wait_for()
        assert page.locator("#ti_trainer_compare_grid").first.locator("img").count() == 2
    (folder,) = webui.data.glob("**/comparisons/my-row-and-1-more")
    for row, name in enumerate(("my-row", "my-other"), 1):
        drawn = np.asarray(Image.open(folder / f"{row:02d}-01.png"))
        assert np.array_equal(drawn, drawn_in_txt2img(webui, f"a photo of {name}", seed=3)), name


def test_a_mix_is_previewed_as_the_host_draws_it_when_it_is_saved(webui: Server, page: Page) -> None:
    for name, text in (("my-half", "red star"), ("my-rest", "blue circle")):
        webui.endpoint("ti_trainer_create", name, text, 2, True)
    with unchanged(webui):
        open_panel(page, "Merge")
        choose(page, "merge_chosen_1", "my-half")
        choose(page, "merge_chosen_2", "my-rest")
        page.locator("#ti_trainer_merge_about", has_text="2 vectors").first.wait_for()
        fill(page, "merge_prompt", PROMPT)
        page.click("#ti_trainer_merge_preview")
        images = page.locator("#ti_trainer_merge_images button img")
        images.nth(1).wait_for()
        without, with_it = (pixels(page, images.nth(number)) for number in range(2))
        assert np.array_equal(without, drawn_in_txt2img(webui, "a photo of"))
    fill(page, "merge_name", "my-mixture")
    page.click("#ti_trainer_merge_save")
    page.locator("#ti_trainer_merge_message", has_text="Saved my-mixture: 2 vectors").first.wait_for()
    assert "my-mixture" in known(webui)
    assert np.array_equal(with_it, drawn_in_txt2img(webui, "a photo of my-mixture"))
    assert not np.array_equal(with_it, without)
