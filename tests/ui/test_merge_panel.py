"""The sub-tabs Merge and Convert: their handlers in this process, and both in Chromium."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gradio")  # the page is all that needs it

from browser import launch
from fakes import D, TinyHost
from safetensors.torch import load_file, save_file
from test_page import Served, entry, fill, says, served, show, until  # noqa: F401, the fixture

from ti_trainer import formats
from ti_trainer.embedding import Embedding
from ti_trainer.runs.job import Job
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import convert
from ti_trainer.ui.panels.compare_form import names
from ti_trainer.ui.panels.merge import EDITED, ROWS, check, fitting_rows, preview, saved, write

BAD = '<img src=x onerror="alert(1)">'


@pytest.fixture
def page(tmp_path: Path) -> Page:
    host = TinyHost(tmp_path)
    for number, name in enumerate(("red", "my-cat")):
        file = host.embeddings_dir / f"{name}.safetensors"
        formats.write(Embedding(name, {"clip_l": torch.full((2, D), number + 1.0)}, 7), file)
    return Page(host, Job())


def form(method: str, *chosen: str, weights: tuple[float | None, ...] = (), position: float = 0.5) -> list[Any]:
    padded = [*chosen, *[None] * (ROWS - len(chosen))], [*weights, *[1] * (ROWS - len(weights))]
    return [method, position, *padded[0], *padded[1]]


def test_the_form_writes_until_the_expression_is_edited(page: Page) -> None:
    assert names(page) == ["my-cat", "red"]
    assert write("", "", *form("Weighted sum", "red", "my-cat", weights=(0.5, None))) == [
        '0.5 * red + "my-cat"', '0.5 * red + "my-cat"', ""
    ]  # fmt: skip
    _, written, note = write("mine", "red", *form("Average", "red", "my-cat"))
    assert written == "red"
    assert EDITED in note
    assert "found 1 embedding, expected 2" in write("red", "red", *form("Difference", "red"))[2]
    assert "does not use the weights" in write("", "", *form("Average", "red", "my-cat", weights=(2,)))[2]
    assert write("", "", *form("Average")) == ["", "", ""]
    assert write("", "", *form("Difference", "red", "my-cat", "hidden"))[0] == 'red - "my-cat"'
    visible = [each["visible"] for each in fitting_rows("Interpolate")]
    assert visible == [True, True, True, False, False], "the position and two embeddings"
    assert "expected one of" in write("", "", *form(BAD, "red"))[2]
    assert BAD not in write("", "", *form(BAD, "red"))[2]


def test_an_expression_is_checked_as_it_is_typed(page: Page) -> None:
    assert check(page, " ") == ""
    assert "2 vectors for unknown (clip_l 8)" in check(page, "red")
    shown = check(page, f"red + '{BAD}'")
    assert BAD not in shown
    assert "^" * (len(BAD) + 2) in shown
    assert html.escape('did you mean "my-cat"?') in check(page, "my - cat")


def test_a_preview_shows_the_vectors_and_two_images(page: Page) -> None:
    *_, (shown, images) = preview(page, "0.5 * red", "a [name]", "", 5)
    assert "usual: " in shown
    assert [label for _, label in images] == ["without, seed 5", "with it, seed 5"]
    for given, message in (
        (("red", "a", "", 1), "expected [name]"),
        (("red", "[name]", "", -1), "Seed: found -1"),
        (("re", "[name]", "", 1), "did you mean red"),
    ):
        assert message in list(preview(page, *given))[-1][0]


def test_it_is_saved_under_a_free_name(page: Page) -> None:
    assert "Saved my-mix: 2 vectors" in saved(page, 'red + "my-cat"', "my-mix", False)
    assert page.host.changes == 1
    path = page.host.embeddings_dir / "my-mix.safetensors"
    assert torch.equal(formats.read(path).vectors["clip_l"], torch.full((2, D), 3.0))
    for name in ("my-mix", "../x", "", BAD):
        shown = saved(page, "red", name, False)
        assert "ti-error" in shown
        assert BAD not in shown
    assert "ti-error" not in saved(page, "red", "my-mix", True)
    assert {each.name for each in page.host.embeddings_dir.iterdir()} == {
        "red.safetensors",
        "my-cat.safetensors",
        "my-mix.safetensors",
    }


def values(**given: Any) -> dict[str, Any]:
    plain = {"format": "safetensors", "dtype": "fp32", "negative": False, "install": False, "overwrite": False}
    return {**plain, "chosen": "", "upload": None, "path": "", "name": "", "bundled": "", "lora": "", **given}


def shown(page: Page, **given: Any) -> str:
    return list(convert.converted(page, values(**given)))[-1]


def test_one_embedding_is_converted_and_offered_for_download(page: Page, tmp_path: Path) -> None:
    assert convert.choices(page) == ["all", "my-cat.safetensors", "red.safetensors"]
    assert "red: 2 vectors for" in convert.look(page, values(chosen="red.safetensors"))
    assert convert.look(page, values()) == ""
    done = shown(page, chosen="red.safetensors", format="kohya", dtype="fp16")
    assert "cannot hold: step 7" in done
    assert 'download="red.safetensors"' in done
    assert load_file(tmp_path / "logs/converted/red.safetensors")["emb_params"].dtype == torch.float16
    shown(page, chosen="red.safetensors", format="kohya")
    assert (tmp_path / "logs/converted/red-2.safetensors").is_file(), "nothing is replaced"
    assert page.host.changes == 0
    for given, message in (
        ({}, "Found nothing to convert"),
        ({"chosen": "red.safetensors", "path": "x"}, "Found 2 to convert"),
        ({"chosen": "../secret.pt"}, "no file ../secret.pt in the embeddings folder"),
        ({"chosen": "red.safetensors", "name": "a/x"}, "contains /"),
        ({"chosen": "red.safetensors", "format": BAD}, "Found the format"),
        ({"path": str(tmp_path / "missing")}, "There is no file or folder"),
        ({"upload": str(tmp_path / "embeddings/red.safetensors")}, "not an uploaded file"),
        ({"chosen": "red.safetensors", "install": True}, "exists: choose another name"),
    ):
        assert message in shown(page, **given)
        assert BAD not in shown(page, **given)


def test_it_can_be_written_to_the_embeddings_folder(page: Page) -> None:
    assert "ti-good" in shown(page, chosen="red.safetensors", name="red-2", format="webui", install=True)
    assert (page.host.embeddings_dir / "red-2.pt").is_file()
    assert page.host.changes == 1
    assert "red still means red.safetensors" in shown(page, chosen="red.safetensors", format="webui", install=True)


def test_a_folder_is_converted_with_a_list(page: Page, tmp_path: Path) -> None:
    (page.host.embeddings_dir / "bad.pt").write_bytes(b"<html>")
    done = shown(page, chosen="all", format="onetrainer")
    assert "2 converted, 0 skipped, 1 failed" in done
    assert set(load_file(tmp_path / "logs/converted/embeddings/red.safetensors")) == {"emp_params"}
    assert "0 converted, 2 skipped" in shown(page, path=str(page.host.embeddings_dir), format="onetrainer")
    assert "for one file, not for a folder" in shown(page, chosen="all", name="x")


def test_embeddings_in_loras(page: Page, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_a.alpha": torch.ones(4), "bundle_emb.word.clip_l": torch.ones(1, D)}, lora)
    assert "these embeddings in it: word" in convert.look(page, values(path=str(lora)))
    assert "say which of them to take out" in shown(page, path=str(lora))
    assert "ti-good" in shown(page, path=str(lora), bundled="word")
    assert formats.read(tmp_path / "logs/converted/word.safetensors").num_vectors == 1
    assert "ti-good" in shown(page, chosen="red.safetensors", lora=str(lora))
    assert "bundle_emb.red.clip_l" in load_file(tmp_path / "logs/converted/lora-red.safetensors")


def test_visitors_of_a_public_page_enter_no_paths(page: Page, tmp_path: Path) -> None:
    page.host.is_public = True
    secret = page.host.embeddings_dir / "red.safetensors"
    for given in ({"path": str(secret)}, {"chosen": "red.safetensors", "lora": str(secret)}):
        assert "Paths cannot be entered on a public page" in shown(page, **given)
    assert convert.look(page, values(path=str(secret))) == ""
    assert "all" not in convert.choices(page)
    assert "no file all in the embeddings folder" in shown(page, chosen="all")
    made = shown(page, chosen="red.safetensors")
    assert "ti-good" in made
    assert "<a download" not in made
    assert "Cannot write to the embeddings folder here" in shown(page, chosen="red.safetensors", name="new", install=True)
    assert not (page.host.embeddings_dir / "new.safetensors").exists()
    page.host.is_public = False
    (tmp_path / "forbidden").mkdir()
    assert "not for the page" in shown(page, path=str(tmp_path / "forbidden"))


def opened(page: Any, here: Served, tab: str) -> None:
    page.goto(here.url)
    show(page, "Embeddings")
    buttons = "#ti_trainer_embeddings_tabs .tab-nav button, #ti_trainer_embeddings_tabs [role=tab]"
    page.locator(buttons).get_by_text(tab, exact=True).first.click()


@pytest.mark.page
@pytest.mark.gradio
def test_a_mix_is_written_previewed_and_saved(served: Served) -> None:  # noqa: F811
    with launch() as page:
        opened(page, served, "Merge")
        fill(page, "merge_expression", 'cat("x-word", 2 * tokens("red cat"')
        says(page, "merge_about", "found the end, expected an operator, ) or ,")
        fill(page, "merge_expression", "")
        fill(page, "merge_chosen_1", "x-word")
        entry(page, "merge_chosen_1").press("Enter")
        until(lambda: entry(page, "merge_expression").input_value() == '"x-word"')
        fill(page, "merge_weight_1", "0.5")
        until(lambda: entry(page, "merge_expression").input_value() == '0.5 * "x-word"')
        says(page, "merge_about", "2 vectors for")
        page.click("#ti_trainer_merge_preview")
        page.locator("#ti_trainer_merge_images img").nth(1).wait_for()
        says(page, "merge_outcome", "usual:")
        fill(page, "merge_name", "x-half")
        says(page, "merge_about_name", "This name is available.")
        page.click("#ti_trainer_merge_save")
        says(page, "merge_message", "Saved x-half: 2 vectors")
        saved_file = formats.read(served.folder / "embeddings" / "x-half.safetensors")
        assert saved_file.info["expression"] == '0.5 * "x-word"'


@pytest.mark.page
def test_an_uploaded_file_is_converted(served: Served) -> None:  # noqa: F811
    source = served.folder / "mine.pt"
    formats.write(Embedding("mine", {"clip_l": torch.ones(2, D)}, 3), source)
    with launch() as page:
        opened(page, served, "Convert")
        page.locator("#ti_trainer_convert_upload input[type=file]").set_input_files(source)
        says(page, "convert_about", "mine: 2 vectors")
        page.click("#ti_trainer_convert_button")
        link = page.locator("#ti_trainer_convert_outcome a[download]")
        link.wait_for()
        assert link.get_attribute("download") == "mine.safetensors"
        assert formats.read(served.folder / "logs/converted/mine.safetensors").step == 3
