"""What people are told of a run in the real WebUI: on its console, its cards of embeddings, its txt2img tab and our page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from server import Server
from test_extension import DEMO, HOSTS_OWN, fill, open_tab, our_status, started, status, stopped, until
from test_numbers import check

from ti_trainer import formats

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.webui


@pytest.fixture(autouse=True)
def _nothing_goes_on(webui: Server) -> Iterator[None]:
    """A run that a failed test left would fail those after it."""
    yield
    stopped(webui)


def test_the_hosts_cards_show_a_new_word_and_its_last_preview_by_themselves(webui: Server, page: Page) -> None:
    page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Textual Inversion").click()
    open_tab(page, "Create embedding")
    fill(page, "create_name", "my-card")
    page.click("#ti_trainer_create_button")
    page.locator("#ti_trainer_create_outcome", has_text="Created my-card").first.wait_for()
    page.locator("#tabs > .tab-nav button", has_text="txt2img").first.click()
    card = page.locator("#txt2img_textual_inversion_cards .card[data-name=my-card]")
    card.wait_for()
    assert card.locator("img.preview").count() == 0
    # By a script, while somebody looks at the cards.
    webui.endpoint("ti_trainer_train", "my-card", str(DEMO), json.dumps({"max_steps": 4, "preview_every": 4}))
    card.locator("img.preview").wait_for()
    until(lambda: our_status(webui)["status"] == "done")
    preview, file = webui.embeddings / "my-card.preview.png", webui.embeddings / "my-card.safetensors"
    last = Image.open(Path(our_status(webui)["run"]) / "images" / "my-card-4.png")
    assert np.array_equal(np.asarray(Image.open(preview)), np.asarray(last))
    page.reload()
    page.locator("#txt2img_generate").wait_for()
    page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Textual Inversion").click()
    card.locator("img.preview").wait_for()
    assert file.is_file()


def test_the_console_says_how_a_run_goes_and_a_refusal_in_a_line(webui: Server, page: Page) -> None:
    said = len(webui.printed())
    open_tab(page, "Train")  # a page that watches, and scripts: nothing is said twice
    started(webui, "my-console", max_steps=60, learning_rate="0.005")
    for name, given, words in (
        ("create", ("my-console", "red star", 2, False), "Refused: There is an embedding 'my-console' already"),
        ("train", ("my-console", str(DEMO), "{}"), "Refused: 'my-console' is being trained"),
        ("train", ("my-console", "/nowhere", "{"), "Refused: The options are not valid JSON"),
    ):
        with pytest.raises(RuntimeError, match="500"):
            webui.endpoint(f"ti_trainer_{name}", *given)
        webui.wait_for(f"TI Trainer: {words}", after=said)
    until(lambda: our_status(webui)["status"] == "done")
    webui.wait_for("Training my-console: done after step 60", after=said)
    printed = webui.printed()[said:]
    assert "Traceback" not in printed
    lines = printed.splitlines()  # what moves a bar begins with a carriage return
    run, file = our_status(webui)["run"], webui.embeddings / "my-console.safetensors"
    begun = f"TI Trainer: Training my-console on 8 images, steps 1 to 60. The run is written to {run}."
    ended = f"TI Trainer: Training my-console: done after step 60. The embedding is {file}."
    assert lines.count(begun) == lines.count(ended) == 1
    assert sum("Training my-console" in line and "|" not in line for line in lines) == 2
    last = [line for line in lines if line.startswith("Training my-console: 100%")][-1]
    assert re.search(r" 60/60 .* loss 0\.\d+, learning rate 0\.005\]$", last)


def test_a_refusal_goes_when_its_reason_is_over(webui: Server, page: Page) -> None:
    open_tab(page, "Create embedding")
    started(webui, "my-reason")
    fill(page, "create_name", "my-second")
    refusal = page.locator("#ti_trainer_create_outcome [data-busy]").first
    for _ in range(2):  # the same words once more are news
        page.click("#ti_trainer_create_button")
        refusal.wait_for()
        time.sleep(2)  # it stays as long as its reason
        assert refusal.is_visible()
        stopped(webui)
        refusal.wait_for(state="hidden")
        webui.endpoint("ti_trainer_resume")
        until(lambda: our_status(webui)["status"] == "training")


def test_interrupt_of_a_waiting_generate_is_told_on_our_page(webui: Server, page: Page) -> None:
    started(webui, "my-waiting")
    open_tab(page, "Train")
    until(lambda: status(page) == "training")
    page.locator("#tabs > .tab-nav button", has_text="txt2img").first.click()
    page.fill("#txt2img_prompt textarea", HOSTS_OWN)
    for side in ("width", "height"):
        page.fill(f"#txt2img_{side} input[type=number]", "64")
    page.click("#txt2img_generate")
    page.locator("#txt2img_interrupt").click()
    until(lambda: our_status(webui)["status"] == "stopped")
    open_tab(page, "Train")
    page.locator("#ti_trainer_result", has_text="Stopped by the WebUI's Interrupt").first.wait_for()
    webui.endpoint("ti_trainer_resume")
    until(lambda: our_status(webui)["status"] == "training")
    assert "Interrupt" not in stopped(webui)["message"], "that was our own button"


def test_use_in_txt2img_replaces_the_word_before(webui: Server, page: Page) -> None:
    page.fill("#txt2img_prompt textarea", "a drawing")
    for name, prompt in (("my-first", "a drawing, a photo of my-first"), ("my-second", "a drawing, a photo of my-second")):
        started(webui, name, max_steps=2)
        until(lambda: our_status(webui)["status"] == "done")
        open_tab(page, "Train")
        until(lambda: status(page) == "done")
        page.locator("#ti_trainer_progress", has_text=name).first.wait_for()
        page.click("#ti_trainer_use")
        page.locator("#txt2img_generate").wait_for()
        until(lambda prompt=prompt: page.input_value("#txt2img_prompt textarea") == prompt)


@pytest.mark.parametrize("kind", [".safetensors", ".pt"])
def test_the_host_knows_what_was_learned_wherever_the_file_lies(webui: Server, kind: str) -> None:
    """In a subfolder, replaced by the training, and as old as the file before it: the host looks at folders' times only."""
    name = f"my-sub-{kind[1:]}"
    webui.endpoint("ti_trainer_create", name, "red star", 2, True)
    made, file = webui.embeddings / f"{name}.safetensors", webui.embeddings / "mine" / f"{name}{kind}"
    formats.write(formats.read(made), file)
    made.unlink()
    webui.endpoint("ti_trainer_train", name, str(DEMO), json.dumps({"max_steps": 5, "preview_every": 0}))
    until(lambda: our_status(webui)["status"] == "done")
    assert Path(our_status(webui)["embedding"]) == file
    assert formats.read(file).step == 5
    check(webui.api(f"/ti-check/compare-file?name={name}"), least=5)
