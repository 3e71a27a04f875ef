"""Masks painted in Chromium as people do it, on a separate page. Runs under every supported gradio.

As a program, `python test_mask_brush.py FOLDER` serves it, on the embedded model where diffusers is there.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import gradio as gr
import numpy as np
import processes
from browser import complaints, launch
from fakes import TinyHost, TinyModel
from PIL import Image, ImageDraw

from ti_trainer.data import mask_files
from ti_trainer.runs.job import Job
from ti_trainer.ui.app import serve
from ti_trainer.ui.gradio_compat import blocks
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import mask_brush

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

pytestmark = pytest.mark.page

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT = 120, 80
CANVAS = "#ti_trainer_masks_canvas"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images: a has no mask, b one of DreamArtist's, whose left half counts 1, c one of OneTrainer's."""
    here = tmp_path / "Bilder für später"
    here.mkdir()
    for name, colour in (("a", "steelblue"), ("b", "seagreen"), ("c", "tan")):
        image = Image.new("RGB", (WIDTH, HEIGHT), colour)
        ImageDraw.Draw(image).ellipse((20, 20, 60, 60), fill="firebrick")
        image.save(here / f"{name}.png")
    half = Image.new("L", (WIDTH, HEIGHT))
    half.paste(127, (0, 0, WIDTH // 2, HEIGHT))
    half.save(here / "b_att.png")
    Image.new("L", (WIDTH, HEIGHT), 51).save(here / "c-masklabel.png")
    return here


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One page for all: it keeps nothing of those who use it."""
    with processes.serving((__file__, tmp_path_factory.mktemp("host"))) as (address, _):
        yield address


def until(wanted: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def press(tab: Tab, name: str) -> None:
    tab.click(f".ti-masks [data-do={name}]")


def says(tab: Tab, text: str) -> None:
    tab.locator(".ti-masks [data-part=message]").get_by_text(text).first.wait_for()


def at(tab: Tab, text: str) -> None:
    tab.locator(".ti-masks [data-part=place]").get_by_text(text).wait_for()


def slide(tab: Tab, name: str, value: float) -> None:
    tab.locator(f"#ti_trainer_masks_{name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', { bubbles: true })); }", value
    )


def enter(tab: Tab, folder: str) -> None:
    tab.locator("#ti_trainer_masks_folder").locator("textarea, input").first.fill(folder)
    tab.click("#ti_trainer_masks_open")


def open_folder(tab: Tab, url: str, folder: Path | str, first: str) -> list[str]:
    """Complaints of the page from now on."""
    heard = complaints(tab)
    tab.goto(url)
    tab.wait_for_selector(".ti-masks[data-ready]", state="attached")
    enter(tab, str(folder))
    at(tab, first)
    return heard


def stroke(tab: Tab, *points: tuple[float, float], button: str = "left") -> None:
    """From point to point of the image, in its own px."""
    tab.locator(CANVAS).scroll_into_view_if_needed()
    box = tab.locator(CANVAS).bounding_box()
    places = [(box["x"] + x * box["width"] / WIDTH, box["y"] + y * box["height"] / HEIGHT) for x, y in points]
    tab.mouse.move(*places[0])
    tab.mouse.down(button=button)
    for place in places[1:]:
        tab.mouse.move(*place, steps=5)
    tab.mouse.up(button=button)


def greys(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        assert (opened.mode, opened.size, opened.format) == ("L", (WIDTH, HEIGHT), "PNG")
        return np.asarray(opened)


def marks(tab: Tab) -> list[str]:
    return [each.get_attribute("data-mark") for each in tab.locator(".ti-masks-strip button").all()]


@pytest.mark.gradio
def test_what_is_painted_is_saved_where_it_was_painted_and_nothing_elsewhere(url: str, folder: Path) -> None:
    with launch(1300, 1000) as tab:
        heard = open_folder(tab, url, folder, "1 of 3: a.png (no mask)")
        assert marks(tab) == ["", "masked", "masked"]
        press(tab, "save")
        says(tab, "The mask is empty")
        slide(tab, "size", 10)  # 12 px
        stroke(tab, (20, 20), (60, 20))
        slide(tab, "weight", 5)
        stroke(tab, (100, 60))
        stroke(tab, (10, 70), (110, 70))
        press(tab, "undo")
        stroke(tab, (58, 10), (58, 30), button="right")  # erases
        at(tab, "a.png (unsaved)")
        assert marks(tab)[0] == "unsaved"
        press(tab, "save")
        says(tab, "Saved a_att.png.")
        at(tab, "1 of 3: a.png (a_att.png)")
        saved = greys(folder / "a_att.png")
        assert (saved[16:24, 20:50] == 127).all()
        assert (saved[57:63, 97:103] == 255).all()
        assert not saved[70, 20:90].any()  # undone
        assert not saved[12:28, 54:62].any()  # erased
        y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        near = np.hypot(x - x.clip(20, 60), y - 20) < 8
        assert not saved[~near & (np.hypot(x - 100, y - 60) > 8)].any()
        assert [each for each in heard if "ERR_NAME_NOT_RESOLVED" not in each] == []


def test_a_mask_is_edited_and_drafts_wait_while_other_images_are_looked_at(url: str, folder: Path) -> None:
    before = greys(folder / "b_att.png")
    with launch(1300, 1000) as tab:
        open_folder(tab, url, folder, "a.png (no mask)")
        stroke(tab, (10, 10))
        tab.keyboard.press("ArrowRight")
        at(tab, "2 of 3: b.png (b_att.png)")
        assert marks(tab) == ["unsaved", "masked", "masked"]
        slide(tab, "weight", 3)
        slide(tab, "size", 10)
        stroke(tab, (90, 40))
        tab.check("#ti_trainer_masks_advance")
        press(tab, "save")
        at(tab, "3 of 3: c.png (c-masklabel.png)")
        says(tab, "Saved b_att.png.")
        saved = greys(folder / "b_att.png")
        assert (saved[38:42, 88:92] == 191).all()
        assert (saved[:, :80] == before[:, :80]).all()
        assert not saved[:20, 80:].any()
        assert tab.locator("#ti_trainer_masks_weight").get_attribute("max") == "1"  # the maximum of OneTrainer's masks
        assert tab.get_by_text("have weights up to 1").is_visible()
        stroke(tab, (60, 40))
        press(tab, "save")
        says(tab, "Saved c-masklabel.png.")
        saved = greys(folder / "c-masklabel.png")
        assert (saved[38:42, 58:62] == 255).all()
        assert (saved[:20] == 51).all()
        tab.click(".ti-masks-strip button")
        at(tab, "1 of 3: a.png (unsaved)")
        tab.locator(CANVAS).focus()
        tab.keyboard.press("Control+z")
        at(tab, "a.png (no mask)")
        assert marks(tab) == ["", "masked", "masked"]
        assert not (folder / "a_att.png").exists()


def test_fill_invert_delete_and_spread(url: str, folder: Path) -> None:
    with launch(1300, 1000) as tab:
        heard = open_folder(tab, url, folder, "a.png (no mask)")
        slide(tab, "size", 10)
        for name in ("fill", "eraser"):
            press(tab, name)
        stroke(tab, (100, 40))
        for name in ("invert", "undo", "redo", "save"):
            press(tab, name)
        says(tab, "Saved a_att.png.")
        saved = greys(folder / "a_att.png")
        assert ((saved[38:42, 98:102] == 127).all(), saved[:, :90].any()) == (True, False)
        press(tab, "delete")
        says(tab, "was removed, and moved to")
        at(tab, "a.png (no mask)")
        assert (greys(folder / "left out/masks/a_att.png") == saved).all()
        assert not (folder / "a_att.png").exists()
        for name in ("undo", "clear", "brush"):
            press(tab, name)
        stroke(tab, (40, 40))  # in the red ellipse
        press(tab, "spread")
        says(tab, "now covers similar areas")
        assert not (folder / "a_att.png").exists()
        press(tab, "save")
        says(tab, "Saved a_att.png.")
        spread = greys(folder / "a_att.png")
        press(tab, "undo")
        press(tab, "save")
        until(lambda: not (greys(folder / "a_att.png") == spread).all())
        painted = greys(folder / "a_att.png").astype(float)
        assert not painted[:30].any()
        assert spread[24:30, 38:42].mean() > spread[5:15, 90:].mean()  # what is red, too, where nothing was painted
        assert [each for each in heard if "ERR_NAME_NOT_RESOLVED" not in each] == []


def test_a_phone_paints_with_a_finger_and_needs_no_sideways_scrolling(url: str, folder: Path) -> None:
    for number in range(20):
        Image.new("RGB", (300, 200)).save(folder / f"{number:03}.png")
    with launch(390, 800, dark=True) as tab:
        open_folder(tab, url, folder, "1 of 23: 000.png")
        tab.click(".ti-masks-strip button >> nth=20")
        at(tab, "21 of 23: a.png")
        tab.evaluate(
            """(where) => {
                const [canvas, send] = [document.querySelector(where), (type, x) => {
                    const seen = canvas.getBoundingClientRect();
                    const [clientX, clientY] = [seen.left + x * seen.width, seen.top + seen.height / 2];
                    const of = { pointerId: 7, pointerType: "touch", isPrimary: true, bubbles: true, button: 0 };
                    canvas.dispatchEvent(new PointerEvent(type, { clientX, clientY, ...of }));
                }];
                canvas.setPointerCapture = () => {};
                send("pointerdown", 0.25); send("pointermove", 0.5); send("pointercancel", 0.5);
                send("pointerdown", 0.5); send("pointermove", 0.75); send("pointerup", 0.75);
            }""",
            CANVAS,
        )
        press(tab, "save")
        says(tab, "Saved a_att.png.")
        saved = greys(folder / "a_att.png")
        assert (saved[40, 58:92] == 127).all()
        assert not saved[40, :50].any()  # that was cancelled
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_what_cannot_be_opened_is_said(url: str, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "c-masklabel.png").write_bytes(b"no mask")
    with launch(1300, 1000) as tab:
        open_folder(tab, url, folder, "1 of 4: a.png")
        assert tab.locator(".ti-masks [data-part=folder]").inner_text() == str(folder)
        stroke(tab, (20, 20))
        for wrong, answer in (
            ("", "enter the path of a folder"),
            (str(folder / "nowhere"), "does not exist"),
            ("forbidden", "not for"),
        ):
            enter(tab, wrong)
            says(tab, answer)
            assert not tab.locator(".ti-masks [data-part=workspace]").is_visible()  # nothing is painted under a wrong name
        enter(tab, str(folder))
        at(tab, "1 of 4: a.png (unsaved)")
        assert marks(tab) == ["unsaved", "masked", "", "masked"]
        press(tab, "next")
        at(tab, "b.png")
        press(tab, "next")
        says(tab, "broken.png cannot be read")
        press(tab, "next")
        says(tab, "c-masklabel.png cannot be read")
        at(tab, "4 of 4: c.png")


def test_a_first_image_that_cannot_be_read_shows_nothing_in_its_place(url: str, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "damaged"
    other.mkdir()
    (other / "1.png").write_bytes(b"no image")
    shutil.copy(folder / "a.png", other / "2.png")
    with launch(1300, 1000) as tab:
        heard = open_folder(tab, url, folder, "a.png (no mask)")
        press(tab, "fill")
        enter(tab, str(other))
        says(tab, "1.png cannot be read")
        says(tab, "Repair it, or move it out of the folder")
        assert not tab.locator(".ti-masks [data-part=image]").is_visible()
        assert not tab.locator(CANVAS).is_visible()
        assert tab.locator(".ti-masks [data-part=place]").inner_text() == ""
        for name in ("save", "fill", "spread", "delete", "undo"):
            assert tab.locator(f".ti-masks [data-do={name}]").is_disabled(), name
        press(tab, "next")
        at(tab, "2 of 2: 2.png (no mask)")
        assert tab.locator(CANVAS).is_visible()
        press(tab, "fill")
        press(tab, "save")
        says(tab, "Saved 2_att.png")
        assert not list(folder.glob("a_att*"))
        assert [each for each in heard if "ERR_NAME_NOT_RESOLVED" not in each] == []


def test_a_mask_of_onetrainers_stays_one_when_it_is_deleted_brought_back_or_replaced(url: str, folder: Path) -> None:
    before = greys(folder / "c-masklabel.png")
    with launch(1300, 1000) as tab:
        open_folder(tab, url, folder, "a.png (no mask)")
        tab.click(".ti-masks-strip button >> nth=2")
        at(tab, "c.png (c-masklabel.png)")
        press(tab, "delete")
        at(tab, "c.png (no mask)")
        press(tab, "undo")
        press(tab, "save")
        says(tab, "Saved c-masklabel.png.")
        assert (greys(folder / "c-masklabel.png") == before).all()
        press(tab, "delete")
        at(tab, "c.png (no mask)")
        press(tab, "fill")
        press(tab, "save")
        says(tab, "Saved c-masklabel.png.")
        assert (greys(folder / "c-masklabel.png") == 255).all()
        press(tab, "invert")
        stroke(tab, (20, 20))  # a draft of OneTrainer's, while somebody puts one of DreamArtist's there
        shutil.copy(folder / "b_att.png", folder / "c_att.png")
        enter(tab, str(folder))
        at(tab, "a.png (no mask)")
        tab.click(".ti-masks-strip button >> nth=2")
        at(tab, "c.png (unsaved)")
        assert tab.get_by_text("have weights up to 1").is_visible()
        press(tab, "save")
        says(tab, "Saved c-masklabel.png.")
        assert mask_files.spec_of(mask_files.mask_of(folder / "c.png")) == "-masklabel"
        assert greys(folder / "c-masklabel.png")[20, 20] == 255
        assert not list(folder.glob("c_att*"))


def test_what_was_before_a_spread_is_kept_while_a_mask_is_retouched_and_not_when_it_is_painted_anew(
    url: str, folder: Path
) -> None:
    before = folder / "b_att.unspread"
    shutil.copy(folder / "b_att.png", before)
    with launch(1300, 1000) as tab:
        open_folder(tab, url, folder, "a.png (no mask)")
        press(tab, "next")
        at(tab, "b.png (b_att.png)")
        stroke(tab, (90, 40))
        press(tab, "clear")
        press(tab, "undo")
        press(tab, "save")
        says(tab, "Saved b_att.png.")
        assert before.exists()
        press(tab, "clear")
        for x in range(20, 65):  # more steps than can be taken back
            stroke(tab, (x, 40))
        press(tab, "save")
        at(tab, "b.png (b_att.png)")
        assert not before.exists()
        assert (folder / "left out/masks/b_att.unspread").exists()


def test_requests_that_the_script_would_not_send_are_refused(tmp_path: Path, folder: Path) -> None:
    page = Page(TinyHost(tmp_path), Job())
    request = {"id": "1", "do": "save", "folder": str(folder), "name": "a.png", "kind": "_att"}
    assert json.loads(mask_brush._answer(page, json.dumps({**request, "do": "load"})))["width"] == WIDTH
    whole = mask_files.packed(Image.new("L", (WIDTH, HEIGHT), 9))
    for wrong, reason in (
        ({"name": "../a.png"}, "no image"),
        ({"name": None}, "invalid request"),
        ({"do": "format"}, "invalid request"),
        ({"folder": "forbidden"}, "not for the page"),
        ({"kind": "/../a_att", "levels": whole}, "expected one of _att"),
        ({"kind": None, "levels": whole}, "invalid request"),
        ({"levels": mask_files.packed(Image.new("L", (9, 9)))}, "found 81 greys"),
        ({"levels": "x" * mask_brush.MAX_REQUEST}, "invalid request"),
    ):
        answer = json.loads(mask_brush._answer(page, json.dumps({**request, **wrong})))
        assert (answer["failed"], reason in answer["message"]) == (True, True), answer
    assert "invalid request" in json.loads(mask_brush._answer(page, "[1"))["message"]
    busy = Page(TinyHost(tmp_path), SimpleNamespace(snapshot=lambda: SimpleNamespace(active=True)))
    answer = json.loads(mask_brush._answer(busy, json.dumps({**request, "do": "spread"})))
    assert "a training run is active" in answer["message"]
    assert not (folder / "a_att.png").exists()


def test_a_thousand_images_are_opened_at_once(tmp_path: Path) -> None:
    for number in range(1000):
        path = tmp_path / f"{number:04}.jpg"
        if number:
            path.hardlink_to(tmp_path / "0000.jpg")
        else:
            Image.effect_noise((1500, 1000), 40).convert("RGB").save(path)
    begin, page = time.process_time(), Page(TinyHost(tmp_path), Job())
    assert len(json.loads(mask_brush._open(page, str(tmp_path)))["images"]) == 1000
    request = {"id": "1", "do": "thumbs", "folder": str(tmp_path), "from": 40}
    thumbs = json.loads(mask_brush._answer(page, json.dumps(request)))["thumbs"]
    assert (len(thumbs), thumbs[0][0]) == (mask_brush.THUMBS_PER_REQUEST, "0040.jpg")
    assert time.process_time() - begin < 5


def model() -> TinyModel:
    if find_spec("diffusers") is None:
        return TinyModel()
    from ti_trainer.hosts.diffusers import loading

    return loading.load("embedded", "cpu")


def main(folder: Path) -> None:
    with blocks("masks") as made, gr.Column(elem_classes=["ti-trainer"]):
        mask_brush.panel(Page(TinyHost(folder, model()), Job()))
    serve(made, ready=lambda url: print(url, flush=True))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
