"""Rows of folders become a dataset file, which is then trained on; files become rows. By functions, and in Chromium."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

from browser import launch
from fakes import TinyHost
from PIL import Image
from test_page import Served, choose, entry, fill, says, served, show, status, step, until  # noqa: F401, the fixture

from ti_trainer.data.subsets import Subset, read_subsets, write_subsets
from ti_trainer.errors import ConfigError, DatasetError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.datasets import datasets_dir
from ti_trainer.runs.job import Job
from ti_trainer.ui import api
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.folder_rows import EMPTY, MOST, loaded, more, saved


class Guarded(TinyHost):
    """Its visitors may read what lies in a folder `open`."""

    def check_folder(self, folder: Path) -> None:
        if "open" not in folder.resolve().parts:
            raise ConfigError(f"{folder} is not for visitors")


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(TinyHost(tmp_path), Job())


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder with one image."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / "0.png")
        return folder

    return make


def cells(*rows: tuple[Any, ...]) -> list[Any]:
    """What all widgets hold."""
    return [value for row in (*rows, *[EMPTY] * (MOST - len(rows))) for value in row]


def value_of(update: Any) -> Any:
    return update["value"] if isinstance(update, dict) else update


def test_rows_are_saved_as_a_file_that_is_trained_on_then(page: Page, folders: Callable[[str], Path]) -> None:
    a, b, masks = folders("a"), folders("b"), folders("masks")
    rows = cells((f' "{a}" ', 3.0, 0.5, " toy ", str(masks), False), EMPTY, (str(b), 1, 1, "[name] toy", "", True))
    images, kept, said = saved(page, "mine", False, "", *rows)
    assert images == str(datasets_dir(page.host) / "mine.toml")
    expected = (Subset(a, 3, 0.5, class_tokens="toy", masks=masks), Subset(b, class_tokens="[name] toy", is_reg=True))
    assert read_subsets(Path(images)) == expected
    assert kept == images
    assert "Saved 2 images in 2 folders" in said


def test_nothing_is_overwritten_but_what_these_rows_came_from(page: Page, folders: Callable[[str], Path]) -> None:
    a, b = folders("a"), folders("b")
    _, kept, _ = saved(page, "mine", False, "", *cells((str(a), *EMPTY[1:])))
    other = cells((str(b), *EMPTY[1:]))
    assert "There is a dataset mine already" in saved(page, "mine", False, "", *other)[2]
    assert read_subsets(Path(kept)) == (Subset(a),)
    saved(page, "mine", True, "", *other)
    assert read_subsets(Path(kept)) == (Subset(b),)
    saved(page, "mine.toml", False, kept, *cells((str(a), *EMPTY[1:])))
    assert read_subsets(Path(kept)) == (Subset(a),)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("", {}, "must not be empty"),
        ("a/../../mine", {}, "contains /"),
        ("mine", {"folder": ""}, "nothing to save yet"),
        ("mine", {"folder": "/nowhere"}, "Folder 1: The dataset directory /nowhere does not exist"),
        ("mine", {"repeats": 0}, "Folder 1: num_repeats: found 0, expected a whole number from 1"),
        ("mine", {"repeats": 1.5}, "Folder 1: num_repeats: found 1.5"),
        ("mine", {"repeats": None}, "Folder 1: num_repeats: found None"),
        ("mine", {"weight": -1}, "Folder 1: loss_weight: found -1"),
        ("mine", {"weight": None}, "Folder 1: loss_weight: found None"),
        ("mine", {"masks": "/nowhere"}, "Folder 1: The mask directory /nowhere does not exist"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_its_row(
    page: Page, folders: Callable[[str], Path], name: str, row: dict[str, Any], said: str
) -> None:
    names = ("folder", "repeats", "weight", "caption", "masks", "is_reg")
    values = {**dict(zip(names, EMPTY, strict=True)), "folder": str(folders("a")), **row}
    answer = saved(page, name, False, "", *cells(tuple(values.values())))
    assert said in answer[2].replace("&#x27;", "'")
    assert "value" not in answer[0]  # the dataset directory stays
    assert not datasets_dir(page.host).exists()


def test_a_file_fills_the_rows_and_what_has_no_widget_is_kept(page: Page, folders: Callable[[str], Path]) -> None:
    a, b, masks = folders("a"), folders("b"), folders("masks")
    subsets = (Subset(a, 2, 3.0, ".caption", "toy", "pre", "post"), Subset(b, masks=masks))
    write_subsets(page.host.folder / "set.toml", subsets)
    *updates, shown, _, first, second, third = loaded(page, str(page.host.folder / "set.toml"))[: MOST * 6 + 5]
    rows = [value_of(each) for each in updates]
    assert rows == cells((str(a), 2, 3.0, "toy", "", False), (str(b), 1, 1.0, "", str(masks), False))
    assert (shown, first["visible"], second["visible"], third["visible"]) == (2, True, True, False)
    name, kept, said = loaded(page, str(page.host.folder / "set.toml"))[-3:]
    assert value_of(name) == "set"
    assert "Loaded" in said
    rows[1] = 7
    images, _, _ = saved(page, "set", False, value_of(kept), *rows)
    assert read_subsets(Path(images)) == (replace(subsets[0], repeats=7), subsets[1])


def test_a_plain_folder_becomes_the_first_row(page: Page, folders: Callable[[str], Path]) -> None:
    answer = loaded(page, str(folders("a")))
    assert value_of(answer[0]) == str(page.host.folder / "a")
    assert answer[MOST * 6] == 1
    assert value_of(answer[-3]) == ""


@pytest.mark.parametrize("images", ["", "nowhere.toml", "many.toml"])
def test_what_cannot_be_loaded_leaves_the_rows_as_they_are(
    page: Page, folders: Callable[[str], Path], images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page.host.folder)
    write_subsets(Path("many.toml"), [Subset(folders("a"))] * (MOST + 1))
    answer = loaded(page, images)
    assert len(answer) == MOST * 6 + MOST + 5
    assert all("value" not in each and "visible" not in each for each in answer[:-1])
    assert "ti-error" in answer[-1]


def test_rows_are_added_one_by_one_to_the_last() -> None:
    shown, button, *boxes = more(1)
    assert (shown, [box["visible"] for box in boxes]) == (2, [True, True] + [False] * (MOST - 2))
    assert button["interactive"]
    assert more(MOST - 1)[1]["interactive"] is False
    assert more(MOST)[0] == MOST


def test_visitors_save_and_load_only_what_they_may_read(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    page = Page(Guarded(tmp_path), Job())
    inside, outside = folders("open"), folders("closed")
    for row in ((str(outside), *EMPTY[1:]), (str(inside), 1, 1.0, "", str(outside), False)):
        assert "is not for visitors" in saved(page, "mine", False, "", *cells(row))[2]
    file, _, _ = saved(page, "mine", False, "", *cells((str(inside), *EMPTY[1:])))
    assert "Loaded" in loaded(page, file)[-1]  # though it lies with the runs, which are not theirs to read
    write_subsets(outside / "set.toml", [Subset(inside)])
    write_subsets(inside / "set.toml", [Subset(outside)])
    for closed in (outside / "set.toml", inside / "set.toml", outside, page.host.log_dir):
        assert "is not for visitors" in loaded(page, str(closed))[-1]


def test_a_script_trains_on_a_file_as_on_a_folder(page: Page, folders: Callable[[str], Path]) -> None:
    embeddings_dir.create(page.host.embeddings_dir, page.host.model, "x-word", "red cat", 2)
    file, _, _ = saved(page, "mine", False, "", *cells((str(folders("a")), *EMPTY[1:]), (str(folders("b")), 2, *EMPTY[2:])))
    api.train(page, "x-word", file, '{"max_steps": 6, "preview_every": 0}')
    page.job.wait(60)
    assert (api.status(page)["status"], api.status(page)["epoch"]) == ("done", 2)  # of three samples each
    with pytest.raises(DatasetError, match="does not exist"):
        api.train(page, "x-word", str(page.host.folder / "gone.toml"), "{}")


def test_two_folders_are_put_together_saved_looked_at_and_trained_on(served: Served) -> None:  # noqa: F811
    second = served.folder / "second"
    second.mkdir()
    for number in range(2):
        Image.new("RGB", (24, 24), (250, 60 * number, 10)).save(second / f"{number}.png")
    with launch() as page:
        served.open(page, "Train")
        choose(page, "train_name", "x-word")
        fill(page, "train_max_steps", "30")
        page.locator("#ti_trainer_rows").get_by_text("Several folders in one dataset").click()
        assert not entry(page, "rows_folder_1").is_visible()
        page.click("#ti_trainer_rows_add")
        entry(page, "rows_folder_1").wait_for()
        fill(page, "rows_folder_0", str(served.images))
        fill(page, "rows_folder_1", str(second))
        fill(page, "rows_repeats_1", "3")
        fill(page, "rows_weight_1", "0.5")
        fill(page, "rows_caption_1", "a hat")
        page.click("#ti_trainer_rows_save")
        says(page, "rows_said", "must not be empty")
        fill(page, "rows_name", "both")
        page.click("#ti_trainer_rows_save")
        says(page, "rows_said", "Saved 8 images in 2 folders")
        file = served.folder / "logs" / "datasets" / "both.toml"
        until(lambda: entry(page, "train_images").input_value() == str(file))
        expected = (Subset(served.images), Subset(second, 3, 0.5, class_tokens="a hat"))
        assert read_subsets(file) == expected

        page.click("#ti_trainer_train_check")
        says(page, "look_found", "8 in 2 folders")
        page.click("#ti_trainer_train_start")
        until(lambda: status(page) == "done")
        assert step(page) == 30

    with launch() as page:
        served.open(page, "Runs")
        choose(page, "runs_chosen", f"{served.run_of('x-word').parent.name}/x-word")
        says(page, "runs_about", f"8 in {file}")
        fill(page, "runs_max_steps", "40")
        page.click("#ti_trainer_runs_continue")
        says(page, "runs_said", "Going on with x-word at step 30")
        show(page, "Train")
        until(lambda: step(page) == 40 and status(page) == "done")

        fill(page, "train_images", str(file))
        page.locator("#ti_trainer_rows").get_by_text("Several folders in one dataset").click()
        page.click("#ti_trainer_rows_load")
        entry(page, "rows_folder_1").wait_for()
        until(lambda: entry(page, "rows_repeats_1").input_value() == "3")
        assert entry(page, "rows_name").input_value() == "both"
        fill(page, "rows_repeats_1", "5")
        page.click("#ti_trainer_rows_save")
        says(page, "rows_said", "Saved 8 images in 2 folders")
        until(lambda: read_subsets(file)[1].repeats == 5)
