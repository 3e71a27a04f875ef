"""The Quick train panel: what it takes from each gradio, what it refuses and suggests, and how it shows the stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")  # the page is all that needs it

import gradio as gr
from fakes import TinyHost
from PIL import Image

from ti_trainer.errors import BusyError, ConfigError, DatasetError
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.job import Job, Snapshot
from ti_trainer.runs.quick_job import QuickSnapshot
from ti_trainer.runs.quick_stages import Stage
from ti_trainer.ui.page import Page
from ti_trainer.ui.panels import queue, quick_images, quick_progress, quick_train


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return Page(TinyHost(tmp_path), Job())


@pytest.fixture
def uploaded(tmp_path: Path) -> list[str]:
    """Two images with captions, as gradio keeps uploads, and a file that is none."""
    files = []
    for number in range(2):
        folder = tmp_path / "gradio" / str(number)
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        caption = folder / "caption" / f"{number}.txt"  # gradio makes a folder for each upload
        caption.parent.mkdir()
        caption.write_text("a dog on grass")
        files += [str(folder / f"{number}.png"), str(caption)]
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return [*files, str(folder / "notes.pdf")]


def panel_of(page: Page) -> quick_train.QuickTrain:
    with gr.Blocks():
        return quick_train.panel(page)


def begun(page: Page, *wanted: str, **entered: Any) -> Any:
    panel = panel_of(page)
    values = {
        "files": None,
        "folder": "",
        "name": "my-dog",
        "kind": "Object",
        "init_text": "",
        "overwrite": False,
        **entered,
    }
    return panel.begin({getattr(panel, name): value for name, value in {**values, **entered}.items()}, wanted)


def test_what_is_missing_or_wrong_is_one_message(page: Page, uploaded: list[str], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There are no images yet: drop some"):
        begun(page)
    with pytest.raises(ConfigError, match="The name is empty"):
        begun(page, files=uploaded, name=" ")
    with pytest.raises(DatasetError, match=r"None of the uploaded files is an image.*notes\.pdf \(not an image\)"):
        begun(page, files=uploaded[-1:])
    with pytest.raises(ConfigError, match="not for the page"):
        begun(page, folder=str(tmp_path / "forbidden"))
    assert not list(page.host.log_dir.glob("*/my-dog/*"))
    embeddings_dir.create(page.host.embeddings_dir, page.host.model, "taken", "cat", 1)
    embedding, path = embeddings_dir.load(page.host.embeddings_dir, "taken")
    embeddings_dir.save(replace(embedding, step=3), path)
    with pytest.raises(ConfigError, match="such as taken-2, or replace it") as refused:
        begun(page, files=uploaded, name="taken")
    offered = quick_train._refused(panel_of(page), refused.value, "taken", ())
    assert "Train as taken-2</button>" in offered
    assert 'data-ti-value="replace">Replace the existing embedding</button>' in offered
    shown, box = quick_train.check_name(page, "taken")
    assert "choose" in shown.lower()
    assert box["visible"]
    assert quick_train.check_name(page, "free")[1]["visible"] is False
    assert "contains /" in quick_train.check_name(page, "a/b")[0]


def test_a_quick_training_is_queued_with_its_images_and_a_second_press_leads_on(page: Page, uploaded: list[str]) -> None:
    def press() -> str:
        return queue.add(page, begun(page, "queue", files=uploaded, init_text="red dog"))

    assert press().startswith("Added to the queue: my-dog, number 1.")
    assert not page.quick.snapshot().started, "nothing is prepared before its turn"
    (entry,) = page.queue.snapshot().entries
    assert entry.quick == {"kind": "object", "init_text": "red dog"}
    assert sorted(path.name for path in Path(entry.images).iterdir()) == ["0.png", "0.txt", "1.png", "1.txt"]
    assert not any(Path(entry.images).is_relative_to(Path(each).parent) for each in uploaded), "uploads are temporary"
    assert "quick training · my-dog · model tiny [0123456789]" in queue.render(page.queue.snapshot(), Snapshot())
    with pytest.raises(ConfigError, match="in the queue already: number 1") as refused:
        press()
    offered = quick_train._refused(panel_of(page), refused.value, "my-dog", ["queue"])
    assert 'data-ti-value="queue rename">Add as my-dog-2</button>' in offered
    assert "Show the queue</button>" in offered
    assert begun(page, "queue", "rename", files=uploaded).name == "my-dog-2"
    page.quick._preparing, page.quick._work = True, begun(page, "queue", files=uploaded, name="other")
    with pytest.raises(BusyError) as busy:
        begun(page, files=uploaded)
    assert 'data-ti-value="queue">Add to queue</button>' in quick_train._refused(panel_of(page), busy.value, "my-dog", ())


def test_files_of_every_gradio_are_understood_but_only_uploaded_ones(
    page: Page, uploaded: list[str], tmp_path: Path
) -> None:
    gradio3 = [SimpleNamespace(name=path, orig_name=path) for path in uploaded]
    for files in (uploaded, gradio3):
        assert quick_images.paths_of(files) == list(map(Path, uploaded))
    assert quick_images.paths_of(None) == []
    copied = SimpleNamespace(name=uploaded[0], orig_name=str(tmp_path / "private.png"))  # gradio 3 copies what is named
    with pytest.raises(ConfigError, match="not an uploaded file"):
        quick_images.paths_of([copied])
    shown, folder, text, message = quick_images.look_at_files(page, uploaded, "", "")
    assert (folder, text, message) == ("", "dog", "")
    assert "2 images" in shown
    assert "Not used: notes.pdf (not an image)." in shown
    assert quick_images.look_at_files(page, uploaded, "", "cat")[2] == "cat"
    images = str(Path(uploaded[0]).parent.rename(tmp_path / "images"))
    assert "1 image<" in quick_images.look_at_files(page, None, images, "")[0], "a folder was entered instead"
    assert quick_images.look_at_files(page, None, "", "")[0] == ""
    assert "value" not in quick_images.look_at_files(page, None, str(tmp_path / "forbidden"), "")[0], "its error stays"
    shown, files, *_ = quick_images.look_at_folder(page, str(Path(uploaded[0]).parents[2] / "none"), "")
    assert files is None
    assert "does not exist" in shown


def test_the_stages_say_what_they_did_and_where_to_change_it() -> None:
    run = Snapshot("training", "x", step=3, max_steps=10, steps_per_second=0.1)
    stages = (
        Stage("images", "done", "4 <b>images</b>."),
        Stage("dataset", "running", progress=(1, 4)),
        Stage("embedding", "failed", "<i>wrong</i>"),
        Stage("training", "running", "Step 3 of 10.", ("<script>",), (3, 10)),
        Stage("result"),
    )
    html = quick_progress.stages(QuickSnapshot("x", True, stages, run))
    assert 'data-status="working"' in html
    for expected in (
        "4 &lt;b&gt;images",
        "1 of 4 images",
        "&lt;i&gt;wrong",
        "&lt;script",
        "Step 3 of 10. About 1 min left.",
    ):
        assert expected in html
    assert "width:30.00%" in html
    assert html.count('data-ti-show="Preprocess"') == 2
    assert 'data-ti-show="Runs"' not in html  # there is no result yet
    assert 'data-status="idle"' in quick_progress.stages(QuickSnapshot())
