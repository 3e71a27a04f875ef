"""The check of images in Chromium as people use it, on a separate page. Runs under every supported gradio.

As a program, `python test_image_check.py FOLDER` serves it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")  # the page is all that needs it
pytest.importorskip("imagehash")

import gradio as gr
import processes
from browser import complaints, launch
from fakes import TinyHost
from PIL import Image, ImageDraw, ImageEnhance

from ti_trainer.runs.job import Job
from ti_trainer.ui.app import serve
from ti_trainer.ui.gradio_compat import blocks
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import image_quality
from ti_trainer.ui.panels.image_quality import Findings

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

pytestmark = pytest.mark.page

ROOT = Path(__file__).parents[2]


def drawn(seed: int, size: int = 300) -> Image.Image:
    """A pattern of its own for each seed, with sharp edges."""
    image = Image.new("RGB", (size, size), (40 * seed % 255, 120, 200))
    draw = ImageDraw.Draw(image)
    for number in range(30):
        x, y, side = (hash((seed, number, part)) % size for part in (1, 2, 3))
        draw.rectangle((x, y, x + side // 4, y + side // 3), fill=(hash((number, seed)) % 255, 7 * number, 30 * seed % 255))
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good images, one of them also brighter and smaller, one unreadable, one long."""
    here = tmp_path / "Bilder für später"
    here.mkdir()
    for name, image in {
        "a.png": drawn(1),
        "a bright.png": ImageEnhance.Brightness(drawn(1)).enhance(1.1).resize((280, 280)),
        "b.png": drawn(2),
        "long.png": drawn(3, 800).crop((0, 0, 800, 300)),
    }.items():
        image.save(here / name)
    (here / "a bright.txt").write_text("its caption", encoding="utf-8")
    (here / "broken.png").write_bytes(b"no image")
    return here


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with processes.serving((__file__, tmp_path)) as (address, _):
        yield address


def until(wanted: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def press(tab: Tab, name: str) -> None:
    tab.click(f"#ti_trainer_quality_{name}")


def says(tab: Tab, text: str) -> None:
    tab.locator("#ti_trainer_quality_message").get_by_text(text).first.wait_for()


def check_says(tab: Tab, text: str) -> None:
    """Click until the answer is there: gradio 3 loses a click while the stream of the answer before is being closed."""
    from playwright.sync_api import TimeoutError as NotThere

    answer = tab.locator("#ti_trainer_quality_message").get_by_text(text).first

    def answered() -> bool:
        press(tab, "start")
        with suppress(NotThere):
            answer.wait_for(timeout=5000)
        return answer.is_visible()

    until(answered)


def labels(tab: Tab) -> list[str]:
    """Each card's mark, name and reasons."""
    cards = tab.locator("#ti_trainer_quality_images .ti-card").all()
    marks = {"true": "✕", "false": "✓"}
    return [f"{marks[card.get_attribute('aria-pressed')]} {card.inner_text()}".replace("\n", ": ") for card in cards]


def fill(tab: Tab, name: str, text: str) -> None:
    entry = tab.locator(f"#ti_trainer_quality_{name}").locator("textarea, input").first
    entry.wait_for()
    entry.fill(text)
    entry.press("Tab")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.gradio
def test_images_are_found_marked_excluded_and_restored(url: str, folder: Path) -> None:
    before = names(folder)
    with launch(1400, 1000) as tab:
        heard = complaints(tab)
        tab.goto(url)
        fill(tab, "folder", str(folder))
        fill(tab, "width", "250")
        fill(tab, "height", "250")
        press(tab, "start")
        says(tab, "5 images checked: 4 with possible problems, 2 of them marked.")
        until(lambda: len(labels(tab)) == 4)
        assert labels(tab)[:2] == ["✓ a.png: the best of 2 alike", "✕ a bright.png: nearly the same as a.png"]
        assert labels(tab)[2].startswith("✕ broken.png: cannot be read")
        assert labels(tab)[3] == "✓ long.png: longer than 2:1"
        images = tab.locator("#ti_trainer_quality_images img")
        for mark, count in (("✓", 1), ("✕", 2), ("✓", 1)):  # the same image again and again
            images.nth(2).click()
            assert labels(tab)[2].startswith(mark)
            tab.get_by_role("button", name=f"Exclude {count} marked").wait_for()
        images.nth(3).click()
        tab.get_by_role("button", name="Exclude 2 marked").click()
        says(tab, "2 images moved to")
        until(lambda: len(labels(tab)) == 1)
        assert names(folder) == ["a.png", "b.png", "broken.png"]
        assert names(folder / "left out") == ["a bright.png", "a bright.txt", "long.png"]
        press(tab, "exclude")
        says(tab, "No image is marked")
        press(tab, "restore")
        says(tab, "2 images restored")
        assert names(folder) == before
        press(tab, "restore")
        says(tab, "There are no excluded images")
        assert [each for each in heard if "ERR_NAME_NOT_RESOLVED" not in each] == []


def test_what_cannot_be_checked_is_said(url: str, folder: Path) -> None:
    with launch(1400, 1000) as tab:
        tab.goto(url)
        for wrong, answer in (
            ("", "enter the path of a folder"),
            (str(folder / "nowhere"), "does not exist"),
            ("forbidden", "not for"),
        ):
            fill(tab, "folder", wrong)
            check_says(tab, answer)
        fill(tab, "folder", str(folder))
        fill(tab, "width", "")
        check_says(tab, "5 images checked")


def test_a_phone_needs_no_sideways_scrolling(url: str, folder: Path) -> None:
    with launch(390, 800) as tab:
        tab.goto(url)
        fill(tab, "folder", str(folder))
        press(tab, "start")
        tab.locator(".ti-card").nth(3).wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_who_goes_away_stops_the_check_and_sees_how_far_it_is_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []

    def check(folder: Path, *sizes: int, progress: object, should_stop: Callable[[], bool]) -> None:
        while not should_stop():
            checked.append(1)
            time.sleep(0.01)

    monkeypatch.setattr(image_quality, "check", check)
    going = image_quality._check(Page(TinyHost(tmp_path), Job()), Findings(), str(tmp_path), 1, 1)
    assert "ti-bar" in next(going)[1]
    going.close()  # waits for the check, which has to stop
    assert checked


def test_what_is_fine_is_praised(tmp_path: Path) -> None:
    for seed in (1, 2):
        drawn(seed).save(tmp_path / f"{seed}.png")
    *_, (found, message, cards, numbers, _) = image_quality._check(
        Page(TinyHost(tmp_path), Job()), Findings(), str(tmp_path), 0, 0
    )
    assert "ti-good" in message
    assert "2 images checked, no problems found" in message
    assert (found.shown, cards, numbers) == ((), "", "")


def test_small_is_what_is_smaller_than_the_model_was_made_for(tmp_path: Path) -> None:
    for size in (8, 24):
        drawn(1, 300).resize((size, size)).save(tmp_path / f"{size}.png")

    def small(width: int | None) -> list[str]:
        *_, (found, *_) = image_quality._check(Page(TinyHost(tmp_path), Job()), Findings(), str(tmp_path), width, width)
        return [path.name for path, reasons in found.report.reasons.items() if any("small" in each for each in reasons)]

    assert (small(0), small(None), sorted(small(32)), small(1)) == (["8.png"], ["8.png"], ["24.png", "8.png"], [])


def main(folder: Path) -> None:
    with blocks("check") as made, gr.Column(elem_classes=["ti-trainer"]):
        image_quality.panel(Page(TinyHost(folder), Job()))
    serve(made, ready=lambda url: print(url, flush=True))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
