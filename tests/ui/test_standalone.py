"""The standalone page on the embedded model, used in Chromium: three presses lead from images to a word that is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("gradio")  # the page is all that needs it
pytest.importorskip("diffusers")  # the standalone host needs it; the WebUI does without

import processes
from browser import complaints, launch
from PIL import Image
from test_page import entry, show, status, until

from ti_trainer import tiny_model
from ti_trainer.commands.demo import CONFIG, NAME
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import Prompter
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.run_folder import Run
from ti_trainer.training.evaluation import described, validation_loss

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from ti_trainer.hosts.diffusers.model import DiffusersModel

ROOT = Path(__file__).parents[2]
LIMIT_S = 240  # for the whole training, on a busy machine


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """The address of the page, started in this folder."""
    with processes.start(("-m", "ti_trainer", "page", "--no-browser"), cwd=folder) as process:
        try:
            said = process.stdout.readline() + process.stdout.readline()
            found = re.search(r"http://\S+", said)
            assert found, said + process.stderr.read()
            yield found[0]
        finally:
            process.kill()


def opened(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_function("() => document.querySelector('#ti_trainer_answer :is(textarea, input)')?.value")


def loss(model: DiffusersModel, folder: Path) -> float:
    """How well the word of this embeddings folder explains the images of the demonstration."""
    embedding, _ = embeddings_dir.load(folder, NAME)
    side = model.default_size_px
    data = load_dataset(
        tiny_model.DEMO,
        model,
        Frame((side, side)),
        Prompter(NAME, ["[name]"]),
        DatasetOptions(latent_sampling="deterministic"),
    )
    prompts = [described(f"a photo of {NAME}", item.caption) for item in data.items]
    return validation_loss(model, data.items, prompts, {NAME: embedding.vectors})


def colour(path: Path) -> np.ndarray:
    """The mean colour of an image's middle, where the thing is."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((64, 64)), np.float32)
    return pixels[24:40, 24:40].mean((0, 1))


def stage(page: Page, name: str) -> Locator:
    return page.locator(f"[data-stage={name}]")


def test_three_presses_lead_from_eight_dropped_images_to_a_used_word(tmp_path: Path, embedded_model: DiffusersModel) -> None:
    with started(tmp_path) as url, launch() as page:
        untrained = loss(embedded_model, tmp_path / "embeddings")
        heard = complaints(page)
        opened(page, url)
        start = page.locator("#ti_trainer_quick_start")
        start.wait_for()  # the panel Quick train is what is seen first, and all of it is filled in
        assert entry(page, "quick_name").input_value() == NAME
        assert entry(page, "quick_folder").input_value() == str(tiny_model.DEMO)
        assert page.locator("#ti_trainer_quick_about_images img").count() == 8
        assert start.bounding_box()["y"] < 900

        notes = tmp_path / "notes.pdf"
        notes.write_bytes(b"%PDF")
        dropped = [*tiny_model.DEMO.glob("*.png"), *tiny_model.DEMO.glob("*.txt"), notes]
        page.locator("#ti_trainer_quick_files input[type=file]").set_input_files(dropped)
        page.get_by_text("Not used: notes.pdf (not an image).").wait_for()
        assert entry(page, "quick_folder").input_value() == ""
        start.click()  # 1
        stage(page, "images").get_by_text("8 images.").wait_for()
        until(lambda: stage(page, "training").get_attribute("data-state") == "running")
        start.click()
        page.locator("#ti_trainer_quick_message").get_by_text(f"'{NAME}' is being trained").wait_for()
        until(lambda: stage(page, "result").get_attribute("data-state") == "done", LIMIT_S)
        page.locator("#ti_trainer_quick_stages figure img").nth(1).wait_for()
        assert "with captions" in stage(page, "dataset").inner_text()
        assert len(list((tmp_path / "textual_inversion" / "images" / NAME).glob("*.png"))) == 8
        (run,) = Run.all(tmp_path / "textual_inversion")
        assert run.options() == {**CONFIG.to_dict(), "learning_rate": "auto", "template": "subject_filewords"}
        assert loss(embedded_model, tmp_path / "embeddings") < 0.8 * untrained
        wanted = np.mean([colour(path) for path in tiny_model.DEMO.glob("*.png")], 0)
        first, last = (np.linalg.norm(colour(run.previews()[each][1]) - wanted) for each in (0, -1))
        assert last < first / 2, "the thing in the previews took the colours of that in the images"

        page.click("#ti_trainer_quick_use")  # 2
        prompt = entry(page, "generate_prompt")
        prompt.wait_for()
        assert prompt.input_value() == f"a photo of {NAME} on grass"
        prompt.fill("a drawing at night")
        show(page, "Quick train")
        stage(page, "training").get_by_role("button").click()  # to the panel Train, which holds what was used
        assert entry(page, "train_images").input_value() == str(tmp_path / "textual_inversion" / "datasets" / NAME)
        assert entry(page, "train_template").input_value() == "subject_filewords"
        assert status(page) == "done"
        page.click("#ti_trainer_use")
        until(lambda: prompt.is_visible() and prompt.input_value() == f"a drawing at night, a photo of {NAME}")
        page.click("#ti_trainer_generate_button")  # 3
        drawn = page.locator("#ti_trainer_generate_images img")
        until(lambda: len({each.get_attribute("src") for each in drawn.all()}) >= 4, 60)
        assert not heard

    with started(tmp_path) as url, launch() as page:
        opened(page, url)
        assert entry(page, "quick_name").input_value() == f"{NAME}-2"
        entry(page, "quick_name").fill(NAME)
        page.locator("#ti_trainer_quick_overwrite").wait_for()
        page.click("#ti_trainer_quick_start")
        page.locator("#ti_trainer_quick_message").get_by_text(f"such as {NAME}-2, or replace it.").wait_for()
        assert Run.all(tmp_path / "textual_inversion") == [run]
