"""Our tab in the real WebUI, used in a browser as its users do, and what the host is like afterwards."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from server import Server
from test_host_alone import generate

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.webui
DEMO = Path(__file__).parents[2] / "ti_trainer" / "tiny_model" / "demo"
HOSTS_OWN = "a photo of a blue circle on sand"
ENDPOINTS = ("create", "train", "status", "stop", "pause", "resume")
LONG = 100_000  # steps: until it is stopped


def open_tab(page: Page, name: str) -> None:
    """Our tab, and in it one of the panels."""
    page.locator("#tabs > .tab-nav button", has_text="Textual Inversion").first.click()
    page.locator("#ti_trainer_tabs > .tab-nav button").get_by_text(name, exact=True).first.click()


def fill(page: Page, name: str, text: str) -> None:
    page.fill(f"#ti_trainer_{name} :is(textarea, input)", text)


def known(webui: Server) -> dict[str, Any]:
    """The embeddings that the host says it has loaded. Forge's API reads the folder by itself, when asked to."""
    if webui.kind.is_gradio4:
        webui.api("/sdapi/v1/refresh-embeddings", {})
    return webui.api("/sdapi/v1/embeddings")["loaded"]


def status(page: Page) -> str:
    return page.locator("#ti_trainer_progress .ti-progress").get_attribute("data-status")


def until(wanted: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.2)


def our_status(webui: Server) -> dict[str, Any]:
    return webui.endpoint("ti_trainer_status")[0]


def stopped(webui: Server) -> dict[str, Any]:
    webui.endpoint("ti_trainer_stop")
    until(lambda: our_status(webui)["status"] in ("stopped", "done", "failed", "idle"))
    return our_status(webui)


def started(webui: Server, name: str, **options: Any) -> None:
    """A word, and a training of it that has begun."""
    webui.endpoint("ti_trainer_create", name, "red star", 2, True)
    given = {"max_steps": LONG, "preview_every": 0, "save_every": 0, **options}
    webui.endpoint("ti_trainer_train", name, str(DEMO), json.dumps(given))
    until(lambda: our_status(webui)["step"] > 0)


@pytest.fixture(autouse=True)
def _nothing_goes_on(webui: Server) -> Iterator[None]:
    """A run that a failed test left would fail those after it."""
    yield
    stopped(webui)


def test_a_word_is_created_trained_and_used_in_the_browser(webui: Server, page: Page) -> None:
    own, text = generate(webui, HOSTS_OWN), generate(webui, "a photo of my-star")
    open_tab(page, "Create embedding")
    fill(page, "create_name", "my-star")
    page.locator("#ti_trainer_create_about_name", has_text="This name is available.").first.wait_for()
    fill(page, "create_init_text", "red star")
    page.locator("#ti_trainer_create_about_text", has_text="2 tokens").first.wait_for()
    page.click("#ti_trainer_create_button")
    page.locator("#ti_trainer_create_outcome", has_text="Created my-star").first.wait_for()
    assert "my-star" in known(webui)
    before = generate(webui, "a photo of my-star")
    assert not np.array_equal(text, before), "the word means its initialization text now"

    open_tab(page, "Train")
    assert page.input_value("#ti_trainer_train_name input") == "my-star"
    fill(page, "train_images", str(DEMO))
    fill(page, "train_max_steps", str(LONG))
    page.click("#ti_trainer_train_start")
    until(lambda: status(page) == "training" and our_status(webui)["step"] > 50)

    page.reload()
    page.locator("#txt2img_generate").wait_for()
    open_tab(page, "Train")
    until(lambda: status(page) == "training")
    page.locator("#ti_trainer_curve path.ti-smooth").first.wait_for(state="attached")

    page.click("#ti_trainer_stop")
    until(lambda: status(page) == "stopped")
    step = our_status(webui)["step"]
    page.locator("#ti_trainer_result", has_text="The embedding was saved").first.wait_for()
    after = generate(webui, "a photo of my-star")
    assert not np.array_equal(before, after), "it has learned something, and the host knows it without a restart"
    assert np.array_equal(own, generate(webui, HOSTS_OWN)), "the host draws as before"

    page.click("#ti_trainer_open_run")
    page.locator("#ti_trainer_runs_about", has_text="my-star").first.wait_for()
    page.click("#ti_trainer_runs_continue")
    until(lambda: our_status(webui)["status"] == "training" and our_status(webui)["step"] > step + 20)
    stopped(webui)

    open_tab(page, "Train")
    until(lambda: status(page) == "stopped")
    page.click("#ti_trainer_use")
    page.locator("#txt2img_generate").wait_for()
    until(lambda: "my-star" in page.input_value("#txt2img_prompt textarea"))
    for side in ("width", "height"):
        page.fill(f"#txt2img_{side} input[type=number]", "64")
    page.click("#txt2img_generate")
    page.locator("#txt2img_gallery img").first.wait_for()


