"""The standalone page on the embedded model, used in Chromium: one press teaches it the word of the demonstration."""

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
from test_page import entry, show, status, step, until

from ti_trainer import tiny_model
from ti_trainer.commands.demo import CONFIG, NAME
from ti_trainer.data.images import Frame
from ti_trainer.data.loading import DatasetOptions, load_dataset
from ti_trainer.data.prompts import Prompter
from ti_trainer.formats import embeddings_dir
from ti_trainer.runs.run_folder import Run
from ti_trainer.training.evaluation import described, validation_loss

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from ti_trainer.hosts.diffusers.model import DiffusersModel

ROOT = Path(__file__).parents[2]
LIMIT_S = 120  # for the whole demonstration


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


def test_one_press_teaches_the_word_and_generate_draws_it(tmp_path: Path, embedded_model: DiffusersModel) -> None:
    with started(tmp_path) as url, launch() as page:
        untrained = loss(embedded_model, tmp_path / "embeddings")
        heard = complaints(page)
        opened(page, url)
        assert entry(page, "train_name").input_value() == NAME, "the panel Train is what is seen first"
        assert entry(page, "train_images").input_value() == str(tiny_model.DEMO)
        assert entry(page, "train_max_steps").input_value() == str(CONFIG.max_steps)
        assert entry(page, "train_template").input_value() == CONFIG.template
        assert page.locator("#ti_trainer_train_start").is_visible()

        page.click("#ti_trainer_train_start")
        until(lambda: status(page) == "done", LIMIT_S)
        assert step(page) == CONFIG.max_steps
        page.locator("#ti_trainer_previews img").nth(4).wait_for()
        page.locator("#ti_trainer_result img").nth(1).wait_for()
        (run,) = Run.all(tmp_path / "textual_inversion")
        assert [number for number, _ in run.previews()] == [0, 100, 200, 300, 400]
        assert loss(embedded_model, tmp_path / "embeddings") < 0.8 * untrained
        wanted = np.mean([colour(path) for path in tiny_model.DEMO.glob("*.png")], 0)
        first, last = (np.linalg.norm(colour(run.previews()[each][1]) - wanted) for each in (0, -1))
        assert last < first / 2, "the thing in the previews took the colours of that in the images"

        page.click("#ti_trainer_use")
        prompt = entry(page, "generate_prompt")
        prompt.wait_for()
        assert prompt.input_value() == f"a photo of {NAME} on grass"
        prompt.fill("a drawing at night")
        show(page, "Train")
        page.click("#ti_trainer_use")
        until(lambda: prompt.is_visible() and prompt.input_value() == f"a drawing at night, a photo of {NAME}")
        page.click("#ti_trainer_generate_button")
        drawn = page.locator("#ti_trainer_generate_images img")
        until(lambda: len({each.get_attribute("src") for each in drawn.all()}) >= 4, 60)
        assert not heard

    with started(tmp_path) as url, launch() as page:
        opened(page, url)
        page.click("#ti_trainer_train_start")
        error = page.locator(".ti-field-error")
        error.wait_for()
        assert f"'{NAME}' has been trained for 400 steps already" in error.inner_text()
        below = entry(page, "train_max_steps").bounding_box()
        assert 0 < error.bounding_box()["y"] - below["y"] < 100, "beside Max steps"
        assert status(page) == "idle"
        assert Run.all(tmp_path / "textual_inversion") == [run]
