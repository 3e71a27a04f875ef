"""The tab Embeddings: Library, Inspect with Install, and prompts as tokens; in this process, and once in Chromium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import torch
from browser import complaints, launch
from fakes import D, TinyHost
from PIL import Image
from test_page import Served, entry, fill, says, served, show, until  # noqa: F401, the fixture

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.runs.job import Job
from ti_trainer.runs.run_folder import Run
from ti_trainer.ui import prompt_fields
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import inspect, library, library_view, prompt_view
from ti_trainer.ui.panels.inspect import Source
from ti_trainer.workbench import bin
from ti_trainer.workbench.library import Library

INTEROP = Path(__file__).parents[1] / "fixtures" / "interop"
HOSTILE = "<img src=x onerror=alert(1)>"


def put(page: Page, name: str, width: int = D, count: int = 2, ending: str = "safetensors") -> Path:
    path = page.host.embeddings_dir / f"{name}.{ending}"
    formats.write(Embedding(HOSTILE, {"clip_l": torch.randn(count, width)}, 3, HOSTILE), path)
    return path


@pytest.fixture
def page(tmp_path: Path) -> Page:
    made = Page(TinyHost(tmp_path / "host"), Job())
    for name in ("x-word", "y-word"):
        put(made, name)
    put(made, "sd1", 768)
    return made


@pytest.fixture
def shelf(page: Page) -> library.Shelf:
    return library.Shelf(page, Library(page.host.embeddings_dir))


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Puts a file where gradio puts uploads."""
    folder = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))

    def put_there(source: Path, name: str = "") -> list[str]:
        target = folder / f"h{len(list(folder.glob('*')))}" / (name or source.name)
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
        return [str(target)]

    return put_there


def test_the_library_marks_what_the_model_cannot_use(shelf: library.Shelf) -> None:
    summary, cards, where, number = library.view(shelf, "", "Name", False, 1, "")
    assert "3 of 3 files" in summary
    assert (where, number) == ("Page 1 of 1", 1)
    assert cards.count("<button") == 3
    assert "ti-unusable" not in cards  # the model is not loaded for that
    _, cards, *_ = library.marked(shelf, "", "Name", False, 1, "x-word.safetensors")
    assert cards.count("for SD 1.x models</em>") == 1
    assert cards.count('aria-pressed="true"') == 1
    assert library.marked(shelf, "", "Name", False, 1, "")[1] == library.gr.update()
    _, cards, *_ = library.view(shelf, "", "Vectors", True, 1, "")
    assert "sd1" not in cards
    assert HOSTILE not in cards


def test_pages_turn_and_an_empty_folder_says_what_to_do(shelf: library.Shelf, tmp_path: Path) -> None:
    for number in range(30):
        put(shelf.page, f"z{number:02}")
    _, cards, where, number = library.view(shelf, "z", "Name", False, 1, "", turn=lambda now: now + 1)
    assert (where, number, cards.count("<button")) == ("Page 2 of 2", 2, 6)
    empty = library.Shelf(Page(TinyHost(tmp_path / "empty"), Job()), Library(tmp_path / "empty" / "embeddings"))
    assert "There are no embeddings" in library.view(empty, "", "Name", False, 1, "")[0]


def test_previews_are_beside_an_embedding_or_in_its_run(page: Page) -> None:
    shown = Library(page.host.embeddings_dir)
    Image.new("RGB", (8, 8)).save(page.host.embeddings_dir / "y-word.preview.png")
    run = Run.create(page.host.log_dir, "x-word", {"name": "x-word"})
    (run.path / "images").mkdir()
    for step in (1, 2):
        Image.new("RGB", (8, 8)).save(run.path / "images" / f"x-word-{step}.png")
    found = library_view.previews(shown.listing().entries, page.host.log_dir)
    assert {each.stem: image.name for each, image in found.items()} == {
        "x-word": "x-word-2.png",
        "y-word": "y-word.preview.png",
    }


