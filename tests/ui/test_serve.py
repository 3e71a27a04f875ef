"""The page served standalone and seen in Chromium: live, still, by itself, and gone with Ctrl-C."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import processes
from browser import complaints, launch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ti_trainer.errors import ConfigError
from ti_trainer.ui import gradio_compat
from ti_trainer.ui.app import Compressed, _listen

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.page

TOY = Path(__file__).with_name("toy.py")
ROOT = TOY.parents[2]
# What changes from one frame to the next: boxes, how faded they are, and anything that gradio lays over them.
WATCH = """() => {
    window.states = new Set();
    const overlays = ".ti-trainer .wrap.default, .ti-trainer .wrap.generating, .ti-trainer .wrap.translucent";
    const look = () => {
        const state = [...document.querySelectorAll(".toy-bar .ti-progress, .toy-below")].map((element) => {
            const { x, y, width, height } = element.getBoundingClientRect();
            let opacity = 1;
            for (let each = element; each; each = each.parentElement) opacity *= getComputedStyle(each).opacity;
            return [x, y, width, height, opacity].join(" ");
        });
        const over = [...document.querySelectorAll(overlays)].filter(
            (each) => each.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && each.clientHeight);
        window.states.add(state.join("; ") + " overlays " + over.length);
        requestAnimationFrame(look);
    };
    look();
}"""


def served(status: str = "idle") -> AbstractContextManager[tuple[str, subprocess.Popen[str]]]:
    """The toy page's address and process."""
    return processes.serving((TOY, 0, status))


def _steps(page: Page) -> int:
    return int(re.search(r"(\d+) / 1000", page.inner_text(".ti-numbers")).group(1))


def _wait_for(page: Page, step: int) -> None:
    page.wait_for_function(
        "step => parseInt(document.querySelector('.ti-numbers')?.innerText) >= step", arg=step, timeout=120_000
    )


@pytest.mark.gradio
def test_a_running_job_is_followed_without_flicker_or_jumps() -> None:
    with served("training") as (url, _), launch() as page:
        page.goto(url)
        _wait_for(page, 1)
        page.evaluate(WATCH)
        before, begun = _steps(page), time.monotonic()
        _wait_for(page, before + 5)
        assert time.monotonic() - begun > 4, "once a second"
        states = page.evaluate("[...window.states]")
        assert len(states) == 1, states
        assert states[0].endswith("overlays 0")
        assert " 1; " in states[0], "faded"
        page.locator("[role=tab], .tab-nav button").get_by_text("Second", exact=True).click()  # gradio 3 has no roles
        page.wait_for_function("() => /count [1-9]/.test(document.querySelector('.toy-count')?.innerText)")


def test_an_idle_page_asks_every_five_seconds_and_a_hidden_one_never() -> None:
    with served("idle") as (url, _), launch() as page:
        page.clock.install()
        page.goto(url)
        _wait_for(page, 1)
        page.clock.fast_forward(3_000)
        page.wait_for_timeout(300)
        assert "1 / 1000" in page.text_content(".ti-numbers")
        page.clock.fast_forward(2_000)
        _wait_for(page, 2)
        page.evaluate(
            "document.querySelector('.ti-trainer').parentElement.style.display = 'none'"
        )  # another tab of the host
        for _ in range(2):
            page.clock.fast_forward(5_000)
            page.wait_for_timeout(300)
        assert "2 / 1000" in page.text_content(".ti-numbers")
        page.evaluate("document.querySelector('.ti-trainer').parentElement.style.display = ''")
        _wait_for(page, 3)
        assert _steps(page) == 3


def test_a_reloaded_page_finds_everything_again() -> None:
    with served("training") as (url, _), launch() as page:
        for _ in range(2):
            page.goto(url)
            _wait_for(page, 1)
            assert _steps(page) < 3, "a new page starts from nothing seen"


def test_nothing_is_fetched_from_elsewhere_and_nothing_goes_wrong() -> None:
    with served() as (url, _), launch() as page:
        asked, heard = [], complaints(page)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        _wait_for(page, 1)
        outside = {each for each in asked if not each.startswith((url, "data:", "blob:"))}
        if gradio_compat.MAJOR < 6:  # it stands in gradio's own page, which works without it
            outside = {each for each in outside if "iframe-resizer" not in each}
        else:
            assert not heard
        assert not outside
        assert not page.locator("footer").first.is_visible()


@pytest.mark.gradio
def test_an_error_stands_below_its_entry() -> None:
    with served() as (url, _), launch() as page:
        page.goto(url)
        _wait_for(page, 1)
        entry = page.locator("#ti_trainer_train_learning_rate").locator("input, textarea").first
        entry.fill("")
        error = page.locator(".ti-field-error")
        error.wait_for()
        assert error.inner_text() == "Learning rate: found nothing, expected a number."
        assert 0 <= error.bounding_box()["y"] - entry.bounding_box()["y"] - entry.bounding_box()["height"] < 40
        entry.fill("0.005")
        error.wait_for(state="hidden")


@pytest.mark.parametrize(("width", "side_by_side"), [(390, False), (1280, True)])
def test_columns_fit_the_window(width: int, side_by_side: bool) -> None:
    with served() as (url, _), launch(width=width) as page:
        page.goto(url)
        _wait_for(page, 1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        form = page.locator("#ti_trainer_train_max_steps").bounding_box()
        assert (page.locator(".toy-below").first.bounding_box()["x"] > form["x"] + form["width"]) is side_by_side


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_ctrl_c_ends_it_quietly() -> None:
    with served("training") as (url, process), launch() as page:
        page.goto(url)
        _wait_for(page, 1)
        process.send_signal(signal.SIGINT)  # while a page is open
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "Traceback" not in said


def test_the_page_is_compressed_and_streams_are_not() -> None:
    def answered(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x" * 10_000)

    client = TestClient(Compressed(Starlette(routes=[Route("/", answered), Route("/queue/data", answered)])))
    assert client.get("/").headers["content-encoding"] == "gzip"
    assert "content-encoding" not in client.get("/queue/data").headers
    assert "content-encoding" not in client.get("/", headers={"accept-encoding": "identity"}).headers


def test_a_port_that_is_taken_is_refused_and_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} is already in use"):
            _listen("127.0.0.1", port)
    with _listen("127.0.0.1", None) as first, _listen("127.0.0.1", None) as second:
        assert 7860 <= first.getsockname()[1] < second.getsockname()[1]


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        _listen("192.0.2.1", None)
