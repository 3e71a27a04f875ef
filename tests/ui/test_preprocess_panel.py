"""The panel Preprocess in Chromium, from photos to the Train panel. Runs under every gradio that is supported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from browser import complaints, launch
from fakes import TinyHost
from PIL import Image
from test_page import Served, choose, entry, fill, says, served, show, until

from ti_trainer.errors import ConfigError
from ti_trainer.runs.job import Job
from ti_trainer.ui.gradio_compat import blocks
from ti_trainer.ui.page import Page as Site
from ti_trainer.ui.panels import preprocess

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.page

__all__ = ["served"]  # a fixture


@pytest.fixture
def page(served: Served) -> Iterator[Page]:
    with launch() as page:
        served.open(page, "Preprocess")
        noise = complaints(page)  # gradio 3 itself asks for fonts while it loads
        fill(page, "preprocess_source", str(served.images))
        fill(page, "preprocess_destination", str(made(served)))
        for side in ("width", "height"):
            fill(page, f"preprocess_{side}", "64")
        yield page
        assert noise == []


def made(served: Served) -> Path:
    return served.folder / "fertige Bilder"


def press(page: Page, name: str) -> None:
    page.locator(f"#ti_trainer_preprocess_{name}").click()


def tick(page: Page, name: str) -> None:
    page.locator(f"#ti_trainer_preprocess_{name} input[type=checkbox]").first.check()


def status(page: Page) -> str:
    return page.locator("#ti_trainer_preprocess_progress .ti-progress").first.get_attribute("data-status")


def finish(page: Page, wanted: str = "done") -> None:
    try:
        until(lambda: status(page) == wanted, seconds=60)
    except AssertionError as error:
        said = [page.locator(f"#ti_trainer_preprocess_{part}").inner_text() for part in ("progress", "message", "result")]
        message = f"it is {status(page)}, expected {wanted}: {said}"
        raise AssertionError(message) from error


def unfold(page: Page, words: str) -> None:
    page.locator(".label-wrap:visible").get_by_text(words, exact=True).first.click()


@pytest.mark.gradio
def test_from_photos_to_training(served: Served, page: Page) -> None:
    (served.images / "broken.png").write_text("no image")
    tick(page, "flip")
    unfold(page, "Captions")
    choose(page, "preprocess_existing_captions", "copy")
    press(page, "preview")
    says(page, "preprocess_message", "first 6 of 7 images")
    shown = page.locator("#ti_trainer_preprocess_images img:visible")
    until(lambda: shown.count() == 18)  # each photo, its image, the mirrored one
    assert all(page.evaluate("each => each.naturalWidth > 0", each) for each in shown.element_handles())
    says(page, "preprocess_images", "number 0, <b>bold</b>")
    assert not made(served).exists()

    press(page, "start")
    finish(page)
    says(page, "preprocess_result", "Made 12 images from 6 source images")
    says(page, "preprocess_result", "broken.png")
    assert len(list(made(served).glob("*.png"))) == len(list(made(served).glob("*.txt"))) == 12
    with Image.open(made(served) / "3.png") as image:
        assert image.size == (64, 64)

    press(page, "start")
    says(page, "preprocess_result", "the same options: 6 source images")

    press(page, "to_captions")
    until(lambda: entry(page, "captions_folder").is_visible())
    assert entry(page, "captions_folder").input_value() == str(made(served))
    page.locator("#ti_trainer_captions_gallery img").nth(11).wait_for()  # loaded at once
    assert entry(page, "shared_folder").input_value() == str(made(served)), "one folder for all panels"
    show(page, "Create dataset")
    opened, place = (page.locator(f".ti-masks [data-part={part}]") for part in ("folder", "place"))
    for _ in range(2):  # at first, and in the place of another folder
        press(page, "to_masks")
        until(lambda: entry(page, "masks_folder").is_visible())
        until(lambda: opened.inner_text() == str(made(served)))
        assert entry(page, "masks_folder").input_value() == str(made(served))
        place.get_by_text("1 of 12: 0-flipped.png (no mask)").wait_for()
        choose(page, "masks_folder", str(served.images))
        until(lambda: opened.inner_text() == str(served.images))
        show(page, "Create dataset")
    press(page, "to_train")
    until(lambda: entry(page, "train_images").is_visible())
    assert entry(page, "train_images").input_value() == str(made(served))
    unfold(page, "All options")
    assert entry(page, "train_width").input_value() == "64"


def test_what_is_wrong_stands_beside_it(served: Served, page: Page) -> None:
    fill(page, "preprocess_destination", str(served.images))
    press(page, "start")
    says(page, "preprocess_message", "Fix the highlighted fields first.")
    page.get_by_text("is the same as the destination").first.wait_for()
    fill(page, "preprocess_destination", str(made(served)))
    fill(page, "preprocess_width", "65")
    press(page, "start")
    page.get_by_text("expected a multiple of 8").first.wait_for()
    fill(page, "preprocess_width", "64.5")
    press(page, "start")
    page.get_by_text("found 64.5, expected a whole number").first.wait_for()
    fill(page, "preprocess_width", "64")
    fill(page, "preprocess_source", "")
    press(page, "preview")
    page.get_by_text("Enter the path of the source directory").first.wait_for()
    assert not made(served).exists()
    assert status(page) == "idle"


def test_interrupted_it_goes_on(served: Served, page: Page) -> None:
    image = Image.effect_noise((1600, 1200), 80)
    for number in range(80):
        image.save(served.images / f"large {number}.jpg")
    press(page, "start")
    until(lambda: len(list(made(served).glob("*.png"))) > 4)
    press(page, "stop")
    finish(page, "stopped")
    says(page, "preprocess_result", "Click Preprocess again to continue")
    files = list(made(served).glob("*.png"))
    assert 4 < len(files) < 86
    for path in files:
        with Image.open(path) as each:
            each.load()
    press(page, "start")
    finish(page)
    assert len(list(made(served).glob("*.png"))) == 86


def test_a_way_to_crop_explains_itself_and_shows_why(served: Served, page: Page) -> None:
    photo = Image.new("RGB", (300, 120), "gray")
    photo.paste(Image.effect_noise((40, 60), 100), (240, 30))
    photo.save(served.images / "0 aside.png")
    for path in served.images.glob("[0-9].*"):
        path.unlink()
    choose(page, "preprocess_resize", "Auto focal point crop")
    page.get_by_text("Crop around faces, edges and detail").first.wait_for()
    tick(page, "debug_image")
    press(page, "preview")
    says(page, "preprocess_images", "focal points")
    press(page, "start")
    finish(page)
    assert (made(served) / "debug" / "0 aside-debug.png").exists()
    with Image.open(made(served) / "0 aside.png") as crop:
        assert len(crop.convert("L").getcolors()) > 50  # the noise is in it, the middle of the photo is plain
    choose(page, "preprocess_resize", "Aspect-ratio buckets")
    page.get_by_text("Keep each image's aspect ratio").first.wait_for()
    fill(page, "preprocess_width", "128")
    fill(page, "preprocess_height", "128")
    press(page, "start")
    until(lambda: Image.open(made(served) / "0 aside.png").size == (192, 64))  # 2.5 is nearer to 3 than to 2
    finish(page)
    press(page, "to_train")
    until(lambda: entry(page, "train_images").is_visible())
    unfold(page, "All options")
    assert page.locator("#ti_trainer_train_buckets input").first.is_checked()


def test_a_tagger_writes_captions(served: Served, page: Page, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from fakes import colour_tagger

    (served.images / "0.txt").unlink()
    unfold(page, "Captions")
    page.locator("#ti_trainer_preprocess_captioners").get_by_text("WD14").click()
    press(page, "start")
    says(page, "preprocess_result", "selected_tags.csv")
    assert status(page) == "failed"
    page.locator("#ti_trainer_preprocess_message .ti-notice").wait_for(state="detached")  # before, a press is a double one
    folder = colour_tagger(tmp_path / "tagger")
    unfold(page, "Tags")
    page.wait_for_timeout(1000)  # gradio 6 empties boxes soon after it has made them
    fill(page, "preprocess_tagger", str(folder))
    entry(page, "preprocess_tagger").press("Tab")
    page.wait_for_timeout(500)
    assert entry(page, "preprocess_tagger").input_value() == str(folder)
    press(page, "start")
    finish(page)
    says(page, "preprocess_result", "with a caption")
    assert (made(served) / "0.txt").read_text() == "blue sky"
    assert (made(served) / "1.txt").read_text() == "number 1, <b>bold</b>", "what was there is copied"


def test_visitors_from_the_network_get_no_further_than_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "theirs", tmp_path / "mine"
    for folder in (inside / "photos", outside / "tagger"):
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / "a.png")
    monkeypatch.chdir(outside)  # the program may be started anywhere
    host = TinyHost(tmp_path)

    def check_folder(folder: Path) -> None:
        if not folder.resolve().is_relative_to(inside):
            raise ConfigError(f"{folder} is not for visitors")

    host = replace(host, is_public=True)
    monkeypatch.setattr(TinyHost, "check_folder", lambda _, folder: check_folder(folder))
    with blocks("test"):
        made = preprocess.panel(Site(host, Job()))

    def wrong(**changes: object) -> dict[str, str]:
        given = {name: widget.value for name, widget in made.widgets.items()}
        given |= {"source": str(inside / "photos"), "destination": str(inside / "made"), **changes}
        return made.work({made.widgets[name]: value for name, value in given.items()})[1]

    assert wrong() == {}
    assert "not for visitors" in wrong(source=str(outside / "tagger"))["source"]
    assert "not for visitors" in wrong(destination=str(outside / "made"))["destination"]
    for tagger in (outside / "tagger", f'"{outside}/tagger"', f" {outside}/tagger", "tagger", "~"):
        assert "not for visitors" in str(wrong(tagger=str(tagger)))
        assert "not for visitors" in str(wrong(masks=str(tagger)))
        assert wrong(blip_model=str(tagger))
    assert "is the source" in wrong(masks=f' "{inside}/photos"')["masks"]
    assert "download" in wrong(blip_model="somebody/something-large")["blip_model"]
    assert "expected the path" in str(wrong(source="a\0b"))