def test_deleting_restoring_and_renaming_say_where_the_files_are(shelf: library.Shelf) -> None:
    folder = shelf.page.host.embeddings_dir
    message, bins, chosen = library._attempt(shelf, library.delete_chosen, "x-word.safetensors")
    assert "Deleted: x-word.safetensors" in message
    assert chosen == ""
    (label,) = bins["choices"]
    assert ".deleted" in message
    assert "Choose an embedding first" in library._attempt(shelf, library.delete_chosen, "")[0]
    assert "Restored" in library._attempt(shelf, library.restore_chosen, label)[0]
    assert "already" in library._attempt(shelf, library.rename_chosen, "x-word.safetensors", "y-word")[0]
    assert "Renamed x-word to other" in library._attempt(shelf, library.rename_chosen, "x-word.safetensors", " other ")[0]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "other.safetensors",
        "sd1.safetensors",
        "y-word.safetensors",
    ]
    assert shelf.page.host.changes >= 3
    about, name, _ = library.describe(shelf, "other.safetensors")
    assert name == "other"
    assert "Download" in about
    assert HOSTILE not in about


def test_use_and_inspect_say_what_is_missing(shelf: library.Shelf) -> None:
    assert "Choose an embedding first" in library.found(shelf, "")
    assert "Choose an embedding first" in library.to_inspect(shelf, "")[1]
    assert "There is no gone.pt" in library.found(shelf, "gone.pt")
    assert library.found(shelf, "sd1.safetensors") == library.to_inspect(shelf, "sd1.safetensors")[1] == ""


def test_on_a_public_page_nothing_is_changed_or_handed_out(shelf: library.Shelf, upload) -> None:
    page = shelf.page
    page.host.is_public = True
    before = sorted(path.name for path in page.host.embeddings_dir.iterdir())
    for action, *given in (
        (library.delete_chosen, "x-word.safetensors"),
        (library.rename_chosen, "x-word.safetensors", "other"),
    ):
        assert "people other than" in library._attempt(shelf, action, *given)[0]
    files = upload(INTEROP / "webui-two.pt")
    assert "webui-two" in inspect.findings_of(page, Source(files))
    assert "people other than" in inspect.install_message(page, files, "new", True)
    assert "Download" not in library.describe(shelf, "x-word.safetensors")[0]
    assert library.in_bin(page) == []
    assert sorted(path.name for path in page.host.embeddings_dir.iterdir()) == before


def test_any_tools_file_is_inspected_and_hostile_text_escaped(page: Page, upload) -> None:
    for name in ("webui-two.pt", "kohya-sdxl.safetensors", "card-sd1-pixels-only.png", "learned_embeds.bin"):
        html = inspect.findings_of(page, Source(upload(INTEROP / name)))
        assert "ti-vectors" in html
        assert "tiny has no text encoder" in html
    assert "its pixels still hold" in inspect.findings_of(page, Source(upload(INTEROP / "card-sd1-pixels-only.png")))
    lost = inspect.findings_of(page, Source(upload(INTEROP / "card-sd1-reencoded.jpg")))
    assert "is a picture without an embedding" in lost
    html = inspect.findings_of(page, Source(place="x-word.safetensors"))
    assert HOSTILE not in html
    assert "Nearest tokens" in html
    assert "y-word" in html
    assert "ti-matrix" in html


