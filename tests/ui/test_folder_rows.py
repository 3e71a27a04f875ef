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
from ti_trainer.errors import ConfigError, DatasetError, TITrainerError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.datasets import datasets_dir
from ti_trainer.runs.job import Job
from ti_trainer.ui import api
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels.folder_rows import MAX_ROWS, Row, _visible, load_rows, save_rows

pytestmark = pytest.mark.page


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


def test_rows_are_saved_as_a_file_to_train_on(page: Page, folders: Callable[[str], Path]) -> None:
    a, b, masks = folders("a"), folders("b"), folders("masks")
    rows = [Row(f' "{a}" ', 3.0, 0.5, " toy ", str(masks)), Row(), Row(str(b), 1, 1, "[name] toy", is_reg=True)]
    file, message = save_rows(page, "mine", False, "", rows)
    assert file == str(datasets_dir(page.host) / "mine.toml")
    expected = (Subset(a, 3, 0.5, class_tokens="toy", masks=masks), Subset(b, class_tokens="[name] toy", is_reg=True))
    assert read_subsets(Path(file)) == expected
    assert "Saved 2 images in 2 folders" in message


def test_only_the_file_that_the_rows_came_from_is_overwritten(page: Page, folders: Callable[[str], Path]) -> None:
    a, b = folders("a"), folders("b")
    file, _ = save_rows(page, "mine", False, "", [Row(str(a))])
    with pytest.raises(ConfigError, match="mine already exists"):
        save_rows(page, "mine", False, "", [Row(str(b))])
    assert read_subsets(Path(file)) == (Subset(a),)
    save_rows(page, "mine", True, "", [Row(str(b))])
    assert read_subsets(Path(file)) == (Subset(b),)
    save_rows(page, "mine.toml", False, file, [Row(str(a))])
    assert read_subsets(Path(file)) == (Subset(a),)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("", {}, "must not be empty"),
        ("a/../../mine", {}, "contains /"),
        ("mine", {"folder": ""}, "nothing to save"),
        ("mine", {"folder": "/nowhere"}, "Folder 1: .*/nowhere does not exist"),
        ("mine", {"repeats": 0}, "Folder 1: num_repeats"),
        ("mine", {"repeats": 1.5}, "Folder 1: num_repeats"),
        ("mine", {"repeats": None}, "Folder 1: num_repeats"),
        ("mine", {"weight": -1}, "Folder 1: loss_weight"),
        ("mine", {"weight": None}, "Folder 1: loss_weight"),
        ("mine", {"masks": "/nowhere"}, "Folder 1: .*/nowhere does not exist"),
    ],
)
def test_an_invalid_row_is_refused_with_its_number(
    page: Page, folders: Callable[[str], Path], name: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(TITrainerError, match=message):
        save_rows(page, name, False, "", [Row(str(folders("a")))._replace(**row)])
    assert not datasets_dir(page.host).exists()


def test_a_file_fills_the_rows_and_what_has_no_widget_is_kept(page: Page, folders: Callable[[str], Path]) -> None:
    a, b, masks = folders("a"), folders("b"), folders("masks")
    subsets = (Subset(a, 2, 3.0, ".caption", "toy", "pre", "post"), Subset(b, masks=masks))
    write_subsets(page.host.folder / "set.toml", subsets)
    loaded = load_rows(page, str(page.host.folder / "set.toml"))
    assert loaded.rows == [Row(str(a), 2, 3.0, "toy"), Row(str(b), masks=str(masks))]
    assert (loaded.name, "Loaded" in loaded.message) == ("set", True)
    file, _ = save_rows(page, "set", False, loaded.file, [loaded.rows[0]._replace(repeats=7), loaded.rows[1]])
    assert read_subsets(Path(file)) == (replace(subsets[0], repeats=7), subsets[1])


def test_a_plain_folder_becomes_the_first_row(page: Page, folders: Callable[[str], Path]) -> None:
    loaded = load_rows(page, str(folders("a")))
    assert (loaded.rows, loaded.file, loaded.name) == ([Row(str(page.host.folder / "a"))], "", "")


@pytest.mark.parametrize("images", ["", "nowhere.toml", "many.toml"])
def test_what_cannot_be_loaded_is_refused(
    page: Page, folders: Callable[[str], Path], images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page.host.folder)
    write_subsets(Path("many.toml"), [Subset(folders("a"))] * (MAX_ROWS + 1))
    with pytest.raises(DatasetError):
        load_rows(page, images)


def test_rows_are_added_up_to_the_last() -> None:
    shown, button, *boxes = _visible(2)
    assert (shown, [box["visible"] for box in boxes]) == (2, [True, True] + [False] * (MAX_ROWS - 2))
    assert button["interactive"]
    assert _visible(MAX_ROWS)[1]["interactive"] is False
    assert _visible(MAX_ROWS + 1)[0] == MAX_ROWS


def test_visitors_save_and_load_only_what_they_may_read(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    page = Page(Guarded(tmp_path), Job())
    inside, outside = folders("open"), folders("closed")
    for row in (Row(str(outside)), Row(str(inside), masks=str(outside))):
        with pytest.raises(TITrainerError, match="is not for visitors"):
            save_rows(page, "mine", False, "", [row])
    file, _ = save_rows(page, "mine", False, "", [Row(str(inside))])
    assert "Loaded" in load_rows(page, file).message  # though it is in the log directory, which visitors may not read
    write_subsets(outside / "set.toml", [Subset(inside)])
    write_subsets(inside / "set.toml", [Subset(outside)])
    for closed in (outside / "set.toml", inside / "set.toml", outside, page.host.log_dir):
        with pytest.raises(TITrainerError, match="is not for visitors"):
            load_rows(page, str(closed))


def test_a_script_trains_on_a_file_as_on_a_folder(page: Page, folders: Callable[[str], Path]) -> None:
    embeddings_dir.create(page.host.embeddings_dir, page.host.model, "x-word", "red cat", 2)
    file, _ = save_rows(page, "mine", False, "", [Row(str(folders("a"))), Row(str(folders("b")), 2)])
    api.train(page, "x-word", file, '{"max_steps": 6, "preview_every": 0}')
    page.job.wait(60)
    status = api.run_status(page)
    assert (status["status"], status["epoch"]) == ("done", 2)  # of three samples each
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
        says(page, "rows_message", "must not be empty")
        fill(page, "rows_name", "both")
        page.click("#ti_trainer_rows_save")
        says(page, "rows_message", "Saved 8 images in 2 folders")
        file = served.folder / "logs" / "datasets" / "both.toml"
        until(lambda: entry(page, "train_images").input_value() == str(file))
        expected = (Subset(served.images), Subset(second, 3, 0.5, class_tokens="a hat"))
        assert read_subsets(file) == expected

        page.click("#ti_trainer_train_check")
        says(page, "preflight_report", "8 in 2 folders")
        page.click("#ti_trainer_train_start")
        until(lambda: status(page) == "done")
        assert step(page) == 30

    with launch() as page:
        served.open(page, "Runs")
        choose(page, "runs_chosen", f"{served.run_of('x-word').parent.name}/x-word")
        says(page, "runs_about", f"8 in {file}")
        fill(page, "runs_max_steps", "40")
        page.click("#ti_trainer_runs_continue")
        says(page, "runs_message", "Continuing x-word at step 30")
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
        says(page, "rows_message", "Saved 8 images in 2 folders")
        until(lambda: read_subsets(file)[1].repeats == 5)