def test_install_py_gives_the_host_what_it_lacks(checkout: Path, request: pytest.FixtureRequest, webui: Server) -> None:
    python = request.config.getoption("--webui-python") or checkout / "venv" / "bin" / "python"
    subprocess.run([python, "-c", "import imagehash"], check=True)
    again = subprocess.run([python, webui.extension / "install.py"], check=True, capture_output=True, text=True)
    assert (again.stdout, again.stderr) == ("", "")


def test_no_endpoint_runs_a_file(webui: Server, tmp_path: Path) -> None:
    program = tmp_path / "classifier.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(program))
    webui.endpoint("ti_trainer_create", "my-program", "red star", 2, True)
    for path in (program, tmp_path):  # a folder without weights in .safetensors would be unpickled
        options = {"max_steps": 2, "preview_every": 0, "discriminator": str(path), "discriminator_weight": 1.0}
        with pytest.raises(RuntimeError, match="Discriminator: found"):
            webui.endpoint("ti_trainer_train", "my-program", str(DEMO), json.dumps(options))
    assert our_status(webui)["name"] != "my-program"


def test_every_endpoint_is_there(webui: Server) -> None:
    known = {each.get("api_name") for each in webui.api("/config")["dependencies"]}
    assert known >= {f"ti_trainer_{name}" for name in ENDPOINTS}


def test_generate_waits_while_we_train_and_then_draws_as_ever(webui: Server) -> None:
    before = generate(webui, HOSTS_OWN)
    started(webui, "my-wait")
    drawn: list[Any] = []
    waiting = threading.Thread(target=lambda: drawn.append(generate(webui, HOSTS_OWN)))
    waiting.start()
    waiting.join(5)
    assert not drawn
    assert our_status(webui)["status"] == "training"
    assert stopped(webui)["status"] == "stopped"
    waiting.join(60)
    assert np.array_equal(before, drawn[0])


def test_the_hosts_interrupt_and_progress_are_ours_too(webui: Server) -> None:
    started(webui, "my-interrupt", preview_every=20, save_cards=False)
    progress = webui.api("/sdapi/v1/progress")
    assert progress["state"]["job"].startswith("task(ti-trainer")
    assert 0 < progress["progress"] < 1
    until(lambda: webui.api("/sdapi/v1/progress")["current_image"] is not None)
    webui.api("/sdapi/v1/interrupt", {})
    until(lambda: our_status(webui)["status"] == "stopped")
    assert webui.api("/sdapi/v1/progress")["state"]["interrupted"] is False


def test_a_failure_gives_the_host_back_too(webui: Server) -> None:
    before = generate(webui, HOSTS_OWN)
    started(webui, "my-failure", learning_rate="1e30")
    until(lambda: our_status(webui)["status"] == "failed")
    assert "not a finite number" in our_status(webui)["message"]
    assert np.array_equal(before, generate(webui, HOSTS_OWN))


def test_reload_ui_keeps_what_was_learned_and_registers_nothing_twice(webui: Server, page: Page) -> None:
    """The host interrupts whatever runs when its page is made anew; the run is there still, and goes on."""
    started(webui, "my-reload")
    said = len(webui.printed())
    page.locator("#footer a", has_text="Reload UI").click()
    page.evaluate("() => { window.isOld = true; }")
    webui.wait_for("Startup time:", after=said)
    page.wait_for_function("() => !window.isOld", timeout=60_000)  # its page loads itself anew
    page.locator("#txt2img_generate").wait_for()
    assert page.locator("#tabs > .tab-nav button", has_text="Textual Inversion").count() == 1
    open_tab(page, "Train")
    until(lambda: status(page) == "stopped")
    step = our_status(webui)["step"]
    assert step > 0
    page.click("#ti_trainer_resume")
    until(lambda: our_status(webui)["step"] > step + 20)
    assert stopped(webui)["status"] == "stopped"


def test_previews_read_the_txt2img_tab(webui: Server, page: Page) -> None:
    webui.endpoint("ti_trainer_create", "my-preview", "red star", 2, True)
    page.fill("#txt2img_prompt textarea", "a drawing of my-preview at night")
    sampler = page.input_value("#txt2img_sampling input")
    for side in ("width", "height"):
        page.fill(f"#txt2img_{side} input[type=number]", "128")
    open_tab(page, "Train")
    page.click("#ti_trainer_train_refresh")
    page.fill("#ti_trainer_train_name input", "my-preview")
    page.press("#ti_trainer_train_name input", "Enter")
    fill(page, "train_images", str(DEMO))
    fill(page, "train_max_steps", "5")
    fill(page, "train_preview_every", "5")  # the form may hold what the run of an earlier test used
    page.locator("#ti_trainer_tabs .label-wrap", has_text="All options").click()
    page.click("#ti_trainer_train_from_txt2img input")
    page.click("#ti_trainer_train_start")
    until(lambda: our_status(webui)["name"] == "my-preview" and our_status(webui)["status"] == "done")
    run = Path(our_status(webui)["run"])
    settings = (run / "settings.json").read_text(encoding="utf-8")
    assert '"preview_prompt": "a drawing of my-preview at night"' in settings
    assert f'"preview_sampler": "{sampler}"' in settings

    assert Image.open(run / "images" / "my-preview-5.png").size == (128, 128)