def test_only_uploads_and_files_of_the_folder_are_read(page: Page, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    shutil.copy(INTEROP / "kohya-sd1.safetensors", outside)
    assert "is not an uploaded file" in inspect.findings_of(page, Source([str(outside)]))
    for place in (str(outside), "../../outside.safetensors", "outside"):
        assert "There is no embedding" in inspect.findings_of(page, Source(place=place))
    assert "no longer exists" in inspect.findings_of(page, Source(run="../x (1)"))


def test_a_dropped_file_is_installed_and_not_over_another(page: Page, upload) -> None:
    files = upload(INTEROP / "card-sd1.png")
    assert inspect.given_files(page, files)[0] == "card-sd1"
    assert "Installed" in inspect.install_message(page, files, " new ", False)
    folder = page.host.embeddings_dir
    assert formats.read(folder / "new.safetensors").step == 500
    assert (folder / "new.preview.png").is_file()
    assert "Tick the box" in inspect.install_message(page, files, "new", False)
    assert "in the bin" in inspect.install_message(page, files, "new", True)
    assert len(bin.deleted(folder)) == 1
    assert "drop one" in inspect.install_message(page, None, "new", True)


def test_drift_and_tokens_are_shown(page: Page) -> None:
    run = Run.create(page.host.log_dir, "x-word", {"name": "x-word", "train": {}})
    label = inspect.runs.labels(page)[0]
    assert "has saved no copies" in inspect.findings_of(page, Source(run=label))
    for step in (1, 2):
        run.write_copy(Embedding("x-word", {"clip_l": torch.ones(2, D) * step}, step))
    assert "ti-small-curve" in inspect.findings_of(page, Source(run=label))
    html = prompt_view.tokens_of(page, "a (x-word:1.5) <b>bold</b>")
    assert "x-word × 1.5<small>2 vectors" in html
    assert "<b>bold" not in html
    assert "ti-error" in prompt_view.tokens_of(page, "(a:1.2.3)")


def test_a_negative_embedding_goes_into_the_negative_prompt() -> None:
    fields = {"preview_prompt": "a cat", "preview_negative_prompt": ""}
    assert prompt_fields.with_name("my-word", fields)["preview_prompt"] == "a cat, my-word"
    assert prompt_fields.with_name("EasyNegative", fields)["preview_negative_prompt"] == "EasyNegative"
    assert prompt_fields.with_name("x-neg", {"preview_prompt": ""}) == {"preview_prompt": "x-neg"}
    assert prompt_fields.with_name("cat", fields) == fields


@pytest.mark.skipif(os.name != "posix", reason="names of files are text there")
def test_names_of_files_that_are_no_text_are_shown_and_can_be_chosen(shelf: library.Shelf) -> None:
    folder = shelf.page.host.embeddings_dir
    for name in (b"\xff\xfe.safetensors", b"a\n\"<b>'.safetensors"):
        shutil.copy(folder / "x-word.safetensors", os.fsdecode(os.fsencode(folder) + b"/" + name))
    _, cards, *_ = library.view(shelf, "", "Name", False, 1, "")
    assert "<b>'" not in cards
    cards.encode()
    for place in (r"\udcff\udcfe.safetensors", "a\n\"<b>'.safetensors"):
        json.dumps(library.describe(shelf, place)).encode()
        inspect.findings_of(shelf.page, Source(place=place)).encode()
        message, *_ = library._attempt(shelf, library.delete_chosen, place)
        assert "Deleted" in message
        assert "Restored" in library._attempt(shelf, library.restore_chosen, library.in_bin(shelf.page)[0])[0]
    assert len(inspect.places(shelf.page)) == 5


def test_many_vectors_and_long_prompts_do_not_flood_the_page(page: Page) -> None:
    put(page, "huge", count=1000)
    html = inspect.findings_of(page, Source(place="huge.safetensors"), 30)
    assert "The first 75 vectors are shown" in html
    assert len(html) < 2_000_000
    assert "expected at most" in prompt_view.tokens_of(page, "a " * 20_000)


@pytest.mark.page
@pytest.mark.gradio
def test_in_the_page_a_card_is_chosen_inspected_used_dropped_and_deleted(served: Served) -> None:  # noqa: F811
    formats.write(Embedding("y", {"clip_l": torch.randn(3, D)}, 1), served.folder / "dropped.safetensors")
    folder = served.folder / "embeddings"
    with launch(1400, 1000) as page:
        heard = complaints(page)
        served.open(page, "Embeddings")
        card = page.locator('.ti-entry[data-place="x-word.safetensors"]')
        card.click()
        says(page, "library_about", "x-word.safetensors")
        assert card.get_attribute("aria-pressed") == "true"
        page.click("#ti_trainer_library_inspect")
        says(page, "inspect_findings", "Nearest tokens")
        page.set_input_files("#ti_trainer_inspect_files input[type=file]", str(served.folder / "dropped.safetensors"))
        until(lambda: entry(page, "inspect_name").input_value() == "y", 20)
        fill(page, "inspect_name", "y-word")
        page.click("#ti_trainer_inspect_install_button")
        says(page, "inspect_message", "Installed")
        assert (folder / "y-word.safetensors").is_file()
        show(page, "Library")
        page.click("#ti_trainer_library_refresh")
        new = page.locator('.ti-entry[data-place="y-word.safetensors"]')
        new.click()
        says(page, "library_about", "y-word.safetensors")
        page.click("#ti_trainer_library_use")
        until(lambda: "y-word" in entry(page, "generate_prompt").input_value())
        show(page, "Embeddings")
        page.click("#ti_trainer_library_delete")
        says(page, "library_message", "Deleted: y-word.safetensors")
        until(lambda: new.count() == 0)
        assert not (folder / "y-word.safetensors").exists()
        assert [each for each in heard if "ERR_NAME_NOT_RESOLVED" not in each] == []
