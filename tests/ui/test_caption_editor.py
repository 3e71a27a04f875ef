"""The caption editor in Chromium as people use it, on a separate page. Runs under every supported gradio.

As a program, `python test_caption_editor.py FOLDER [fixed]` serves it; `fixed`: as for visitors from the network.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import gradio as gr
import processes
from browser import complaints, launch
from fakes import TinyHost
from PIL import Image

from ti_trainer.data import caption_edits
from ti_trainer.errors import ConfigError
from ti_trainer.runs.job import Job
from ti_trainer.ui.app import serve
from ti_trainer.ui.gradio_compat import blocks
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import caption_editor, caption_handlers
from ti_trainer.ui.panels.caption_view import PAGE_SIZE, EditorState, Inputs

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

pytestmark = pytest.mark.page

ROOT = Path(__file__).parents[2]
TEXTS = ("my cat, grass, <b>sun</b>", "my cat, sofa", "my cat, grass", None)
Serve = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    here = tmp_path / "Bilder für später"
    here.mkdir()
    for number, text in enumerate(TEXTS):
        Image.new("RGB", (60, 40), (60 * number, 90, 200 - 50 * number)).save(here / f"{number}-red toy.png")
        if text is not None:
            (here / f"{number}-red toy.txt").write_text(text, encoding="utf-8")
    return here


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Serve]:
    """Serves the panel in a process of its own; its address."""
    with ExitStack() as running:
        yield lambda *options: running.enter_context(processes.serving((__file__, tmp_path, *options)))[0]


def until(wanted: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def entry(tab: Tab, name: str) -> object:
    return tab.locator(f"#ti_trainer_captions_{name}").locator("textarea, input").first


def press(tab: Tab, name: str) -> None:
    tab.click(f"#ti_trainer_captions_{name}")


def says(tab: Tab, name: str, text: str) -> None:
    tab.locator(f"#ti_trainer_captions_{name}").get_by_text(text).first.wait_for()


def labels(tab: Tab) -> list[str]:
    return tab.locator("#ti_trainer_captions_gallery .caption-label").all_inner_texts()


def tags(tab: Tab, name: str = "tags") -> list[str]:
    return [each.strip() for each in tab.locator(f"#ti_trainer_captions_{name} label").all_inner_texts()]


def tick(tab: Tab, tag: str) -> None:
    tab.locator("#ti_trainer_captions_tags label").get_by_text(tag, exact=True).first.click()


def sift(tab: Tab, name: str, tag: str) -> None:
    entry(tab, name).click()
    tab.locator("[role=option], .options .item").get_by_text(tag).first.click()
    entry(tab, name).press("Escape")


def unfold(tab: Tab, title: str) -> None:
    tab.locator(".label-wrap").get_by_text(title, exact=True).click()


def opened(tab: Tab, url: str, folder: Path) -> list[str]:
    """With the folder loaded; complaints of the page from now on."""
    heard = complaints(tab)
    tab.goto(url)
    entry(tab, "folder").wait_for()
    entry(tab, "folder").fill(str(folder))
    press(tab, "load")
    until(lambda: len(labels(tab)) == len(TEXTS))
    return [each for each in heard if "ERR_NAME_NOT_RESOLVED" not in each]


def on_disk(folder: Path) -> dict[str, str]:
    return {path.stem[0]: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}


@pytest.mark.gradio
def test_tags_are_added_removed_and_renamed_for_what_is_shown_undone_and_saved(served: Serve, folder: Path) -> None:
    with launch(1400, 1000) as tab:
        heard = opened(tab, served(), folder)
        assert labels(tab) == ["my cat, grass, <b>sun</b>", "my cat, sofa", "my cat, grass", "[file name] red toy"]
        says(tab, "summary", "no unsaved changes · 4 images · 1 without a caption")
        assert tags(tab)[:3] == ["my cat (3)", "grass (2)", "<b>sun</b> (1)"]
        sift(tab, "with", "grass")
        until(lambda: len(labels(tab)) == 2)
        says(tab, "summary", "2 shown")
        entry(tab, "new_tags").fill("outdoors")
        press(tab, "add_front")
        until(lambda: labels(tab) == ["outdoors, my cat, grass, <b>sun</b>", "outdoors, my cat, grass"])
        says(tab, "edit_message", "2 captions changed. 2 unsaved changes")
        says(tab, "summary", "2 unsaved changes")
        tick(tab, "my cat (2)")
        entry(tab, "new_name").fill("tabby")
        press(tab, "rename")
        until(lambda: labels(tab)[1] == "outdoors, tabby, grass")
        tick(tab, "outdoors (2)")
        press(tab, "remove")
        until(lambda: labels(tab)[1] == "tabby, grass")
        tick(tab, "grass (2)")
        press(tab, "to_front")
        until(lambda: labels(tab)[1] == "grass, tabby")
        press(tab, "undo")
        until(lambda: labels(tab)[1] == "tabby, grass")
        press(tab, "redo")
        until(lambda: labels(tab)[1] == "grass, tabby")
        assert on_disk(folder)["2"] == "my cat, grass"
        tab.get_by_role("button", name="Save 2 changes").click()
        says(tab, "message", "Saved: 2 captions written")
        says(tab, "summary", "no unsaved changes")
        assert on_disk(folder) == {"0": "grass, tabby, <b>sun</b>", "1": "my cat, sofa", "2": "grass, tabby"}
        assert len(list(folder.glob("captions-backup/*/*.txt"))) == 2
        assert heard == []


def test_one_image_is_written_after_the_other(served: Serve, folder: Path) -> None:
    with launch(1400, 1000) as tab:
        opened(tab, served(), folder)
        tab.locator("#ti_trainer_captions_gallery img").nth(1).click()
        until(lambda: entry(tab, "text").input_value() == "my cat, sofa")
        tab.locator("#ti_trainer_captions_large img").first.wait_for()
        entry(tab, "text").fill("typed and not applied")
        press(tab, "next")
        until(lambda: entry(tab, "text").input_value() == "my cat, grass")
        until(lambda: labels(tab)[1] == "typed and not applied")
        press(tab, "next")
        says(tab, "large", "no caption; its file name says")
        entry(tab, "text").fill("a toy")
        tab.get_by_label("The selected image", exact=True).check()
        entry(tab, "new_tags").fill("last")
        press(tab, "add")
        until(lambda: labels(tab)[3] == "a toy, last")
        says(tab, "summary", "2 unsaved changes")
        entry(tab, "text").fill("")
        press(tab, "apply")
        until(lambda: labels(tab)[3] == "[file name] red toy")
        press(tab, "save")
        says(tab, "message", "Saved: 1 caption written.")
        assert on_disk(folder) == {"0": TEXTS[0], "1": "typed and not applied", "2": TEXTS[2]}


def test_tags_of_nearly_all_images_are_found_and_removed_at_once(served: Serve, folder: Path) -> None:
    (folder / "3-red toy.txt").write_text("my cat", encoding="utf-8")
    with launch(1400, 1000) as tab:
        opened(tab, served(), folder)
        unfold(tab, "What to write in captions; tags in nearly all images")
        tab.get_by_text("initialization text").first.wait_for()
        press(tab, "find_common")
        until(lambda: tags(tab, "common") == ["my cat (100%)"])
        tab.get_by_label("The selected image", exact=True).check()  # does not count for what is said of all images
        press(tab, "remove_common")
        until(lambda: labels(tab) == ["grass, <b>sun</b>", "sofa", "grass", "[file name] red toy"])
        tab.locator("#ti_trainer_captions_remove_common").wait_for(state="hidden")


def test_text_is_replaced_and_what_is_wrong_is_said(served: Serve, folder: Path) -> None:
    with launch(1400, 1000) as tab:
        opened(tab, served(), folder)
        unfold(tab, "Search and replace")
        entry(tab, "search").fill(r"my (\w+")
        entry(tab, "replacement").fill(r"\1")
        tab.get_by_label("Regular expression").check()
        press(tab, "replace")
        says(tab, "edit_message", "expected a regular expression")
        entry(tab, "search").fill(r"my (\w+)")
        press(tab, "replace")
        until(lambda: labels(tab)[1] == "cat, sofa")
        press(tab, "use_names")
        until(lambda: labels(tab)[3] == "red toy")
        press(tab, "remove")
        says(tab, "edit_message", "Tick one or more tags")


def test_changes_are_given_up_only_after_a_warning_and_other_programs_win(served: Serve, folder: Path) -> None:
    with launch(1400, 1000) as tab:
        opened(tab, served(), folder)
        entry(tab, "new_tags").fill("new")
        press(tab, "add")
        says(tab, "summary", "4 unsaved changes")
        (folder / "1-red toy.txt").write_text("theirs", encoding="utf-8")
        press(tab, "save")
        says(tab, "message", "Changed on disk since they were loaded: 1-red toy.txt")
        press(tab, "load")
        says(tab, "message", "or Load again to discard")
        press(tab, "load")
        until(lambda: labels(tab)[1] == "theirs")
        says(tab, "summary", "no unsaved changes")
        for wrong, answer in (
            ("", "enter the path of a folder"),
            ("/nowhere/at/all", "does not exist"),
            ("forbidden", "not for the page"),
        ):
            entry(tab, "folder").fill(wrong)
            press(tab, "load")
            says(tab, "message", answer)


def test_a_phone_needs_no_sideways_scrolling(served: Serve, folder: Path) -> None:
    with launch(390, 800) as tab:
        opened(tab, served(), folder)
        for title in ("Search and replace", "What to write in captions; tags in nearly all images"):
            unfold(tab, title)
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_visitors_may_give_no_regular_expression(served: Serve, folder: Path) -> None:
    with launch(1400, 1000) as tab:
        opened(tab, served("fixed"), folder)
        unfold(tab, "Search and replace")
        entry(tab, "search").wait_for()
        assert not tab.get_by_label("Regular expression").is_visible()
    page = Page(TinyHost(folder, is_public=True), Job())
    loaded = caption_edits.load(folder)
    with pytest.raises(ConfigError, match="public page"):
        caption_handlers.replace_text(page, loaded, loaded.images, Inputs(search="a", replacement="b", regex=True))


def test_who_presses_two_buttons_at_once_takes_back_nothing(folder: Path) -> None:
    """The second press still has the caption from before the first in its box."""
    loaded = caption_edits.load(folder)
    state = EditorState(loaded, loaded.images, selected=loaded.images[1])
    inputs = Inputs(text="my cat, sofa", revision="0")
    updates = caption_handlers.edit(lambda captions, images, _: captions.add(images, "new"), state, inputs)
    state = updates["state"]
    assert state.captions.text(state.selected) == "my cat, sofa, new"
    for revision, result in (("0", "my cat, sofa, new"), (updates["revision"], "my cat, sofa")):
        after = caption_handlers.run(caption_handlers.keep_typed, state, replace(inputs, revision=revision))["state"]
        assert after.captions.text(state.selected) == result


def test_a_thousand_images_come_in_pages_and_quickly(tmp_path: Path) -> None:
    for number in range(1000):
        path = tmp_path / f"{number:04}.jpg"
        if number:
            path.hardlink_to(tmp_path / "0000.jpg")
        else:
            Image.effect_noise((1500, 1000), 40).convert("RGB").save(path)
        path.with_suffix(".txt").write_text(f"tag {number % 50}, all", encoding="utf-8")
    page, begin = Page(TinyHost(tmp_path), Job()), time.process_time()
    updates = caption_handlers.open_folder(page, EditorState(), Inputs(folder=str(tmp_path)))
    state = updates["state"]
    assert time.process_time() - begin < 10
    assert len(updates["gallery"]["value"]) == PAGE_SIZE
    assert "1 to 60 of 1000" in updates["place"]
    begin = time.process_time()
    new = caption_handlers.run(caption_handlers.keep_typed, state, Inputs(all_of=["tag 7"]))
    assert (len(new["state"].shown), len(new["gallery"]["value"])) == (20, 20)
    state = caption_handlers.step(16, True, state, Inputs())["state"]
    assert state.page == 16
    state = replace(state, captions=state.captions.add(state.captions.images, "new"))
    assert len(state.captions.unsaved) == 1000
    assert time.process_time() - begin < 10


def main(folder: Path, fixed: bool) -> None:
    host = TinyHost(folder, is_public=fixed)
    with blocks("captions") as made, gr.Column(elem_classes=["ti-trainer"]):
        caption_editor.panel(Page(host, Job()))
    serve(made, ready=lambda url: print(url, flush=True))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), "fixed" in sys.argv[2:])
